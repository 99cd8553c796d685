import pytest
import torch
from torch import nn

from noisylightning.losses import UnhingedLoss
from noisylightning.models import BatchNormHead


@pytest.mark.parametrize("shape", [(16, 3), (16, 3, 5), (4, 3, 5, 2)], ids=str)
def test_outputs_are_bounded_and_keep_their_shape(shape):
    logits = 1e4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    head = BatchNormHead(nn.Identity(), 3)
    outputs = head(logits)
    values_per_class = logits.numel() // 3
    assert outputs.shape == logits.shape
    assert outputs.abs().max() <= (values_per_class - 1) ** 0.5
    torch.testing.assert_close(outputs.transpose(0, 1).reshape(3, -1).mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    assert head.eval()(logits).shape == logits.shape


def test_affine_is_an_option():
    assert not list(BatchNormHead(nn.Identity(), 3).parameters())
    assert len(list(BatchNormHead(nn.Identity(), 3, affine=True).parameters())) == 2


def test_unhinged_loss_behind_the_head_is_symmetric_over_a_batch():
    """The sum over labels, averaged over the batch, is C whatever the network says."""
    head, loss = BatchNormHead(nn.Identity(), 5).double(), UnhingedLoss()
    for seed in range(5):
        logits = 7 * torch.randn(32, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(loss.vector(head(logits)).sum(1).mean().item(), 5.0, rtol=1e-12, atol=0)


def test_unhinged_loss_diverges_without_the_head_and_learns_with_it():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(60) % 3
    inputs = nn.functional.one_hot(target, 3) + 0.1 * torch.randn(60, 3, generator=generator)
    weight = torch.randn(3, 3, generator=generator)
    lowest = {}
    for bounded in (False, True):
        backbone = nn.Linear(3, 3)
        with torch.no_grad():
            backbone.weight.copy_(weight)
        model = BatchNormHead(backbone, 3) if bounded else backbone
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(300):
            optimizer.zero_grad()
            value = UnhingedLoss()(model(inputs), target)
            value.backward()
            optimizer.step()
        lowest[bounded] = value.item()
    assert lowest[False] < -5
    assert lowest[True] > 1 - 2**0.5 / 3  # a class in three of the batch: no score can be above sqrt(2)
    assert (model.eval()(inputs).argmax(1) == target).float().mean() > 0.95
