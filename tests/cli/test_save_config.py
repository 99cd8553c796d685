"""All that a run of the command leaves is in one folder of its own."""

import re
from pathlib import Path

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from noisylightning.cli import main

ROOT = Path(__file__).parents[2]
LEFT = {"config.yaml", "checkpoints", "transition.npy", "transition.csv", "transition.png", "stage_one.ckpt",
        "summary.json", "verdict.json"}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Shared(DummyLogger):
    """A logger of Weights & Biases's kind: the runs of a project have one ``save_dir``, and no ``log_dir``."""

    def __init__(self, save_dir: str, version: str) -> None:
        super().__init__()
        self._given = save_dir, version

    name = property(lambda self: "project")
    save_dir = property(lambda self: self._given[0])
    version = property(lambda self: self._given[1])


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Fit in this process, and return the folder that the last line names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = (ROOT / "configs/digits/forward_estimated.yaml").read_text()
    (tmp_path / "short.yaml").write_text(config.replace("stage_one_epochs: 20", "stage_one_epochs: 1"))
    limits = [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]

    def run(*arguments: object, max_epochs: int = 2) -> Path:
        epochs = f"--trainer.max_epochs={max_epochs}"
        main(["fit", "--config=short.yaml", "--trainer.accelerator=cpu", epochs, *limits, *map(str, arguments)])
        left = r"^Left in (.*): checkpoints, T-hat, summary.json, verdict.json\.$"
        said = re.search(left, capsys.readouterr().out, re.MULTILINE)
        assert said is not None
        return Path(said[1]).absolute()

    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_without_a_logger_every_run_leaves_all_in_a_folder_of_its_own(fit, tmp_path):
    logs = tmp_path / "lightning_logs"
    folders = [fit("--trainer.logger=false") for _ in range(2)]
    assert folders == [logs / "version_0", logs / "version_1"]
    last = folders[0] / "checkpoints" / "last.ckpt"
    before = [path.stat().st_mtime_ns for path in sorted(folders[1].rglob("*"))]
    assert fit("--trainer.logger=false", "--ckpt_path", last, max_epochs=3) == folders[0]
    main(["test", "--config", str(folders[0] / "config.yaml"), "--ckpt_path", str(last), "--trainer.logger=false"])
    assert (logs / "version_2" / "config.yaml").exists()  # it is a run of its own
    assert "max_epochs: 3" in (folders[0] / "config.yaml").read_text()
    for folder in folders:
        assert names(folder) - {"transition_standard_error.npy"} == LEFT  # which an identity has not
        assert (folder / "checkpoints" / "last.ckpt").exists()
    assert before == [path.stat().st_mtime_ns for path in sorted(folders[1].rglob("*"))]
    assert names(tmp_path) == {"lightning_logs", "short.yaml"}


def test_runs_that_share_a_loggers_folder_leave_all_in_folders_of_their_own(fit, tmp_path):
    logger = [f"--trainer.logger={__name__}.Shared", f"--trainer.logger.save_dir={tmp_path}"]
    for version in ("a1", "b2"):
        folder = fit(*logger, f"--trainer.logger.version={version}")
        assert folder == tmp_path / "project" / version
        assert names(folder) - {"transition_standard_error.npy"} == LEFT
    assert names(tmp_path) == {"project", "short.yaml"}
