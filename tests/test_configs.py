"""The fragments in configs/: any network, any noise and any method stack; a spanning set of the stacks is run.

Of the 4,356 triples 634 are built: every network with every method, every network with every noise, and every
noise with every method. Pairs suffice, since noises, methods and bounds set no key in common, so that none can undo
another: a triple's data module is that of its network and noise, its model and callbacks are those of its network and
method. With NOISYLIGHTNING_EVERY_STACK=1 in the environment all of them are built.

Parsing costs ten times as much as building. So each fragment is parsed once, and a stack is its network's
configuration with the few keys set that its fragments set; that this is what the parser makes of the stack is shown
for a set of stacks in which every fragment occurs.
"""

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from layouts import (
    write_cifar10,
    write_cifar100,
    write_clothing1m,
    write_imdb,
    write_labelme,
    write_mnist,
    write_own_images,
    write_own_table,
    write_own_text,
)
from pytorch_lightning.cli import LightningCLI

import noisylightning.corrections
import noisylightning.losses
from noisylightning.cli import NoisyLightningCLI, main
from noisylightning.cli.parser import Parser
from noisylightning.data import IMDBDataModule
from noisylightning.estimators import PartDependentEstimator, TrustedDataEstimator
from noisylightning.transition import (
    LearntTransition,
    NoiseAdaptation,
    PartDependentTransition,
    TotalVariation,
    TransitionRevision,
    VolumeMinimization,
)

CONFIGS = Path(__file__).parents[1] / "configs"
OLDER = {"cross_entropy", "forward_known", "forward_estimated", "backward_estimated"}  # whole runs
NOISES = sorted(path.stem for path in (CONFIGS / "noise").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
ESTIMATORS = sorted(path.stem for path in (CONFIGS / "estimators").glob("*.yaml"))
NEED_BOUNDS = {"unhinged", "sigmoid", "ramp"}
NEED_INDEX = {"early_learning_regularization", "part_dependent"}
LEARNT = {
    "volume_minimization": VolumeMinimization,
    "transition_revision": TransitionRevision,
    "noise_adaptation": NoiseAdaptation,
    "total_variation": TotalVariation,
}
TABLE_OF_THE_PAPER = {
    "cross_entropy", "unhinged", "sigmoid", "savage", "bootstrap_soft", "bootstrap_hard", "backward_known",
    "backward_estimated", "forward_known", "forward_estimated",
}  # fmt: skip
NETWORKS = [
    "digits/mlp", "mnist/mlp", "fashion_mnist/mlp", "cifar10/resnet14", "cifar10/resnet32", "cifar100/resnet44",
    "cifar10n/resnet34", "cifar100n/resnet34", "clothing1m/resnet50", "imdb/embedding", "imdb/lstm", "imdb/transformer",
    "labelme/mlp", "own_images/resnet14", "own_images/resnet18", "own_table/mlp", "own_text/embedding",
]  # fmt: skip
CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar10n": 10, "cifar100": 100,
           "cifar100n": 100, "clothing1m": 14, "imdb": 2, "labelme": 8, "own_images": 3, "own_table": 3,
           "own_text": 3}  # fmt: skip
INPUTS = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "labelme": (512,), "own_table": (3,)}
LARGE = {"cifar10n/resnet34", "cifar100n/resnet34", "clothing1m/resnet50", "imdb/lstm", "imdb/transformer"}
NOISY_BY_THEMSELVES = {"cifar10n", "cifar100n", "clothing1m", "labelme"}
NO_FLIPS = {"fashion_mnist", "own_images", "own_table", "own_text"}  # asymmetric noise needs flips={...} there


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["noisylightning"])  # Lightning warns of arguments given twice


def stack(*fragments: str | None) -> list[str]:
    return [f"--config={CONFIGS / fragment}.yaml" for fragment in fragments if fragment is not None]


def keys_of(fragment: str) -> set[str]:
    """The keys that a fragment sets, a class and its arguments being one."""

    def walk(node: object, at: str) -> set[str]:
        if not isinstance(node, dict) or ("class_path" in node and at not in ("data", "model")):
            return {at}
        return set().union(*(walk(value, f"{at}.{key}".lstrip(".")) for key, value in node.items()))

    return walk(yaml.safe_load((CONFIGS / f"{fragment}.yaml").read_text()), "")


def noises_of(data: str) -> list[str | None]:
    if data in NOISY_BY_THEMSELVES:
        return [None]
    return [None, *(noise for noise in NOISES if data not in NO_FLIPS or not noise.startswith("asymmetric"))]


