"""The verdict on a fit: whether its correction deserves trust, by its noisy validation data."""

from collections.abc import Sequence

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.errors import UserError
from noisylightning.evaluation import validation_predictions
from noisylightning.fit_weights import borrowed, stage_one, weights_of_fit
from noisylightning.functional.class_conditional import class_conditional_test
from noisylightning.functional.verdict import Verdict, judge
from noisylightning.internals import data_attribute
from noisylightning.module import NoisyLabelClassifier
from noisylightning.predictions.record import Predictions
from noisylightning.results import Result

_MOST_CLASSES = 200  # whose test takes seconds


def judge_fit(
    trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule, results: Sequence[Result]
) -> Verdict | None:
    """Judge the correction that a fit ended with; see :func:`~noisylightning.functional.verdict.judge`.

    The fit's choice of weights predicts the noisy validation data, and the test that noise depends on the class alone
    is made on that. Where it cannot be made (no validation data, no last ``nn.Linear`` to take features from, too few
    samples of each class, more than 200 classes) the verdict says so. Model and trainer are left as they were. A
    collective: every process calls it, and gets the same verdict.

    Args:
        trainer: The trainer, after its fit.
        model: The model, after its fit.
        data: The data module of the fit.
        results: What :func:`~noisylightning.results.evaluate_fit` returned.

    Returns:
        The verdict; None where no T had a part in the loss, or where T is another for each sample.

    Example:
        >>> from noisylightning.corrections import ForwardCorrection
        >>> from noisylightning.data import DigitsDataModule, SymmetricNoise
        >>> from noisylightning.models import MLP
        >>> from noisylightning.results import evaluate_fit
        >>> from noisylightning.transition import symmetric
        >>> model, data = NoisyLabelClassifier(MLP(64, 10), ForwardCorrection(symmetric(10, 0.2))), DigitsDataModule()
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
        >>> trainer.fit(model, data)
        >>> judge_fit(trainer, model, data, evaluate_fit(trainer, model, data)).decision
        'correct'
    """
    correction = model.correction
    if results[-1].correction is None or correction.needs_features or not correction.uses_transition:
        return None
    callback = stage_one(trainer)
    with borrowed(trainer, model), isolate_rng():
        *_, choice = weights_of_fit(trainer, model)
        model.load_state_dict(choice.state, strict=model.strict_loading)
        transition, error = _transition(model, callback)
        predictions = _predictions(trainer, model, data, transition)
    verdict = None
    if trainer.is_global_zero:
        first = results[0]
        verdict = judge(
            transition,
            shares=None if predictions is None else predictions.noisy_labels.bincount(minlength=len(transition)),
            predicted=None if predictions is None else _predicted(predictions),
            accuracy=first.val_accuracy if first.phase == "noisy labels" else None,
            gain=None if callback is None else callback.gain,
            gain_in="log-likelihood" if callback is None else callback.gain_in,
            p_value=None if predictions is None else _p_value(predictions, transition, error),
            named=callback is not None and callback.named,
            class_names=data_attribute(trainer, "class_names"),
        )
    shared: Verdict | None = trainer.strategy.broadcast(verdict)
    return shared


def _transition(
    model: NoisyLabelClassifier, callback: EstimateTransitionCallback | None
) -> tuple[Tensor, Tensor | None]:
    """Return the T of the correction, on the CPU, and its standard error where it is T-hat and has one."""
    known = model.correction.transition
    assert known is not None
    transition = known.detach().cpu()
    estimate = None if callback is None else callback.transition
    if (
        estimate is None
        or callback is None
        or not torch.equal(estimate.to_dense().to(transition.dtype), transition.to_dense())
    ):
        return transition, None
    return estimate, callback.standard_error


def _predictions(
    trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule, transition: Tensor
) -> Predictions | None:
    if len(transition) > _MOST_CLASSES:
        return None
    data.setup("validate")
    try:
        return validation_predictions(trainer, model, data)
    except UserError:  # the test is not worth the fit
        return None


def _predicted(predictions: Predictions) -> Tensor:
    """Count the samples that are taken for each class."""
    return predictions.logits.argmax(dim=1).bincount(minlength=predictions.logits.shape[1])


def _p_value(predictions: Predictions, transition: Tensor, standard_error: Tensor | None) -> float | None:
    assert predictions.features is not None
    try:
        return class_conditional_test(
            predictions.logits,
            predictions.noisy_labels,
            predictions.features,
            transition.to_dense(),
            None if standard_error is None else standard_error.to_dense(),
        ).p_value
    except UserError:  # too few samples
        return None
