"""Every run has a folder of its own."""

from pathlib import Path

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from toy import ToyData, anchored, classifier, trainer

from noisylightning.run_folder import run_folder


class SharedFolder(Logger):
    """A logger of Weights & Biases's kind: all runs of a project have one ``save_dir``."""

    name = "project"

    def __init__(self, save_dir, version) -> None:
        super().__init__()
        self._save_dir, self._version = save_dir, version

    @property
    def save_dir(self):
        return self._save_dir

    @property
    def version(self):
        return self._version

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(folder, ckpt_path=None, max_epochs=2, **settings):
    """Two stages, whose T-hat and stage-one weights go to the run's folder."""
    callback = anchored(1)
    run = trainer(folder, [callback, *settings.pop("callbacks", [])], max_epochs, **settings)
    run.fit(classifier(), ToyData(), ckpt_path=ckpt_path, weights_only=True)
    return run, callback


def test_runs_that_share_a_loggers_folder_do_not_overwrite_each_other(tmp_path):
    for version in ("a1", "b2"):
        checkpoint = ModelCheckpoint()
        logger = SharedFolder(tmp_path, version)
        run, callback = fit(tmp_path, logger=logger, callbacks=[checkpoint], enable_checkpointing=True)
        folder = tmp_path / "project" / version
        assert run_folder(run) == folder
        assert Path(callback.stage_one_checkpoint) == folder / "stage_one.ckpt"
        assert Path(checkpoint.dirpath) == folder / "checkpoints"  # where Lightning keeps them is the same folder
    assert not list(tmp_path.glob("*.*"))
    assert len(list(tmp_path.glob("project/*/transition.npy"))) == 2


@pytest.mark.parametrize("version", [3, None])
def test_a_loggers_version_may_be_a_number_or_unknown(tmp_path, version):
    run = trainer(tmp_path, logger=SharedFolder(None, version))
    expected = tmp_path / "lightning_logs" / "version_0" if version is None else tmp_path / "project" / "version_3"
    assert run_folder(run) == expected


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_loggers_own_folder_of_the_run_is_taken(tmp_path, logger):
    run = trainer(tmp_path, logger=logger(tmp_path, "logs"))
    assert run_folder(run) == Path(run.log_dir) == tmp_path / "logs" / "version_0"


def test_without_a_logger_every_run_has_a_folder_and_keeps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = fit(None)[0], fit(None)[0]
    assert run_folder(first) == run_folder(first) == tmp_path / "lightning_logs" / "version_0"
    assert run_folder(second) == tmp_path / "lightning_logs" / "version_1"
    assert not (tmp_path / "transition.npy").exists()


def test_a_resumed_run_goes_on_in_the_folder_of_its_checkpoint(tmp_path):
    run, callback = fit(tmp_path)
    checkpoint = run_folder(run) / "checkpoints" / "last.ckpt"
    run.save_checkpoint(checkpoint)
    resumed, again = fit(tmp_path, ckpt_path=str(checkpoint), max_epochs=3)
    assert run_folder(resumed) == run_folder(run)
    assert again.stage_one_checkpoint == callback.stage_one_checkpoint
    elsewhere = tmp_path / "last.ckpt"
    checkpoint.rename(elsewhere)
    assert run_folder(fit(tmp_path, ckpt_path=str(elsewhere), max_epochs=3)[0]) != run_folder(run)


def test_a_miniature_run_claims_none(tmp_path):
    fit(tmp_path, fast_dev_run=4)
    assert not list(tmp_path.iterdir())
