"""What speaks against an estimate of T."""

import torch
from torch import Tensor

_FAR_BELOW, _FAR_ABOVE = 0.15, 0.3  # T-hat under the accuracy cannot be; over it, a hard task explains some of it
_NEARLY_ZERO = 0.05
_ALIKE = 0.1


def doubt(transition: Tensor, shares: Tensor | None = None, accuracy: float | None = None) -> str | None:
    """Return in a clause what speaks against T-hat; None where nothing does.

    A network that predicts the noisy labels from the classes alone is right about as often as labels are kept, the
    diagonal of T weighted by the classes' shares. An estimate far from the accuracy that was measured contradicts it.

    Args:
        transition: T-hat, ``(C, C)``, dense or sparse.
        shares: How many samples carry each label, ``(C,)``, up to a factor; all alike where it is left out.
        accuracy: Accuracy on noisy validation data of the weights that T-hat comes from, in [0, 1], where it is known.

    Example:
        >>> doubt(torch.tensor([[0.8, 0.2], [0.3, 0.7]]), accuracy=0.74) is None
        True
        >>> doubt(torch.eye(2), accuracy=0.6)
        'T-hat is nearly the identity, though noisy validation accuracy is only 0.600'
    """
    diagonal, unlike = _summary(transition.double())
    weights = torch.ones_like(diagonal) if shares is None else shares.to(diagonal)
    kept = float((diagonal * weights).sum() / weights.sum())
    if unlike < _ALIKE:
        return f"its rows are alike up to {unlike:.3f}, as if the labels had nothing to do with the classes"
    lowest = int(diagonal.argmin())
    if diagonal[lowest] < _NEARLY_ZERO:
        return f"by it class {lowest} keeps its label with probability {float(diagonal[lowest]):.3f} only"
    if accuracy is None:
        return None
    if kept - accuracy > _FAR_ABOVE:
        what = "T-hat is nearly the identity" if kept > 0.95 else f"by T-hat {kept:.3f} of the labels are right"
        return f"{what}, though noisy validation accuracy is only {accuracy:.3f}"
    if accuracy - kept > _FAR_BELOW:
        return f"by T-hat {kept:.3f} of the labels are right, though noisy validation accuracy is {accuracy:.3f}"
    return None


def _summary(wide: Tensor) -> tuple[Tensor, float]:
    """Return the diagonal, and the largest distance of a row from the mean row, at least their total variations."""
    if wide.layout == torch.strided:
        return wide.diagonal(), float((wide - wide.mean(dim=0)).abs().sum(dim=1).max())
    entries = wide.to_sparse(layout=torch.sparse_coo).coalesce()
    (rows, columns), values = entries.indices(), entries.values()
    mean = values.new_zeros(len(wide)).index_add(0, columns, values) / len(wide)
    # Where a row has no entry it is as far off as the mean is large.
    beyond = (values - mean[columns]).abs() - mean[columns]
    distance = mean.sum() + values.new_zeros(len(wide)).index_add(0, rows, beyond)
    own = rows == columns
    return values.new_zeros(len(wide)).index_put((rows[own],), values[own]), float(distance.max())
