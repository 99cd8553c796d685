"""The multilayer perceptron: for flattened images and for rows of a table."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from noisylightning.errors import BadValue


class MLP(nn.Sequential):
    """Multilayer perceptron on the flattened input: linear, ReLU and dropout for every hidden layer.

    With the default arguments this is the MNIST network of Patrini et al. (2017), *Making Deep Neural Networks
    Robust to Label Noise*: 784-128-128-10 with dropout 0.2. It serves tabular features just as well.

    Args:
        in_features: Number of features of one sample once flattened (784 for a 28x28 image).
        num_classes: Number of logits.
        hidden: Width of each hidden layer; empty for a linear classifier.
        dropout: Probability, in [0, 1), of zeroing an activation after each hidden layer while training.

    Shape:
        ``(N, *)`` with ``in_features`` values a sample to logits ``(N, num_classes)``.

    Raises:
        ValueError: If a width is not positive or ``dropout`` is outside [0, 1); in ``forward``, if a sample has another
            number of features.

    Example:
        >>> import torch
        >>> MLP(784, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, in_features: int, num_classes: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.2
    ) -> None:
        widths = [in_features, *hidden]
        if min(*widths, num_classes) < 1:
            raise BadValue(
                f"MLP needs positive sizes, got in_features={in_features}, hidden={tuple(hidden)}, "
                f"num_classes={num_classes}; give each at least 1 (--model.backbone.in_features and so on)."
            )
        if not 0 <= dropout < 1:
            raise BadValue(
                f"MLP's dropout must lie in [0, 1), got {dropout}; set dropout (--model.backbone.dropout), 0 for none."
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], num_classes))
        super().__init__(*layers)
        self.in_features = in_features

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of samples with ``in_features`` values each."""
        return self[-1](self.features(input))

    def features(self, input: Tensor) -> Tensor:
        """Features ``(N, D)``, what goes into the last linear layer."""
        found = input.shape[1:].numel()
        if found != self.in_features:
            raise BadValue(
                f"MLP was built for {self.in_features} features a sample, got {found}; build it with "
                f"in_features={found} (--model.backbone.in_features {found})."
            )
        for layer in list(self)[:-1]:
            input = layer(input)
        return input
