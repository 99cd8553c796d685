"""Fine-tuning on trusted samples as a callback."""

from noisylightning.phases import RunPhases, TrustedPhase


class FineTuneOnTrusted(RunPhases):
    """End a fit with the plain base loss on the trusted set.

    From epoch ``from_epoch`` on the model trains, from the weights it has, on the data module's
    ``trusted_train_dataloader()`` instead of the noisy data, with T = identity, a new optimizer and a new schedule,
    which spans the epochs that are left. Noisy validation goes on with T as it was. With EstimateTransitionCallback
    before it this is the recipe that gave Patrini et al. (CVPR 2017) their best result on Clothing1M.

    The module keeps its correction in ``correction``, as :class:`~noisylightning.NoisyLabelClassifier` does.

    Args:
        from_epoch: First epoch of fine-tuning, below the trainer's ``max_epochs``.
        lr_factor: Factor on the learning rates that the module's ``configure_optimizers`` gives.

    Raises:
        ValueError: If an argument is out of bounds, or the data module has no trusted set.

    Example:
        >>> from noisylightning import EstimateTransitionCallback
        >>> from pytorch_lightning import Trainer
        >>> callbacks = [EstimateTransitionCallback(stage_one_epochs=5), FineTuneOnTrusted(from_epoch=10)]
        >>> trainer = Trainer(max_epochs=12, callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(self, from_epoch: int, lr_factor: float = 1.0) -> None:
        super().__init__([TrustedPhase(from_epoch, lr_factor)])
        self.from_epoch = from_epoch
        self.lr_factor = lr_factor