def noises_with(network: str, method: str) -> list[str | None]:
    """The noises of the stacks that are built of a network and a method."""

    def turn(network: str) -> str | None:
        noises = noises_of(network.split("/")[0])
        return noises[(NETWORKS.index(network) + METHODS.index(method)) % len(noises)]

    if "NOISYLIGHTNING_EVERY_STACK" in os.environ:
        return noises_of(network.split("/")[0])
    if network != "digits/mlp":
        return [turn(network)]
    taken = {turn(other) for other in NETWORKS[1:]} - {turn(network)}
    return [noise for noise in noises_of("digits") if noise not in taken]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Small data of every kind, each where its module looks for it."""
    root = tmp_path_factory.mktemp("data")
    for write in (write_mnist, write_cifar10, write_cifar100, write_imdb, write_labelme):
        write(root)
    write_mnist(root, "FashionMNIST")
    folders = {
        "own": write_own_images,
        "table": write_own_table,
        "text": write_own_text,
        "clothing1m": write_clothing1m,
    }
    for name, write in folders.items():
        (root / name).mkdir()
        write(root / name)
    return root


def where(network: str, root: Path) -> list[str]:
    """The arguments that a user gives too: where the data lies, and that no weights are to be downloaded."""
    data = network.split("/")[0]
    arguments = {
        "digits": [],
        "own_images": [f"--data.root={root}/own", f"--data.labels={root}/own/labels.csv"],
        "own_table": [f"--data.train_file={root}/table/train.csv", f"--data.test_file={root}/table/test.csv"],
        "own_text": [f"--data.train_file={root}/text/train.csv", f"--data.test_file={root}/text/test.csv"],
        "clothing1m": [f"--data.root={root}/clothing1m"],
    }.get(data, [f"--data.data_dir={root}"])
    downloads = "\n        weights:" in (CONFIGS / f"{network}.yaml").read_text()
    return [*arguments, "--model.backbone.weights="] if downloads else arguments


def test_every_network_is_listed_and_every_fragment_says_what_it_is():
    folders = {name.split("/")[0] for name in NETWORKS}
    assert folders == set(CLASSES)
    found = {
        f"{path.parent.name}/{path.stem}"
        for folder in folders
        for path in (CONFIGS / folder).glob("*.yaml")
        if path.stem not in OLDER and "optimizer" in path.read_text()
    }
    on_features = {name for name in found if name.endswith("/features_linear")}  # tests/test_features_configs.py
    assert found - on_features == set(NETWORKS)
    for path in CONFIGS.rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_every_method_of_the_paper_and_every_loss_and_correction_since_has_a_fragment():
    assert set(METHODS) >= TABLE_OF_THE_PAPER
    text = "".join((CONFIGS / "methods" / f"{method}.yaml").read_text() for method in METHODS)
    words = {word.split(".")[-1] for word in text.split()}
    of_no_method = {"Loss", "LikelihoodLoss", "CrossEntropy", "SampleWeighted"}  # the last needs a file of weights
    losses = set(noisylightning.losses.__all__) - of_no_method
    corrections = {cls.__name__ for cls in noisylightning.corrections.Correction.__subclasses__()
                   if cls.__module__.startswith("noisylightning.")}  # fmt: skip
    learnt = {kind.__name__ for kind in LearntTransition.__subclasses__() if kind.__module__.startswith("noisylight")}
    assert losses | corrections | learnt <= words
    assert learnt == {kind.__name__ for kind in LEARNT.values()}


def monitors_of(node: object) -> Iterator[str]:
    """What a configuration chooses by, wherever in it."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "monitor")
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from monitors_of(inner)


def test_every_file_chooses_by_noisy_validation_data():
    monitors = {
        monitor for path in CONFIGS.rglob("*.yaml") for monitor in monitors_of(yaml.safe_load(path.read_text()))
    }
    assert monitors <= {"val_accuracy", "val_loss"}
    assert monitors


