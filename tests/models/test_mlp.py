import pytest
import torch
from torch import nn

from noisylightning.models import MLP


def test_default_is_the_papers_mnist_network():
    model = MLP(784, 10)
    shapes = [tuple(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)]
    assert shapes == [(128, 784), (128, 128), (10, 128)]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.2, 0.2]


def test_is_affine_without_hidden_layers():
    model = MLP(6, 3, hidden=(), dropout=0.0).double()
    x, y = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x) + model(y), 2 * model((x + y) / 2))


def test_flattens_and_accepts_tables():
    model = MLP(12, 5, hidden=(7,)).eval()
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), model(images.flatten(1)))


@pytest.mark.parametrize("sizes", [(0, 10, (4,)), (4, 0, (4,)), (4, 10, (4, -1))])
def test_refuses_empty_layers(sizes):
    with pytest.raises(ValueError, match="positive sizes"):
        MLP(*sizes)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_refuses_dropout_outside_unit_interval(dropout):
    with pytest.raises(ValueError, match="dropout must lie in"):
        MLP(4, 2, dropout=dropout)


def test_refuses_another_number_of_features():
    with pytest.raises(ValueError, match="built for 7 features a sample, got 3; build it with in_features=3"):
        MLP(7, 2)(torch.zeros(5, 3))
