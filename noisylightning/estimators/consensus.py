"""T from several estimators at once."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from noisylightning.errors import BadValue, UserError
from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.clusterability import ClusterabilityEstimator
from noisylightning.estimators.confident_joint import ConfidentJointEstimator
from noisylightning.estimators.simplex import SimplexEstimator
from noisylightning.functional.consensus import most_central
from noisylightning.functional.names import name_rows
from noisylightning.predictions.record import Predictions

STARTS: tuple[EstimatorFactory, ...] = (
    ClusterabilityEstimator,
    ConfidentJointEstimator,
    SimplexEstimator,
    AnchorEstimator,
)
"""What speaks where nothing else is said: they fail for different reasons."""


class ConsensusEstimator(TransitionEstimator):
    """T from several estimators, judged by networks.

    Within a fit each T-hat is put into the loss, networks that leave out a part of the data are trained with it, and
    what they say of that part refines it by expectation maximisation and tells how well it foretells the labels (see
    :class:`~noisylightning.phases.RefinementPhase`). The best one is taken if it foretells them better than no T at
    all; else T is the identity and the loss stays as it is.

    From predictions alone, where no network is trained, it is the T-hat that the others are nearest to, since with a
    network that does not change every T explains the labels equally well.

    Args:
        num_classes: Number of classes C.
        starts: Makes each estimator from the number of classes; by default clusterability, the confident joint,
            the simplex's corners and anchors. One that lacks what it needs, or fails, is left out, and a line says so.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Attributes:
        rounds: How often every T-hat is put into the loss and refined, where the fit says nothing else.

    Raises:
        ValueError: If there is no estimator; from ``compute``, if all of them fail.

    Example:
        >>> import torch
        >>> clean = torch.arange(300) % 3
        >>> T = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]])
        >>> noisy = torch.multinomial(T[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
        >>> estimator = ConsensusEstimator(3, starts=[AnchorEstimator, ConfidentJointEstimator])
        >>> estimator.update(Predictions.from_probs(T[clean], noisy, held_out=torch.ones(300, dtype=torch.bool)))
        >>> estimator.compute().argmax(dim=1)
        tensor([0, 1, 2])
    """

    rounds: ClassVar[int] = 2

    def __init__(self, num_classes: int, starts: Sequence[EstimatorFactory] = STARTS, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if not starts:
            raise BadValue("ConsensusEstimator asks several estimators, but starts is empty: name some.")
        self._starts = nn.ModuleList(make(num_classes) for make in starts)
        self._left_out: dict[int, UserError] = {}

    @property
    def starts(self) -> list[TransitionEstimator]:
        """The estimators."""
        return list(self._starts)  # type: ignore[arg-type]

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse: torchmetrics would compute the value of one batch by forgetting all others that the starts saw."""
        raise BadValue("ConsensusEstimator gives no T-hat of one batch: call update with each, then compute.")

    def wants_survey(self, num_examples: int) -> bool:
        """Whether one of the estimators would rather see so many samples twice."""
        return any(start.wants_survey(num_examples) for start in self.starts)

    def _survey(self, batch: Predictions) -> None:
        for place, start in self._surveyed():
            self._tell(place, batch, start.survey)

    def _conclude(self) -> None:
        for _, start in self._surveyed():
            start.end_survey()

    def _surveyed(self) -> list[tuple[int, TransitionEstimator]]:
        """Return those that can see the samples twice, however many there are."""
        return [(place, start) for place, start in enumerate(self.starts) if start.wants_survey(sys.maxsize)]

    def _accumulate(self, batch: Predictions) -> None:
        for place, start in enumerate(self.starts):
            self._tell(place, batch, start.update)

    def _tell(self, place: int, batch: Predictions, take: Callable[[Predictions], None]) -> None:
        if place in self._left_out:
            return
        try:
            check_needs(self.starts[place], batch.known | {"held_out"})  # a batch may by chance hold no such sample
            take(batch)
        except UserError as error:
            self._left_out[place] = error

    def compute(self) -> Tensor:
        """Return the T-hat that the others are nearest to, ``(C, C)``."""
        found: list[Tensor] = []
        failures: list[str] = []
        for place, start in enumerate(self.starts):
            try:
                if place in self._left_out:
                    raise self._left_out[place]
                transition = start.compute().float()
                found.append(transition[name_rows(transition)])
            except UserError as error:
                failures.append(f"{type(start).__name__}: {error}".rstrip("."))
                rank_zero_info(f"{type(start).__name__} is left out: {error}")
        if not found:
            raise BadValue(f"No estimator found a T ({'; '.join(failures)}): choose others (estimator).")
        return found[most_central(found)]

    def reset(self) -> None:
        """Forget all that was seen."""
        super().reset()
        self._left_out = {}
        for start in self.starts:
            start.reset()
