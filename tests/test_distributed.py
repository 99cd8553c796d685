"""Two processes for real, over gloo: the same T-hat everywhere, nothing twice, nothing lost, nobody left waiting."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import CLASSES, ToyData, classifier, estimate_by_hand, means_by_hand

from noisylightning.functional.bootstrap import part_of
from noisylightning.functional.calibration import VectorScaling, calibrate
from noisylightning.functional.expectation_maximization import expected_counts, maximize
from noisylightning.functional.information import standard_error
from noisylightning.transition import NoiseAdaptation

SCRIPT = Path(__file__).parent / "distributed_fit.py"


def launch(*specs: dict, prefix=(sys.executable,), environment=None) -> subprocess.Popen:
    command = [*prefix, str(SCRIPT), json.dumps(specs, default=str)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )


def fit(folder: Path, check=True, **spec) -> str:
    return fit_all({"folder": folder, **spec}, check=check)


def fit_all(*specs: dict, check=True) -> str:
    """Launch two processes, once for several fits."""
    process = launch(*specs)
    said, _ = process.communicate(timeout=300)
    assert not check or process.returncode == 0, said[-3000:]
    assert check or process.returncode != 0
    return said


def ranks(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*.pt"))]


def stage_one(folder: Path) -> Path:
    return folder / "lightning_logs" / "version_0" / "stage_one.ckpt"


def rows(inputs: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, inputs.tolist()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    fit(folder)
    return folder


def test_every_rank_has_the_same_bits(finished):
    zero, one = ranks(finished)
    for name in ("transition", "callback", "weights"):
        assert torch.equal(zero[name], one[name]), name


def test_every_sample_is_seen_once(finished):
    """97 samples on two ranks: a padded sampler would show 98."""
    zero, one = ranks(finished)
    assert (len(zero["seen"]), len(one["seen"])) == (49, 48)
    assert rows(torch.cat([zero["seen"], one["seen"]])) == rows(ToyData(num_train=97).train.tensors[0])


def test_one_process_estimates_the_same_from_the_same_weights(finished):
    weights = torch.load(stage_one(finished), weights_only=True)["state_dict"]
    model = classifier()
    model.load_state_dict(weights)
    expected = estimate_by_hand(model, ToyData(num_train=97))
    torch.testing.assert_close(ranks(finished)[0]["transition"], expected, atol=1e-6, rtol=0)


def test_features_come_from_every_process(finished):
    model, (inputs, labels) = classifier(), ToyData(num_train=97).train.tensors
    model.load_state_dict(torch.load(stage_one(finished), weights_only=True)["state_dict"])
    expected = means_by_hand(model.backbone[:3].eval()(inputs), labels)
    for rank in ranks(finished):
        torch.testing.assert_close(rank["feature_means"], expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    """A fit whose T learns, on mixed samples, and whose head trains before the encoder."""
    folder = tmp_path_factory.mktemp("learnt")
    fit(folder, learnt=True, mixed=True, strategy="ddp_find_unused_parameters_true")
    return folder


def test_a_learnt_transition_waits_and_learns_on_every_rank(learnt):
    zero, one = ranks(learnt)
    for name in ("transition", "weights"):
        assert torch.equal(zero[name], one[name]), name
    waiting = torch.load(stage_one(learnt), weights_only=True)["state_dict"]
    assert waiting["correction.transition.held"] == 1
    assert torch.equal(waiting["correction.transition.start"], torch.eye(CLASSES))
    assert torch.equal(waiting["correction.transition.scores"], NoiseAdaptation(CLASSES).scores)
    assert torch.equal(zero["state"]["correction.transition.start"], zero["callback"])
    assert not torch.allclose(zero["transition"], zero["callback"], atol=1e-4)


def resume(fits: dict[Path, dict], into: Path, epochs: list[int]) -> None:
    """Resume fits from some of their epochs, each into a folder of its own, and see that they end where they ended."""
    folders = {(folder, epoch): into / folder.name / str(epoch) for folder in fits for epoch in epochs}
    fit_all(
        *(
            {"folder": own, "ckpt_path": folder / "every" / f"epoch={epoch}.ckpt", **fits[folder]}
            for (folder, epoch), own in folders.items()
        )
    )
    for (folder, _), resumed in folders.items():
        for before, after in zip(ranks(folder), ranks(resumed), strict=True):
            assert torch.equal(before["weights"], after["weights"])
            assert torch.equal(before["transition"], after["transition"])
            assert all(torch.equal(value, after["state"][name]) for name, value in before["state"].items())


def test_two_processes_resume_bit_for_bit(finished, tmp_path):
    resume({finished: {}}, tmp_path, [0, 1, 2])


def test_every_rank_mixes_with_the_same_share(learnt):
    zero, one = ranks(learnt)
    assert torch.equal(zero["shares"], one["shares"])
    assert len(zero["shares"]) >= 2 * 4  # batches of stage two


def test_an_encoder_that_had_no_gradients_is_synchronized_when_it_has_some(learnt):
    zero, one = ranks(learnt)
    assert torch.equal(zero["weights"], one["weights"])
    for epoch, stands in enumerate([True, False, True, False]):
        saved = torch.load(learnt / "every" / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(saved["backbone.0.weight"], classifier(0).backbone[0].weight) == stands


NORMED = {"num_train": 101, "estimate_from": "last", "limit_val_batches": 0}  # validation would let the ranks agree


NORMS = ("batch", "synchronized")


@pytest.fixture(scope="module")
def all_normed(tmp_path_factory) -> Path:
    """Fits with batch norm: of each process's own batches, or over all processes, as by ``sync_batchnorm=True``."""
    folder = tmp_path_factory.mktemp("normed")
    fit_all(*({"folder": folder / norm, "norm": norm, **NORMED} for norm in NORMS))
    return folder


