"""What a command leaves in its run's folder: the configuration, and checkpoints that nobody gave a place."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback

from noisylightning.atomic import written_whole
from noisylightning.internals import callbacks
from noisylightning.run_folder import run_folder


class SaveConfig(SaveConfigCallback):
    """Saves the configuration to the run's own folder, where Lightning takes one that runs may share.

    Without a logger the checkpoints go there, too: Lightning would keep those of all runs in one folder.

    Made with ``save_to_log_dir=False``, which leaves the saving to :meth:`save_config`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, before the ModelCheckpoints look for theirs."""
        # The trainer does not know yet what it resumes from.
        self._folder = run_folder(trainer, self.config.get("ckpt_path") if stage == "fit" else None)
        if not trainer.loggers:
            for callback in callbacks(trainer):
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(self._folder / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; on one process."""
        with written_whole(self._folder / self.config_filename) as path:
            # By its place: False, to write what is None too, goes by two names in jsonargparse's releases.
            self.parser.save(self.config, str(path), "parser_mode", False, overwrite=True, multifile=self.multifile)
