"""The two-stage training of Patrini et al. (CVPR 2017) as a callback."""

from collections.abc import Callable
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from noisylightning.callbacks._attach import attach, refuse_misfits, require_use_of_transition
from noisylightning.corrections import Correction
from noisylightning.errors import BadType, BadValue
from noisylightning.estimators import ConsensusEstimator, EstimatorFactory
from noisylightning.estimators.within_fit import Predict
from noisylightning.functional.verdict import GainIn
from noisylightning.phases import (
    CorrectionPhase,
    EstimationPhase,
    FoldsPhase,
    NoisyLabelsPhase,
    Plan,
    RefinementPhase,
    RunPhases,
)
from noisylightning.phases.estimation import predict_first_two


class EstimateTransitionCallback(RunPhases):
    """Train on the noisy labels, estimate T from the network, and train afresh with the corrected loss, in one fit.

    Stage one trains with T = identity, where every correction is its plain base loss. Then T-hat is fitted to the
    network's predictions on the un-augmented training data; the weights, the optimizer, its schedule, the precision's
    state, early stopping and the checkpoints' best scores begin again; and stage two takes the trainer's remaining
    epochs with T-hat in the correction (Patrini et al., CVPR 2017), and begins again where it loses one of two classes
    that are labelled alike (:class:`~noisylightning.phases.CorrectionPhase`).

    Stage one ends at the first of: ``stage_one_epochs``; ``stage_one_steps`` optimizer steps; ``patience`` validations
    without a better ``monitor``; a request to stop from the trainer's own EarlyStopping. With neither epochs nor steps
    given, each stage is as long as the fit would have been, and the fit is twice as long.

    What T is estimated on: the data module's (or the module's) ``estimation_dataloader()``; the training data set where
    there is none, with a warning, since its augmentation stays on. In the run's folder the callback leaves
    ``transition.npy``, ``.csv`` and ``.png``, and ``stage_one.ckpt``, the weights that T-hat comes from; from an
    estimator with replicates, such as ``partial(AnchorEstimator, replicates=100)``, also
    ``transition_standard_error.npy``. A warning names the classes that noisy labels cannot tell apart.

    It works with any LightningModule. A :class:`~noisylightning.NoisyLabelClassifier` brings its correction. For
    another project give ``correction`` and ``loss_attribute``, the name under which the module keeps its criterion, a
    callable ``(logits, labels)``, in whose place the correction stands with settings of its own (class weights, for
    example); or let the module define ``on_transition_estimated(self, transition)`` and do what it likes with T-hat
    there (it is called again when a fit resumes in stage two).

    Args:
        stage_one_epochs: Epochs of stage one, below the trainer's ``max_epochs``, stage two's being the rest.
        stage_one_steps: Optimizer steps of stage one, which may end within an epoch.
        patience: Validations without improvement after which stage one ends early.
        estimator: Makes the estimator from the number of classes.
        estimate_from: Weights that T is estimated with: the ``"best"`` of stage one by ``monitor``, or the ``"last"``.
        monitor: Metric on noisy validation data that says which weights are best.
        mode: Whether the best is the ``"max"`` or the ``"min"`` of ``monitor``.
        reinit: Stage two's first weights: the ``"initial"`` ones of stage one; a ``"fresh"`` draw, by the module's
            ``reset_weights()``; or ``"keep"`` to go on from those that T was estimated with.
        correction: The correction for a module that has none of its own.
        loss_attribute: Name under which the module keeps its criterion.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``; by default ``module(batch[0]), batch[1]``.
        feature_layer: Name in ``module.named_modules()`` of the layer whose input are the features, for an estimator
            that needs them; by default the last ``nn.Linear``.
        folds: Number of parts of the data, each predicted by a network that was trained without it, for estimators that
            need predictions of samples the network does not know; by default 2 if there are rounds, else none.
        rounds: How often T-hat is put into the loss of such networks and refined by them; by default as often as the
            estimator asks for.
        round_epochs: Epochs of a round; by default a fifth of stage one's.
        train_on_trusted: Whether stage two trains on the data module's trusted samples too, with the base loss, while
            that of the others is corrected (gold loss correction: Hendrycks et al., NeurIPS 2018). It then begins with
            an epoch.

    Attributes:
        stage: 1 or 2.
        transition: T-hat once it is estimated, on the CPU; None before.
        standard_error: That of each entry of T-hat; None before, and where the estimator was given no replicates.
        stage_one_epoch: Epoch of the weights that T-hat comes from.
        stage_one_checkpoint: File of these weights; empty before.

    Raises:
        ValueError: If an argument is out of bounds, here or, against the trainer, when the fit starts.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callback = EstimateTransitionCallback(stage_one_epochs=5)
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        stage_one_epochs: int | None = None,
        stage_one_steps: int | None = None,
        patience: int | None = None,
        estimator: EstimatorFactory = ConsensusEstimator,
        estimate_from: Literal["best", "last"] = "best",
        monitor: str = "val_loss",
        mode: Literal["max", "min"] = "min",
        reinit: Literal["initial", "fresh", "keep"] = "initial",
        correction: Correction | None = None,
        loss_attribute: str = "correction",
        predict: Predict = predict_first_two,
        feature_layer: str | None = None,
        folds: int | None = None,
        rounds: int | None = None,
        round_epochs: int | None = None,
        train_on_trusted: bool = False,
    ) -> None:
        if not (correction is None or isinstance(correction, Correction)):
            raise BadType(
                f"correction must be a Correction, for example ForwardCorrection(num_classes=10), got {correction!r}."
            )
        plan = Plan(folds, rounds, round_epochs)
        self._estimation = EstimationPhase(estimator, predict, feature_layer, plan)
        noisy_labels = NoisyLabelsPhase(stage_one_epochs, stage_one_steps, patience, estimate_from, monitor, mode)
        parts = FoldsPhase(plan, predict), self._estimation, RefinementPhase(plan, predict)
        super().__init__([noisy_labels, *parts, CorrectionPhase(reinit, train_on_trusted, predict)])
        self.stage_one_epochs = stage_one_epochs
        self.stage_one_steps = stage_one_steps
        self.patience = patience
        self.estimator = estimator
        self.estimate_from = estimate_from
        self.monitor = monitor
        self.mode = mode
        self.reinit = reinit
        self.correction = correction
        self.loss_attribute = loss_attribute
        self.predict = predict
        self.feature_layer = feature_layer
        self.folds = folds
        self.rounds = rounds
        self.round_epochs = round_epochs
        self.train_on_trusted = train_on_trusted
        self._criterion_called: Callable[[], bool] | None = None  # of a module that got its correction from here

    @property
    def transition(self) -> Tensor | None:
        """T-hat once it is estimated, on the CPU; None before."""
        return self._memory.transition

    @property
    def standard_error(self) -> Tensor | None:
        """That of each entry of T-hat, on the CPU; None before, and where the estimator was given no replicates."""
        return self._memory.standard_error

    @property
    def gain(self) -> tuple[float, float] | None:
        """By how much held-out labels are foretold better with T-hat than without it, or than by the labels' shares.

        The mean difference of what :attr:`gain_in` names, and its standard error, paired over samples, as the rounds of
        refinement have found them; None before, and where there are none.
        """
        return self._memory.gain

    @property
    def gain_in(self) -> GainIn:
        """What :attr:`gain` is a gain in: ``"accuracy"`` where noise seems to depend on the sample."""
        return self._memory.gain_in

    @property
    def named(self) -> bool:
        """Whether trusted labels have told apart the classes that noisy ones cannot, in refinement."""
        return self._memory.named

    @property
    def stage_one_epoch(self) -> int:
        """Epoch of the weights that T-hat comes from; -1 before."""
        return self._estimation.epoch

    @property
    def stage_one_checkpoint(self) -> str:
        """File of these weights; empty before."""
        return self._estimation.checkpoint

    # The correction

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the correction in its place, and refuse what cannot work before any work is done."""
        if stage == "fit":
            refuse_misfits(pl_module)
            own = getattr(pl_module, self.loss_attribute, None)
            self._memory.correction = self.correction or (own if isinstance(own, Correction) else None)
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.correction is None:
            require_use_of_transition(pl_module, self.loss_attribute)
        else:
            self.correction.initialize(self._fit(trainer, pl_module).num_classes)
            if any(parameter.requires_grad for parameter in self.correction.parameters()):
                raise BadValue(
                    f"{type(self.correction.T).__name__} learns, but {type(pl_module).__name__}'s optimizer does not"
                    " have it: use NoisyLabelClassifier, or give the correction a T that does not learn."
                )
            self._criterion_called = attach(self.correction, pl_module, self.loss_attribute)

    # A whole training step cannot be rehearsed without a trace: it may step optimizers, count and log by itself.

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop before the first step where the loss came without the criterion that was to be corrected."""
        if pl_module.automatic_optimization:
            self._require_called_criterion(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the first batch where a module optimizes by itself, which may have other losses before."""
        if not pl_module.automatic_optimization:
            self._require_called_criterion(pl_module)

    def _require_called_criterion(self, module: LightningModule) -> None:
        if self._criterion_called is not None and not self._criterion_called():
            raise BadValue(
                f"{type(module).__name__}.training_step does not call its {self.loss_attribute!r}, so its loss would"
                " not be corrected: loss_attribute must name the criterion that it calls as (logits, labels)."
            )

    # Resuming

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that a resumed fit must agree on, as plain data."""
        correction = None if self.correction is None else type(self.correction).__name__
        return super().config | {"correction": correction, "loss_attribute": self.loss_attribute}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a fit where a checkpoint left it, with the T of a correction that the module does not own."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == "fit" and self.correction is not None:
            self.correction.load_state_dict(checkpoint["callbacks"][self.state_key]["correction"])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed fit needs, as plain data that loads with ``weights_only``."""
        correction = None if self.correction is None else self.correction.state_dict()
        return super().state_dict() | {"correction": correction}