@pytest.fixture(scope="module", params=NORMS)
def normed(request, all_normed) -> tuple[str, Path]:
    return request.param, all_normed / request.param


def test_batch_statistics_begin_again_on_every_rank(normed):
    norm, folder = normed
    for rank in ranks(folder):
        assert rank["layer"] == {"batch": "BatchNorm1d", "synchronized": "SynchronizedNorm"}[norm]
        epochs = rank["statistics"].abs().sum(dim=1)
        assert epochs[0] == epochs[2] == 0
        assert bool((epochs[[1, 3]] > 0).all())


def test_ranks_estimate_with_the_same_batch_statistics(normed):
    """Those of rank 0, which its checkpoint holds: under plain DDP each rank has its own between two steps."""
    norm, folder = normed
    zero, one = ranks(folder)
    assert torch.equal(zero["transition"], one["transition"])
    means = [rank["statistics"][1] for rank in (zero, one)]
    assert torch.equal(*means) == (norm == "synchronized")
    model = classifier()
    model.backbone.insert(1, torch.nn.BatchNorm1d(16))
    model.load_state_dict(torch.load(stage_one(folder), weights_only=True)["state_dict"])
    expected = estimate_by_hand(model, ToyData(num_train=101))
    torch.testing.assert_close(zero["transition"], expected, atol=1e-6, rtol=0)


def test_batch_statistics_resume_bit_for_bit(all_normed, tmp_path):
    resume({all_normed / norm: {"norm": norm, **NORMED} for norm in NORMS}, tmp_path, [0])


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    fit(folder, refined=True, num_train=481, estimate_from="last")
    return folder


def test_refined_estimates_are_the_same_bits_on_every_rank(refined):
    zero, one = ranks(refined)
    for name in ("transition", "callback", "weights"):
        assert torch.equal(zero[name], one[name]), name
    assert len(zero["candidates"]) == len(one["candidates"]) == 3
    for mine, other in zip(zero["candidates"], one["candidates"], strict=True):
        assert torch.equal(mine["after"], other["after"])
        for part, same in zip(mine["parts"], other["parts"], strict=True):
            assert all(torch.equal(part[name], same[name]) for name in part)


