"""Estimating T within a fit, from a network that was trained on the noisy labels."""

from typing import Any

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.errors import BadType
from noisylightning.estimators import AnchorEstimator, EstimatorFactory, TransitionEstimator, within_fit
from noisylightning.phases.base import Fit, Phase
from noisylightning.phases.evidence import doubt
from noisylightning.phases.identity import identify
from noisylightning.run_folder import run_folder
from noisylightning.transition import relative_l1_error
from noisylightning.transition_files import publish_transition


def predict_first_two(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Predict on the batches of most projects: ``(inputs, labels, ...)``."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise BadType(
            f"T is estimated from batches (inputs, labels, ...), but a batch is a {type(batch).__name__}: pass predict,"
            " which maps the module and a batch to (logits, noisy labels)."
        )
    return module(batch[0]), batch[1]


class EstimationPhase(Phase):
    """Estimate T from the weights that the phase before has chosen, and leave T-hat for the next.

    T is estimated on ``estimation_dataloader()`` of the data module or the module; on the training data set where there
    is none. In the run's folder it leaves ``transition.npy``, ``.csv`` and ``.png``, and ``stage_one.ckpt``,
    the weights that T-hat comes from, which the module has from here on.

    Args:
        estimator: Makes the estimator from the number of classes.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``; by default ``module(batch[0]), batch[1]``.
        feature_layer: Name in ``module.named_modules()`` of the layer whose input are the features, for an estimator
            that needs them; by default the last ``nn.Linear``.

    Attributes:
        epoch: Epoch of the weights that T-hat comes from; -1 before.
        checkpoint: File of these weights; empty before.

    Raises:
        TypeError: If ``estimator`` is an estimator itself.
    """

    name = "estimation"
    trains = False

    def __init__(
        self,
        estimator: EstimatorFactory = AnchorEstimator,
        predict: within_fit.Predict = predict_first_two,
        feature_layer: str | None = None,
    ) -> None:
        if isinstance(estimator, TransitionEstimator):
            raise BadType(
                f"estimator must make an estimator from the number of classes, but an {type(estimator).__name__} was"
                " passed: pass the class, or a functools.partial of it."
            )
        self.estimator = estimator
        self.predict = predict
        self.feature_layer = feature_layer
        self.epoch = -1
        self.checkpoint = ""
        # Now: a callable may count what it has seen.
        given = {"estimator": identify(estimator), "predict": identify(predict)}
        self._config = given | {"feature_layer": feature_layer}

    def rehearse(self, fit: Fit) -> None:
        """Put the first batch through the estimation pass."""
        estimator = self.estimator(fit.num_classes)
        within_fit.rehearse(fit.trainer, fit.module, estimator, self.predict, self.feature_layer)

    def begin(self, fit: Fit) -> None:
        """Estimate T."""
        chosen = fit.memory.chosen
        assert chosen is not None
        self.epoch = chosen.epoch
        fit.module.load_state_dict(chosen.weights)
        internals.share_buffers(fit.trainer, fit.module)
        loader = within_fit.estimation_loader(fit.trainer, fit.module)
        estimator = self.estimator(fit.num_classes)
        transition = within_fit.estimate(fit.trainer, fit.module, loader, estimator, self.predict, self.feature_layer)
        details = {name: value.cpu() for name, value in estimator.details().items()}
        fit.memory.transition, fit.memory.details = transition, fit.trainer.strategy.broadcast(details)
        examples = f"{len(loader.dataset):,} examples"  # type: ignore[arg-type]
        self._publish(fit, transition, f"{type(estimator).__name__}, {chosen.origin}, {examples}")
        found = doubt(transition, estimator.class_counts.cpu(), chosen.accuracy)
        if found is not None:
            rank_zero_warn(
                f"T-hat contradicts the evidence: {found}; estimate it from weights that fit the noisy labels neither"
                " too little nor by heart (monitor, stage_one_epochs), or with another estimator."
            )

    def _publish(self, fit: Fit, transition: Tensor, source: str) -> None:
        trainer = fit.trainer
        true = internals.data_attribute(trainer, "transition")
        error = "" if true is None else f"; relative L1 error {relative_l1_error(transition, true.cpu()):.4f}"
        saved = ""
        if not internals.dev_batches(trainer):
            folder = run_folder(trainer)
            self.checkpoint = f"{folder}/stage_one.ckpt"
            trainer.save_checkpoint(self.checkpoint, weights_only=True)
            names = internals.data_attribute(trainer, "class_names")
            if trainer.is_global_zero:
                publish_transition(transition, true, folder, trainer.loggers, trainer.global_step, names)
            saved = f"; saved in {folder}"
        rank_zero_info(f"T estimated ({source}){error}{saved}.")

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments, by their names."""
        return self._config

    def state_dict(self) -> dict[str, Any]:
        """Return what the weights were that T-hat comes from."""
        return {"epoch": self.epoch, "checkpoint": self.checkpoint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        self.epoch, self.checkpoint = state["epoch"], state["checkpoint"]
