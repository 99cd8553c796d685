"""A head that bounds the outputs of a network, for the losses that need it."""

from typing import Any

from torch import Tensor, nn

from noisylightning.models.features import feature_extractor


class BatchNormHead(nn.Module):
    r"""A network whose outputs pass through batch normalisation, which bounds them.

    Patrini et al. (2017, CVPR) put this in the place of softmax for the unhinged, sigmoid and ramp losses: the unhinged
    loss has no minimum over unbounded scores, the other two no gradient where scores are large. In training, a score
    of a batch of n is at most ``sqrt(n - 1)`` in size.

    Args:
        backbone: Network that maps inputs to logits ``(N, C)`` or ``(N, C, d1, ...)``.
        num_classes: Number of classes C.
        affine: Whether the layer learns a scale and an offset for each class. They undo the bound, slowly, so weight
            decay should then reach them.

    Example:
        >>> import torch
        >>> head = BatchNormHead(nn.Identity(), num_classes=2)
        >>> head(torch.tensor([[1000.0, 0.0], [-1000.0, 2.0]]))
        tensor([[ 1.0000, -1.0000],
                [-1.0000,  1.0000]])
    """

    def __init__(self, backbone: nn.Module, num_classes: int, affine: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(num_classes, affine=affine)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised logits, shaped as the backbone's."""
        logits: Tensor = self.backbone(inputs)
        if logits.ndim <= 3:
            return self.norm(logits)
        return self.norm(logits.flatten(2)).reshape(logits.shape)

    def features(self, inputs: Any) -> Tensor:
        """Features ``(N, D)`` of the network within, what goes into its last linear layer."""
        return feature_extractor(self.backbone)(inputs)