@pytest.mark.parametrize(
    "option",
    ["--trainer.callbacks+=ModelCheckpoint", "--model.lr_scheduler=pytorch_lightning.cli.ReduceLROnPlateau"],
)
def test_the_command_does_not_choose_by_clean_test_data(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = option.partition("=")[0].rstrip("+")
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    method = stack("digits/mlp", "methods/forward_known", "noise/symmetric_0.2")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *method, *quiet, option, f"--{name.lstrip('-')}.monitor=test_accuracy"])
    assert "would choose by clean test data" in str(stopped.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_noises_methods_and_bounds_set_no_key_in_common():
    noise = set().union(*(keys_of(f"noise/{name}") for name in NOISES))
    method = set().union(*(keys_of(f"methods/{name}") for name in METHODS))
    bounds = set().union(
        *(keys_of(str(path.relative_to(CONFIGS).with_suffix(""))) for path in CONFIGS.glob("*/bounded/*.yaml"))
    )
    estimator = set().union(*(keys_of(f"estimators/{name}") for name in ESTIMATORS))
    assert estimator == {"trainer.callbacks.estimator", "trainer.callbacks.rounds", "data.init_args.trusted"}
    assert noise == {"data.init_args.noise"}
    model = {"model.init_args.correction", "model.init_args.transition_lr"}
    assert method == {*model, "trainer.callbacks+", "data.init_args.with_index", "data.init_args.trusted"}
    assert bounds == {"model.init_args.backbone"}


def test_a_bounded_network_is_the_network_with_a_head():
    bounded = sorted(CONFIGS.glob("*/bounded/*.yaml"))
    assert len(bounded) == 11
    for path in bounded:
        head = yaml.safe_load(path.read_text())["model"]["init_args"]["backbone"]
        network = yaml.safe_load((path.parents[1] / path.name).read_text())["model"]["init_args"]["backbone"]
        assert head["class_path"] == "BatchNormHead"
        assert head["init_args"]["backbone"] == network
        assert head["init_args"]["num_classes"] == network["init_args"]["num_classes"]


class WithEveryLink(NoisyLightningCLI):
    """Its parser serves every network: no link is left out for the one that it is made with."""

    def parse_arguments(self, parser, args):
        LightningCLI.parse_arguments(self, parser, args)


@pytest.fixture(scope="module")
def parser():
    """The command's parser, which takes longest to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["noisylightning"])
        cli = WithEveryLink(
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            run=False,
            args=[*stack("digits/mlp"), "--trainer.accelerator=cpu"],
        )
    return cli.parser


@pytest.fixture(scope="module")
def parsed(parser, data_folder):
    """Parses a stack once."""

    @cache
    def parse(network: str, *fragments: str | None):
        return parser.parse_args([*stack(network, *fragments), *where(network, data_folder)])

    return parse


@pytest.fixture(scope="module")
def merged(parsed):
    """Gives a stack's configuration without parsing it: the network's, and what noise and method set on the digits."""
    callbacks = len(parsed("digits/mlp").trainer.callbacks)

    def merge(network: str, bounds: str | None, noise: str | None, method: str):
        config = parsed(network, bounds).clone()
        on_digits = parsed("digits/mlp", f"methods/{method}")
        config.model.init_args.correction = deepcopy(on_digits.model.init_args.correction)
        config.model.init_args.transition_lr = on_digits.model.init_args.transition_lr
        config.data.init_args.with_index = on_digits.data.init_args.with_index
        config.data.init_args.trusted = on_digits.data.init_args.trusted
        config.trainer.callbacks = [*config.trainer.callbacks, *deepcopy(on_digits.trainer.callbacks[callbacks:])]
        if noise is not None:
            config.data.init_args.noise = deepcopy(parsed("digits/mlp", f"noise/{noise}").data.init_args.noise)
        return config

    return merge


def bounds_of(network: str, method: str) -> str | None:
    bounds = network.replace("/", "/bounded/")
    return bounds if method in NEED_BOUNDS and (CONFIGS / f"{bounds}.yaml").exists() else None


@pytest.mark.parametrize("turn", range(max(len(METHODS), len(NETWORKS), len(NOISES))))
def test_a_stack_is_parsed_as_it_is_merged(turn, parsed, merged):
    """Every method, every network and every noise take their turn."""
    method, network = METHODS[turn % len(METHODS)], NETWORKS[turn % len(NETWORKS)]
    noises = noises_of(network.split("/")[0])
    noise, bounds = noises[turn % len(noises)], bounds_of(network, method)
    whole = parsed(network, bounds, noise and f"noise/{noise}", f"methods/{method}").clone()
    alone = merged(network, bounds, noise, method)
    for config in (whole, alone):
        config.pop("config")  # the files it was read from
    assert whole == alone


def check_method(method: str, built) -> None:
    """The correction is the one that the method's name says."""
    correction = type(built.model.correction).__name__
    callbacks = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert callbacks[:2] == ["ModelCheckpoint", "ModelCheckpoint"]
    family, _, source = method.rpartition("_")
    learnt = LEARNT.get(method)
    assert built.model.transition_lr == (None if learnt is None else 0.01)
    if learnt is not None:
        assert isinstance(built.model.correction.T, learnt)
        assert correction == ("ImportanceReweighting" if learnt is TransitionRevision else "ForwardCorrection")
        assert callbacks[2:] == []
        built.model.correction.require_transition()
    elif method == "part_dependent":
        assert correction == "ForwardCorrection"
        assert isinstance(built.model.correction.T, PartDependentTransition)
        assert callbacks[2:] == ["EstimateTransitionCallback"]
        assert isinstance(built.trainer.callbacks[2].estimator(3), PartDependentEstimator)
    elif method == "gold_loss_correction":
        assert correction == "ForwardCorrection"
        assert callbacks[2:] == ["EstimateTransitionCallback"]
        assert built.trainer.callbacks[2].train_on_trusted
        assert isinstance(built.trainer.callbacks[2].estimator(3), TrustedDataEstimator)
        assert built.data.trusted == 5
    elif source in ("known", "estimated"):
        assert correction == {"importance_reweighting": "ImportanceReweighting"}.get(
            family, f"{family.title()}Correction"
        )
        added = {"known": "KnownTransitionCallback", "estimated": "EstimateTransitionCallback"}[source]
        assert callbacks[2:] == [added]
    else:
        assert correction == "NoCorrection"
        assert callbacks[2:] == []
        assert (type(built.model.correction.loss).__name__ == "CrossEntropy") == (method == "cross_entropy")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_methods_and_noises_are_built_together(network, method, parser, merged):
    data = network.split("/")[0]
    bounds = bounds_of(network, method)
    for noise in noises_with(network, method):
        large = network in LARGE and "backward" not in method  # which looks at its T
        with torch.device("meta" if large else "cpu"):  # there, weights need not be drawn
            built = parser.instantiate_classes(merged(network, bounds, noise, method))
        check_method(method, built)
        assert built.model.num_classes == CLASSES[data]
        if data not in NOISY_BY_THEMSELVES:
            asked = None if noise is None else float(noise.rpartition("_")[2])
            assert (built.data.noise and built.data.noise.rate) == asked
        assert built.data.with_index == (method in NEED_INDEX)
        assert (type(built.model.backbone).__name__ == "BatchNormHead") == (bounds is not None)


def test_the_stacks_built_hold_every_pair():
    built = [(network, noise, method) for network in NETWORKS for method in METHODS
             for noise in noises_with(network, method)]  # fmt: skip
    networks_noises = {(network, noise) for network in NETWORKS for noise in noises_of(network.split("/")[0])}
    assert {(network, noise) for network, noise, _ in built} == networks_noises
    assert {(network, method) for network, _, method in built} == set(product(NETWORKS, METHODS))
    assert {(noise, method) for _, noise, method in built} == set(product([None, *NOISES], METHODS))


@pytest.mark.parametrize("method", [method for method in METHODS if method.endswith("_estimated")])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimator_stacks_after_a_method_and_changes_nothing_else(estimator, method, parser, parsed):
    alone, chosen = (
        parsed("digits/mlp", f"methods/{method}", each).clone() for each in (None, f"estimators/{estimator}")
    )
    for config in (alone, chosen):
        config.pop("config")
    callback = parser.instantiate_classes(chosen).trainer.callbacks[-1]
    given = yaml.safe_load((CONFIGS / f"estimators/{estimator}.yaml").read_text())["trainer"]["callbacks"]
    named = given.get("estimator", "ConsensusEstimator")
    name = named if isinstance(named, str) else named["class_path"]
    assert type(callback.estimator(10)).__name__ == name
    assert callback.rounds == given.get("rounds")
    for argument in ("estimator", "rounds"):
        chosen.trainer.callbacks[-1].init_args[argument] = alone.trainer.callbacks[-1].init_args[argument]
    assert (chosen.data.init_args.trusted is not None) == (estimator == "trusted")
    chosen.data.init_args.trusted = None
    assert chosen == alone


def test_what_is_in_training_adds_a_callback_and_stacks_after_a_method_and_an_estimator(parser, parsed):
    files = [f"training/{path.stem}" for path in sorted((CONFIGS / "training").glob("*.yaml"))]
    assert files == sorted([*TRAINING, "training/cutmix"])
    assert set().union(*map(keys_of, files)) == {"trainer.callbacks+", "model.init_args.encoder_lr"}
    stacked = parsed("digits/mlp", "methods/forward_estimated", "estimators/dual_t", *files).clone()
    built = parser.instantiate_classes(stacked)
    assert [type(callback).__name__ for callback in built.trainer.callbacks[2:]] == [
        "EstimateTransitionCallback", "CutMix", "EarlyStopping", "HeadFirst", "Mixup",
    ]  # fmt: skip
    assert type(built.trainer.callbacks[2].estimator(10)).__name__ == "DualTEstimator"
    assert [len(group["params"]) for group in built.model.parameter_groups()] == [2, 4]


@pytest.mark.parametrize("fragments", [["digits/mlp"], ["digits/mlp", "methods/cross_entropy"], []])
def test_an_estimator_without_a_method_is_refused_in_one_sentence(fragments):
    with pytest.raises(SystemExit, match="estimator is no argument of the callback that was added last"):
        main(["fit", *stack(*fragments, "estimators/dual_t"), "--print_config"])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_maps_its_data_to_its_classes(network, parser, parsed):
    data = network.split("/")[0]
    built = parser.instantiate_classes(parsed(network))
    built.model.eval()
    words = data in ("imdb", "own_text")
    inputs = torch.ones(1, 400, dtype=torch.long) if words else torch.zeros(1, *INPUTS.get(data, (3, 32, 32)))
    assert built.model(inputs).shape == (1, CLASSES[data])
    assert built.model.configure_optimizers()


@pytest.mark.parametrize("labels", ["aggre", "random1", "random2", "random3", "worse"])
def test_any_of_the_human_labels_is_chosen_by_a_fragment(labels, parser, data_folder):
    fragments = stack("cifar10n/resnet34", f"cifar10n/{labels}", "methods/forward_known")
    built = parser.instantiate_classes(parser.parse_args([*fragments, f"--data.data_dir={data_folder}"]))
    assert built.data.noise.key.startswith(labels[:6])
    assert built.data.noise.key.endswith(labels[-1] if labels.startswith("random") else "label")


def test_a_stack_that_does_not_begin_with_the_network_stops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for first in ("methods/forward_known", "noise/symmetric_0.2"):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *stack(first, "digits/mlp")])
        assert stopped.value.code not in (0, None)
        assert not (tmp_path / "lightning_logs").exists()


