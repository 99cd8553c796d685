"""What ``--help`` says, of the commands and of the classes."""

import pytest

import noisylightning as nl
from noisylightning.cli import main
from noisylightning.cli.commands import CommandTrainer, NoisyLightningCLI
from noisylightning.cli.help import COMMANDS, command_help


@pytest.fixture
def asked(monkeypatch, capsys):
    """Ask the command for help, and return what it says at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def ask(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code in (0, None)
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_one_screen_in_our_words(command, asked):
    said = asked(*command.split(), "--help")
    assert "Lightning Trainer command line tool" not in said
    assert len(said.splitlines()) <= 48
    assert max(map(len, said.splitlines())) <= 80
    for name in [command] if command else COMMANDS:
        assert f"noisylightning {name} " in said  # its example
        assert COMMANDS[name].purpose.split()[0] in said


def test_help_names_every_option_that_a_command_alone_has():
    """And none that it has not."""
    for command, skipped in NoisyLightningCLI.subcommands().items():
        taken = getattr(CommandTrainer, command).__code__.co_varnames[1:]
        count = getattr(CommandTrainer, command).__code__.co_argcount - 1
        added = {"output"} if command == "predict" else set()
        assert set(COMMANDS[command].options) == set(taken[:count]) - skipped | added, command
        assert all(f"--{option}" in command_help(command) for option in COMMANDS[command].options)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.help=NoisyLabelClassifier"], ["--model.correction", "How T enters", "CIFARResNet", "CosineAnneal"]),
        (["--model.help"], ["NoisyLabelClassifier: A classifier trained on noisy labels"]),
        (["--data.noise.help", "HumanNoise"], ["--data.noise.path", "Required.", "Default: clean_label."]),
        (["--data.noise.help"], ["PairFlipNoise", "SymmetricNoise"]),
        (["--data.help"], ["DigitsDataModule", "1,797 real 8x8 grey images"]),
        (["--model.backbone.help", "MLP"], ["--model.backbone.hidden"]),
        (["--model.backbone.help", "torch.nn.Linear"], ["--model.backbone.in_features"]),
        (["--model.correction.loss.help", "FocalLoss"], ["--model.correction.loss."]),
        (["--model.optimizer.help", "SGD"], ["--model.optimizer.momentum"]),
        (["--trainer.callbacks.help"], ["EstimateTransitionCallback", "EarlyStopping"]),
    ],
)
def test_a_class_is_explained_on_one_screen(arguments, parts, asked):
    said = asked("fit", *arguments)
    assert all(part in said for part in parts)
    assert "torch.nn.ReLU" not in said
    assert "torch.ao" not in said
    assert len(said.splitlines()) <= 48
    assert ":meth:" not in said
    assert "``" not in said


@pytest.mark.parametrize("arguments", [("estimate", "--estimator.help"), ("fit", "--trainer.callbacks.estimator.help")])
def test_each_estimator_has_a_line_that_is_whole(arguments, asked):
    lines = asked(*arguments).splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(listed) == {name for name in nl.__all__ if name.endswith("Estimator")} - {"TransitionEstimator"}
    assert not any("..." in line for line in listed.values())


def test_estimators_that_are_asked_by_default_go_by_their_names(asked):
    said = " ".join(asked("estimate", "--estimator.help", "ConsensusEstimator").split())
    assert "Default: ClusterabilityEstimator, ConfidentJointEstimator, SimplexEstimator," in said


def test_what_the_library_fills_in_is_no_option(asked):
    assert "--model.optimizer.params" not in asked("fit", "--model.optimizer.help", "Adam")
    assert "--estimator.num_classes" not in asked("estimate", "--estimator.help", "AnchorEstimator")


def test_all_options_of_the_trainer_are_listed(asked):
    assert "--trainer.gradient_clip_val" in asked("fit", "--trainer.help")


def test_help_on_no_class_names_the_nearest():
    with pytest.raises(SystemExit, match=r"There is no class HumanNois for --data\.noise; did you mean HumanNoise\?"):
        main(["fit", "--data.noise.help", "HumanNois"])
