"""Kill two-stage fits with SIGKILL at random moments, resume them, and compare with the uninterrupted fit.

    python benchmarks/faults.py

Digits, an MLP with dropout, two epochs a stage, T-hat as by default, from networks that leave out a part of the data
and one round of refinement in between, a checkpoint each epoch; on one process, and on one of two ranks.
A fit survives if its last weights and T-hat are those of the uninterrupted one, bit for bit, and every file left by
the kill is whole. Writes ``benchmarks/results/faults.json`` and ``faults.md``.
"""

import argparse
import functools
import io
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from noisylightning import EstimateTransitionCallback, ForwardCorrection, NoisyLabelClassifier
from noisylightning.data import DigitsDataModule, SymmetricNoise
from noisylightning.models import MLP
from noisylightning.transition import load_transition

TRAINING = {"stage one": "noisy labels", "a part": "folds", "a round": "refinement", "stage two": "correction"}
"""Moments within training, and their phases."""
MOMENTS = (*TRAINING, "prediction", "before a restart", "writing a checkpoint")


def phase_of(trainer: Trainer) -> str:
    """Return the name of the phase that is on."""
    (engine,) = (callback for callback in trainer.callbacks if isinstance(callback, EstimateTransitionCallback))  # type: ignore[attr-defined]
    assert engine.phase is not None
    return engine.phase.name


def die() -> None:
    """End this process as a pre-empted machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Callback):
    """Kills the process at a random moment of the kind asked for."""

    def __init__(self, moment: str, draw: random.Random, seconds: dict[str, float]) -> None:
        self.moment = moment
        self.draw = draw
        self.seconds = seconds
        self.predictions = 0
        self.armed = False

    def _within(self, seconds: float) -> None:
        timer = threading.Timer(self.draw.uniform(0, 0.9 * seconds), die)
        timer.daemon = True
        timer.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Arm what does not wait for a stage."""
        if self.moment == "before a restart":
            trainer.strategy.setup_optimizers = lambda trainer: die()  # type: ignore[method-assign]
        elif self.moment == "writing a checkpoint":
            fatal, calls, save = self.draw.randrange(5), iter(range(10**6)), torch.save

            def half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
                save(content, file, *args, **kwargs)
                if next(calls) == fatal:
                    if isinstance(file, io.BytesIO):  # Lightning writes these bytes to disk next: let it get half way
                        self._within(0.002)
                    else:
                        die()

            torch.save = half  # type: ignore[assignment]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Arm what waits for a phase."""
        phase = phase_of(trainer)
        if TRAINING.get(self.moment) == phase and not self.armed:
            self.armed = True
            self._within(self.seconds[phase])

    def on_prediction(self) -> None:
        """Perhaps die."""
        self.predictions += 1
        if self.moment == "prediction" and self.predictions > 3 and self.draw.random() < 0.05:
            die()


class Clock(Callback):
    """Times the phases of the uninterrupted fit."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when a phase begins."""
        self.begun.setdefault(phase_of(trainer), time.perf_counter())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note for how long it has been on."""
        phase = phase_of(trainer)
        self.seconds[phase] = time.perf_counter() - self.begun[phase]


def fit(folder: Path, world: int, callback: Callback | None = None) -> dict[str, Any]:
    """Run or resume the fit in this process, as one of ``world`` ranks."""
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)

    def predict(module: Any, batch: Any) -> tuple[Tensor, Tensor]:  # by the same name in the fit that resumes
        if isinstance(callback, Killer):
            callback.on_prediction()
        return module(batch[0]), batch[1]

    estimate = EstimateTransitionCallback(stage_one_epochs=2, predict=predict, rounds=1, round_epochs=1)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=4,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        callbacks=[estimate, last, *([callback] if callback else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = NoisyLabelClassifier(
        MLP(in_features=64, num_classes=10, hidden=(64,), dropout=0.2),
        ForwardCorrection(num_classes=10),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    )
    checkpoint = folder / "last.ckpt"
    data = DigitsDataModule(noise=SymmetricNoise(0.4), batch_size=32)
    trainer.fit(model, data, ckpt_path=str(checkpoint) if checkpoint.exists() else None, weights_only=True)
    assert estimate.transition is not None
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"weights": weights, "transition": estimate.transition}


def in_processes(folder: Path, world: int, killer: Killer | None = None, victim: int = 0) -> bool:
    """Fork one process a rank, and tell whether all came through; rank 0 leaves ``result.pt``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
            if world > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            status = 1
            try:
                result = fit(folder, world, killer if rank == victim else None)
                if rank == 0:
                    torch.save(result, folder / "result.pt")
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    return all(os.waitpid(child, 0)[1] == 0 for child in children)


def files_are_whole(folder: Path) -> bool:
    """Open all that the kill left behind."""
    try:
        for path in folder.rglob("[!.]*.ckpt"):
            torch.load(path, weights_only=True)
        for kind in ("npy", "csv"):
            for path in folder.rglob(f"transition.{kind}"):  # beside it are its standard errors, which are no T
                assert load_transition(path).shape == (10, 10)
    except Exception as error:
        print(f"a file was left half-written: {error}")
        return False
    return True


def main() -> None:
    """Run the kills and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=42, help="kills in all, spread over moments and processes")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    work = Path(tempfile.mkdtemp())
    whole = {}
    for world in (1, 2):
        folder = work / f"whole{world}"
        folder.mkdir()
        assert in_processes(folder, world), (folder / "rank0.log").read_text()[-2000:]
        whole[world] = torch.load(folder / "result.pt", weights_only=True)
    clock = Clock()
    (work / "clock").mkdir()
    fit(work / "clock", 1, clock)

    draw, runs = random.Random(arguments.seed), []
    for number in range(arguments.first, arguments.first + arguments.kills):
        world = 1 + number // len(MOMENTS) % 2
        moment, victim = MOMENTS[number % len(MOMENTS)], draw.randrange(world)
        folder = work / f"kill{number}"
        folder.mkdir()
        killer = Killer(moment, random.Random(draw.random()), clock.seconds)
        killed = not in_processes(folder, world, killer, victim)
        run: dict[str, Any] = {"moment": moment, "processes": world, "victim": victim, "killed": killed}
        run["files_whole"] = files_are_whole(folder)
        checkpoint = folder / "last.ckpt"
        run["resumed_after_epoch"] = torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else None
        resumed = in_processes(folder, world)
        result = torch.load(folder / "result.pt", weights_only=True) if resumed else {}
        run["same_weights"] = resumed and torch.equal(result["weights"], whole[world]["weights"])
        run["same_transition"] = resumed and torch.equal(result["transition"], whole[world]["transition"])
        run["survived"] = run["files_whole"] and run["same_weights"] and run["same_transition"]
        if not run["survived"]:
            print((folder / "rank0.log").read_text()[-2000:])
        runs.append(run)
        print(run, flush=True)
    shutil.rmtree(work)

    write_json(arguments.output, {"environment": environment(), "seed": arguments.seed, "runs": runs})
    rows = []
    for moment in MOMENTS:
        for world in (1, 2):
            found = [run for run in runs if (run["moment"], run["processes"]) == (moment, world)]
            counts = (len(found), sum(run["killed"] for run in found), sum(run["survived"] for run in found))
            rows.append([moment, str(world), *map(str, counts)])
    header = ["killed during", "processes", "runs", "killed before the end", "same end after resuming"]
    write_table(arguments.output.with_suffix(".md"), header, rows)
    if not all(run["survived"] for run in runs):
        sys.exit("A run did not survive.")


if __name__ == "__main__":
    main()
