"""Where a run leaves its files."""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pytorch_lightning import Trainer

_claimed: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()


def run_folder(trainer: Trainer, resumes_from: str | Path | None = None) -> Path:
    """Return the folder that belongs to this run alone, the same whenever it is asked for.

    It is the first logger's folder for the run: its ``log_dir``, or, where the loggers' ``save_dir`` is shared between
    runs as Weights & Biases has it, ``save_dir/name/version``, in which Lightning keeps the run's checkpoints. Where no
    logger tells runs apart, it is the first free ``version_0``, ``version_1``, ... in ``lightning_logs`` of the
    trainer's ``default_root_dir``; a fit that resumes from a checkpoint in such a folder goes on in it.

    A collective: every process calls it.

    Args:
        trainer: The trainer of the run.
        resumes_from: The checkpoint that a fit resumes from, where it is asked for before the trainer knows of it.

    Returns:
        The folder; it may not exist yet.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> trainers = [Trainer(default_root_dir=root, logger=False, enable_checkpointing=False) for _ in "ab"]
        >>> [run_folder(trainer).name for trainer in (*trainers, trainers[0])]
        ['version_0', 'version_1', 'version_0']
    """
    found = ""
    if trainer.is_global_zero:  # elsewhere a logger may not know its version, and two might claim two folders
        found = str(_of_logger(trainer) or _claimed.get(trainer) or _claim(trainer, resumes_from or trainer.ckpt_path))
    return Path(trainer.strategy.broadcast(found))


def _of_logger(trainer: Trainer) -> Path | None:
    logger: Any = trainer.logger
    if getattr(logger, "log_dir", None) is not None:
        return Path(logger.log_dir)
    name, version = getattr(logger, "name", None), getattr(logger, "version", None)
    if version is None:
        return None
    version = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(name), version)


def _claim(trainer: Trainer, resumes_from: str | Path | None) -> Path:
    logs = Path(trainer.default_root_dir, "lightning_logs").absolute()
    checkpoint = Path(resumes_from).absolute() if resumes_from else None
    number = 0
    folder = next((parent for parent in checkpoint.parents if parent.parent == logs), None) if checkpoint else None
    while folder is None:
        try:
            (logs / f"version_{number}").mkdir(parents=True)
            folder = logs / f"version_{number}"
        except FileExistsError:
            number += 1
    _claimed[trainer] = folder
    return folder
