"""The index of each sample, for losses that know samples apart."""

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.tensors import values_readable


def check_index(index: Tensor | None, num: int, num_samples: int, loss: str, mend: str, look: bool = True) -> Tensor:
    """Check the positions of a batch's samples in the training set.

    Args:
        index: The positions.
        num: How many samples there are in the batch.
        num_samples: How many training samples the loss knows.
        loss: What to call the loss.
        mend: What to do about a position beyond them.
        look: Whether to look at the values even on an accelerator, where that waits.

    Returns:
        The index.

    Raises:
        ValueError: If it is missing, of another shape or holds no position.
        TypeError: If it is not int64.
    """
    if index is None:
        raise BadValue(
            f"{loss} needs the index of each sample in training mode: call loss(logits, target, index), with a data set"
            " that yields (input, label, index)."
        )
    if index.dtype != torch.int64:
        raise BadType(f"index must be int64, got {index.dtype}.")
    if index.shape != (num,):
        raise BadValue(f"index has shape {tuple(index.shape)} but there are {num} samples.")
    if values_readable(index) and (index.is_cpu or look):
        wrong = index[(index < 0) | (index >= num_samples)]
        if len(wrong):
            raise BadValue(
                f"index holds {int(wrong[0])} but {loss} knows {num_samples} training samples, 0 to {num_samples - 1}:"
                f" {mend}."
            )
    return index