SMALLER = {  # networks, whose checkpoints would otherwise fill hundreds of megabytes
    "cifar10n": ["--model.backbone=CIFARResNet", "--model.backbone.depth=8", "--model.backbone.num_classes=10"],
    "cifar100n": ["--model.backbone=CIFARResNet", "--model.backbone.depth=8", "--model.backbone.num_classes=100"],
    "clothing1m": ["--model.backbone.name=shufflenet_v2_x0_5", "--data.size=32", "--data.num_workers=0"],
}
TRAINING = ["training/early_stopping", "training/head_first", "training/mixup"]  # and training/cutmix
RUNS = [
    ("digits/mlp", "digits/bounded/mlp", "noise/symmetric_0.2", "methods/unhinged"),
    ("digits/mlp", "noise/symmetric_0.2", *TRAINING, "methods/importance_reweighting_estimated"),
    ("digits/mlp", "noise/symmetric_0.2", "methods/forward_estimated", "estimators/trusted"),
    ("digits/mlp", "noise/symmetric_0.2", "training/mixup", "methods/gold_loss_correction"),
    ("labelme/mlp", "methods/forward_known"),
    ("mnist/mlp", "noise/asymmetric_0.6", "methods/forward_estimated"),
    ("mnist/mlp", "methods/early_learning_regularization"),
    ("fashion_mnist/mlp", "noise/pair_flip_0.2", "methods/bootstrap_hard"),
    ("cifar10/resnet14", "noise/instance_dependent_0.2", "methods/nce_rce", "training/cutmix"),
    ("cifar10/resnet14", "cifar10/confusion", "methods/forward_known"),
    ("cifar10/resnet14", "cifar10/bounded/resnet14", "methods/sigmoid"),
    ("cifar100/resnet44", "noise/asymmetric_0.2", "methods/generalized_cross_entropy"),
    ("cifar10n/resnet34", "cifar10n/aggre", "methods/label_smoothing"),
    ("cifar100n/resnet34", "methods/savage"),
    ("imdb/embedding", "noise/asymmetric_0.4", "methods/backward_known"),
    ("clothing1m/resnet50", "methods/bootstrap_soft"),
    ("own_table/mlp", "noise/symmetric_0.2", "methods/forward_known"),
    ("own_text/embedding", "noise/symmetric_0.2", "methods/forward_known"),
    ("digits/mlp", "noise/symmetric_0.5", "methods/volume_minimization"),
    ("digits/mlp", "noise/symmetric_0.2", "methods/forward_estimated", "estimators/unrefined"),
]


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # after two epochs it may
@pytest.mark.filterwarnings("ignore:No T-hat foretells held-out labels")
@pytest.mark.parametrize("fragments", RUNS, ids="+".join)
def test_a_spanning_set_is_run_for_two_epochs(fragments, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(IMDBDataModule, "reviews_per_class", 8)
    data = fragments[0].split("/")[0]
    estimated = fragments[-1].endswith(("estimated", "gold_loss_correction")) or fragments[-1].startswith("estimators/")
    arguments = [
        *stack(*fragments),
        *where(fragments[0], data_folder),
        "--data.batch_size=8",
        "--data.val_fraction=0.25",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={1 if estimated else 2}",  # a stage
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
    ]
    if data.startswith("cifar"):
        arguments.append("--data.verify=false")  # these are not the published files
    if fragments[1] == "cifar10/confusion":
        arguments.append(f"--data.noise.path={data_folder}/cifar10n.npz")
    arguments += SMALLER.get(data, [])
    main(["fit", *arguments])
    rows = summary_of(tmp_path)
    assert len(rows) == (3 if estimated else 2)
    assert all(row["test_accuracy"] is not None for row in rows)


def summary_of(folder: Path) -> list[dict]:
    (summary,) = folder.glob("lightning_logs/*/summary.json")
    return json.loads(summary.read_text())


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # after so few epochs it may
def test_clothing1m_is_trained_in_three_phases(data_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    recipe = yaml.safe_load((CONFIGS / "clothing1m/three_phases.yaml").read_text())
    estimate, fine_tune = (callback["init_args"] for callback in recipe["trainer"]["callbacks+"])
    assert 3 * estimate["stage_one_epochs"] == recipe["trainer"]["max_epochs"]
    assert fine_tune["from_epoch"] == 2 * estimate["stage_one_epochs"]
    recipe["trainer"]["max_epochs"], estimate["stage_one_epochs"], fine_tune["from_epoch"] = 3, 1, 2
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(recipe))
    main(
        [
            "fit",
            *stack("clothing1m/resnet50"),
            f"--config={tmp_path}/short.yaml",
            *where("clothing1m/resnet50", data_folder),
            *SMALLER["clothing1m"],
            "--data.batch_size=8",
            "--trainer.accelerator=cpu",
            "--trainer.limit_train_batches=2",
            "--trainer.limit_val_batches=1",
            "--trainer.limit_test_batches=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.log_every_n_steps=1",
        ]
    )
    assert len(summary_of(tmp_path)) == 3
    phases = ("Stage one: ", "Stage two: ", "Fine-tuning: ")
    assert [text.split(": ")[0] + ": " for text in caplog.messages if text.startswith(phases)] == list(phases)


@pytest.mark.filterwarnings("ignore:No T-hat foretells")  # after so few epochs none may
@pytest.mark.parametrize(("method", "tested"), [("methods/forward_estimated", True), (None, False)])
def test_a_folder_of_200_images_trains_by_one_command(method, tested, data_folder, tmp_path, monkeypatch):
    """Three ``--data.`` arguments; the others only make it short."""
    monkeypatch.chdir(tmp_path)
    own = data_folder / "own"
    arguments = [
        *stack("own_images/resnet14", method),
        f"--data.root={own}",
        f"--data.labels={own}/labels.csv",
        *([f"--data.test_labels={own}/checked.csv"] if tested else []),
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
    ]
    main(["fit", *arguments])
    rows = summary_of(tmp_path)
    assert len(rows) == (3 if method else 2)
    assert all(row["val_accuracy"] is not None and (row["test_accuracy"] is not None) == tested for row in rows)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_folder_for_each_class_trains_and_predicts_by_one_command(data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (data_folder / "own/labels.csv").read_text().splitlines()[1:]:
        image, label = line.split(",")
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / label / Path(image).name).write_bytes((data_folder / "own" / image).read_bytes())
    short = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    network = [*stack("own_images/resnet14"), *short]
    main(["fit", *network, "--data.root=photos", "--data.test_root=photos"])
    assert all(row["test_accuracy"] is not None for row in summary_of(tmp_path))
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt")
    main(["predict", *network, "--data.predict_root=photos", f"--ckpt_path={checkpoint}"])