def steps(parts: list[dict[str, Tensor]], transition: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Five times, calibrate by T and take a step of expectation maximisation."""
    starts: list[VectorScaling | None] = [None] * len(parts)
    for _ in range(5):
        counts = torch.zeros(1, CLASSES, CLASSES, dtype=torch.float64)
        found, scaled = [], []
        for part, start in zip(parts, starts, strict=True):
            found.append(calibrate(part["logits"], part["noisy_labels"], transition, part["index"], start))
            scaled.append(part | {"logits": found[-1](part["logits"])})
            counts += expected_counts(scaled[-1]["logits"], part["noisy_labels"], transition)
        starts, transition = found, maximize(counts)[0]
    return transition, scaled


def test_refined_estimates_are_what_one_process_finds_with_the_same_networks(refined):
    data = ToyData(num_train=481)
    inputs, labels = data.train.tensors
    places = torch.arange(481)
    for candidate in ranks(refined)[0]["candidates"]:
        parts = []
        for fold, (part, state) in enumerate(zip(candidate["parts"], candidate["weights"], strict=True)):
            own = part_of(places, 2) == fold
            assert torch.equal(part["index"], places[own])  # each sample once
            model = classifier()
            model.load_state_dict(state)
            with torch.no_grad():
                logits = model.eval()(inputs[own])
            torch.testing.assert_close(part["logits"], logits, atol=1e-5, rtol=0)
            parts.append({"logits": logits, "noisy_labels": labels[own], "index": places[own]})
        torch.testing.assert_close(candidate["after"], steps(parts, candidate["before"])[0].float(), atol=1e-5, rtol=0)


def test_refined_estimates_are_the_same_bits_whoever_predicts_what(refined):
    zero, one = (rank["candidates"][-1] for rank in ranks(refined))
    shuffled = []
    for part in zero["parts"]:
        order = torch.randperm(len(part["index"]), generator=torch.Generator().manual_seed(0))
        shuffled.append({name: column[order] for name, column in part.items()})
    transition, scaled = steps(shuffled, zero["before"])
    assert torch.equal(transition.float(), zero["after"])
    assert torch.equal(zero["standard_error"], one["standard_error"])
    logits, index = (torch.cat([part[name] for part in scaled]) for name in ("logits", "index"))
    assert torch.equal(zero["standard_error"], standard_error(logits, transition, index).float())
    assert (zero["standard_error"] > 0).any()


def test_two_processes_resume_bit_for_bit_in_parts_and_rounds(refined, tmp_path):
    resume({refined: {"refined": True, "num_train": 481, "estimate_from": "last"}}, tmp_path, [2, 7, 15])


def test_an_error_on_one_rank_ends_all(tmp_path):
    said = fit(tmp_path, check=False, rank_that_fails=1)
    assert "NaN or infinite predictions" in said
    assert "another process failed" in said


def test_fewer_samples_than_ranks_are_refused(tmp_path):
    said = fit(tmp_path, check=False, num_train=1)
    assert "T cannot be estimated from 1 examples on 2 processes" in said


@pytest.fixture(scope="module")
def other_lengths(tmp_path_factory) -> tuple[Path, str]:
    """Fits that end early and late, and what they say."""
    folder = tmp_path_factory.mktemp("lengths")
    specs = [{"folder": folder / name, name: True} for name in ("stops", "alike")]
    for spec in specs:
        spec["folder"].mkdir()
    return folder, fit_all(*specs)


def test_a_stage_that_has_lost_a_class_begins_again_on_every_rank(other_lengths):
    folder, said = other_lengths
    assert said.count("Stage two has lost class 1") == 1
    zero, one = ranks(folder / "alike")
    assert zero["epochs"] == one["epochs"] == 4 + 1
    assert torch.equal(zero["weights"], one["weights"])
    assert torch.equal(zero["looks"], one["looks"])
    assert zero["looks"].sum(dim=2).tolist() == [[97, 97]] * 2  # each sample once


def test_memorisation_stops_every_rank_after_the_same_epoch(other_lengths):
    folder, _ = other_lengths
    zero, one = ranks(folder / "stops")
    assert zero["epochs"] == one["epochs"] < 4
    assert torch.equal(zero["memorised"], one["memorised"])
    assert torch.equal(zero["weights"], one["weights"])


def test_spawned_processes_leave_the_transition_in_the_model(tmp_path):
    fit(tmp_path, strategy="ddp_spawn")
    (result,) = ranks(tmp_path)
    assert not torch.equal(result["transition"], torch.eye(3))


def test_two_nodes_by_torchrun(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for rank in range(2):
        address = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", "--master_addr=127.0.0.1"]
        prefix = [sys.executable, "-m", "torch.distributed.run", *address, f"--master_port={port}"]
        nodes.append(launch({"folder": tmp_path, "devices": 1, "num_nodes": 2}, prefix=prefix))
    for node in nodes:
        said, _ = node.communicate(timeout=300)
        assert node.returncode == 0, said[-3000:]
    zero, one = ranks(tmp_path)
    assert torch.equal(zero["transition"], one["transition"])
    assert torch.equal(zero["weights"], one["weights"])
