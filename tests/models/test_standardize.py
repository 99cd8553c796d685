import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from noisylightning.models import MLP, Standardize, encoder_modules, encoder_parameters, head_of, with_features

FEATURES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30.0, 0.0, 1e-3]) + 7


def test_it_is_scikit_learns_scaling():
    layer = Standardize.of(FEATURES[:30])
    expected = StandardScaler().fit(FEATURES[:30].double().numpy()).transform(FEATURES[30:].double().numpy())
    np.testing.assert_allclose(layer(FEATURES[30:]).numpy(), expected, rtol=1e-2, atol=1e-4)


def test_it_takes_half_precision_features_whose_sum_overflows():
    half = torch.full((100_000, 1), 6.0).half()
    half[::2] = 2.0
    assert Standardize.of(half).mean.item() == pytest.approx(4.0)


def test_a_head_on_standardized_features_keeps_the_scaling_and_trains_none_of_it():
    network = nn.Sequential(Standardize.of(FEATURES), MLP(4, 3, hidden=[]))
    assert [name for name, _ in network.named_parameters()] == ["1.1.weight", "1.1.bias"]
    other = nn.Sequential(Standardize(torch.zeros(4), torch.ones(4)), MLP(4, 3, hidden=[]))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(FEATURES), network(FEATURES))
    torch.testing.assert_close(with_features(network)(FEATURES)[1], network[0](FEATURES))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Standardize(torch.zeros(3), torch.ones(4)), "both of shape"),
        (lambda: Standardize(torch.zeros(3), -torch.ones(3)), "deviations of at least 0"),
        (lambda: Standardize.of(FEATURES * torch.nan), "finite means"),
        (lambda: Standardize.of(FEATURES[0]), r"features of shape \(N, D\), got \(4,\)"),
        (lambda: Standardize.of(FEATURES)(FEATURES[:, :2]), r"made for 4 features, got samples of shape \(2,\)"),
    ],
)
def test_what_is_no_features_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_network_is_parted_into_its_head_and_the_largest_parts_without_it():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(2))
            self.stem = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
            self.top = nn.ModuleDict({"pool": nn.Dropout(), "fc": nn.Linear(5, 3)})

    network = Network()
    assert head_of(network) is network.top["fc"]
    assert encoder_modules(network) == [network.stem, network.top["pool"]]
    assert [tuple(p.shape) for p in encoder_parameters(network)] == [(2,), (5, 4), (5,), (5,), (5,)]
    assert encoder_modules(network, "top") == [network.stem]
    assert encoder_modules(network.top["fc"]) == []
