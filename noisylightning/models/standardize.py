"""Features brought to mean 0 and standard deviation 1, for a head that is to take them so."""

import torch
from torch import Tensor, nn

from noisylightning.errors import BadValue


class Standardize(nn.Module):
    """Subtract a mean from each feature and divide by its standard deviation, both fixed.

    They are buffers: part of checkpoints, but not trained. Before a linear layer, as in
    ``nn.Sequential(Standardize.of(features), MLP(D, C, hidden=[]))``, they let one learning rate and one weight decay
    serve the features of any encoder.

    Args:
        mean: Mean of each feature, shape ``(D,)``.
        deviation: Standard deviation of each, shape ``(D,)``; a feature that is constant, deviation 0, becomes 0.

    Shape:
        ``(N, D)`` to ``(N, D)``.

    Raises:
        ValueError: If they are not of one shape ``(D,)``, or hold no finite numbers, a deviation below 0; in
            ``forward``, if there is another number of features.

    Example:
        >>> layer = Standardize(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))
        >>> layer(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        if mean.ndim != 1 or mean.shape != deviation.shape:
            raise BadValue(
                f"Standardize needs a mean and a deviation of each feature, both of shape (D,), got"
                f" {tuple(mean.shape)} and {tuple(deviation.shape)}."
            )
        if not bool((mean.isfinite() & deviation.isfinite() & (deviation >= 0)).all()):
            raise BadValue("Standardize needs finite means, and finite deviations of at least 0: mend the features.")
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("deviation", deviation.detach().clone())

    @classmethod
    def of(cls, features: Tensor) -> "Standardize":
        """Make the layer that standardizes these features, those of the training data.

        Args:
            features: Shape ``(N, D)``.

        Raises:
            ValueError: If they are not of this shape, none, or hold no finite numbers.

        Example:
            >>> Standardize.of(torch.tensor([[0.0], [2.0]]))(torch.tensor([[0.0], [3.0]]))
            tensor([[-1.],
                    [ 2.]])
        """
        if features.ndim != 2 or not len(features):
            raise BadValue(f"Standardize needs features of shape (N, D), got {tuple(features.shape)}: flatten them.")
        wide = features.double()  # sums of half-precision features overflow
        deviation, mean = torch.std_mean(wide, dim=0, correction=0)
        dtype = torch.get_default_dtype()
        return cls(mean.to(dtype), deviation.to(dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Standardized features ``(N, D)``."""
        if features.shape[1:] != self.mean.shape:
            raise BadValue(
                f"Standardize was made for {len(self.mean)} features, got samples of shape {tuple(features.shape[1:])}:"
                " make it of the training features, Standardize.of(features)."
            )
        return (features - self.mean) / torch.where(self.deviation > 0, self.deviation, 1.0)
