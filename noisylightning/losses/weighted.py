"""A base loss that weighs each training sample."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue, NoSuchFile
from noisylightning.losses.base import Loss
from noisylightning.losses.cross_entropy import CrossEntropy
from noisylightning.losses.sample_index import check_index


class SampleWeighted(Loss):
    """A loss times the weight of its sample: ``w_i l(p)``.

    In training mode only; samples of validation and test sets count alike, and need no index. The mean is over samples,
    not over weights, so that weights below one shorten the steps.

    Args:
        weights: One finite, non-negative weight for each of the N training samples, shape ``(N,)``, or a ``.npy`` file
            of them, such as the ``weights.npy`` of ``noisylightning audit``.
        loss: The loss to weigh, without class weights of its own. Default: cross-entropy.
        **kwargs: ``weight`` (of classes), ``ignore_index`` and ``reduction``, as in
            :class:`~noisylightning.losses.Loss`; those of ``loss`` are not used.

    Raises:
        TypeError: If the weights are neither numbers nor a path.
        ValueError: If they are no vector, negative or not finite, all zero, or in no ``.npy`` file; or if ``loss`` has
            class weights or needs an index itself.
        FileNotFoundError: If there is no such file.

    Example:
        >>> loss = SampleWeighted(torch.tensor([1.0, 0.0, 0.5]))
        >>> logits, labels = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> loss(logits, labels, torch.tensor([0, 1]))  # log(4) / 2
        tensor(0.6931)
    """

    needs_index: ClassVar[bool] = True

    sample_weights: Tensor

    def __init__(self, weights: Tensor | str | Path, loss: Loss | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = CrossEntropy() if loss is None else loss
        if self.loss.weight is not None:
            raise BadValue("the loss to weigh has class weights, which would be lost: give them to SampleWeighted.")
        if self.loss.needs_index:
            raise BadValue(f"{type(self.loss).__name__} keeps a state per sample, which no weight fits: use it alone.")
        self.register_buffer("sample_weights", _read(weights))
        self.proper = self.loss.proper
        self._index_checked = False

    def vector(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """The loss for every label.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            index: Positions of the samples in the training set, shape ``(N,)``; needed in training mode.

        Returns:
            Shape ``(N, C, d1, ...)``.

        Raises:
            ValueError: If the index is missing, of another shape or outside the training set.
            TypeError: If the index is not int64.
        """
        return self._weigh(self.loss.vector(logits), index)

    def values(self, logits: Tensor, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """The loss of each sample, weighed by sample but not by class, shape ``(N, d1, ...)``."""
        return self._weigh(self.loss.values(logits, labels), index)

    def _weigh(self, losses: Tensor, index: Tensor | None) -> Tensor:
        if not self.training:
            return losses
        mend = "give a weight to each training sample"
        samples, look = len(self.sample_weights), not self._index_checked
        index = check_index(index, len(losses), samples, type(self).__name__, mend, look)
        self._index_checked = True
        weights = self.sample_weights[index.to(self.sample_weights.device)].to(losses.dtype)
        return losses * weights.reshape(-1, *[1] * (losses.ndim - 1))


def _read(weights: Tensor | str | Path) -> Tensor:
    where = "the sample weights"
    if isinstance(weights, str | Path):
        path = Path(weights)
        where = f"the sample weights in {path}"
        if path.suffix != ".npy":
            raise BadValue(f"sample weights are read from a .npy file, got {path}: save them by numpy.save.")
        if not path.is_file():
            raise NoSuchFile(f"no sample weights at {str(path)!r}: check the path, or write them there first.")
        try:
            weights = torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise BadValue(f"{path} cannot be read as an array: {error}") from error
    if not isinstance(weights, Tensor):
        raise BadType(f"{where} must be a tensor or the path of a .npy file, got {type(weights).__name__}.")
    if weights.is_complex() or weights.dtype == torch.bool:
        raise BadType(f"{where} must be real numbers, got {weights.dtype}.")
    if weights.ndim != 1 or not len(weights):
        raise BadValue(f"{where} must be one number for each training sample, got shape {tuple(weights.shape)}.")
    wrong = (~(weights.isfinite() & (weights >= 0))).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise BadValue(f"{where} must be finite and not negative, but that of sample {place} is {weights[place]:g}.")
    if not bool(weights.any()):
        raise BadValue(f"{where} are all zero: no sample would train.")
    return weights.to(torch.get_default_dtype(), copy=True)
