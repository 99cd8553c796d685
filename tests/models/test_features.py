"""Features are what goes into the last linear layer, on every backbone of ours and on strangers' networks."""

import pytest
import torch
from torch import nn

import noisylightning.models
from noisylightning.models import (
    MLP,
    BatchNormHead,
    CIFARResNet,
    EmbeddingClassifier,
    LSTMClassifier,
    ResNet34,
    TorchvisionModel,
    TransformerClassifier,
    feature_extractor,
    with_features,
)

IMAGES, WORDS = (
    torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[0, 5, 3], [1, 2, 8]]),
)


def build_timm():
    pytest.importorskip("timm")
    return noisylightning.models.TimmModel("test_resnet", num_classes=3)


def build_hugging_face(folder):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(vocab_size=9, **size).save_pretrained(folder)
    return noisylightning.models.HuggingFaceClassifier(str(folder), num_classes=3, pretrained=False)


# A network, its inputs, and the layer that its features go into.
CASES = {
    "MLP": (lambda _: MLP(3 * 32 * 32, 3, hidden=[8, 7]), IMAGES, lambda net: net[-1]),
    "CIFARResNet": (lambda _: CIFARResNet(depth=8, num_classes=3), IMAGES, lambda net: net[-1]),
    "ResNet34": (lambda _: ResNet34(num_classes=3), IMAGES, lambda net: net.fc),
    "TorchvisionModel": (lambda _: TorchvisionModel("resnet18", 3), IMAGES, lambda net: net.network.fc),
    "TimmModel": (lambda _: build_timm(), IMAGES, lambda net: net.network.get_classifier()),
    "HuggingFaceClassifier": (build_hugging_face, WORDS, lambda net: net.network.classifier),
    "EmbeddingClassifier": (lambda _: EmbeddingClassifier(9, 3, length=3), WORDS, lambda net: net.linear),
    "LSTMClassifier": (lambda _: LSTMClassifier(9, 3, embedding_dim=4, hidden_dim=5), WORDS, lambda net: net.head[-1]),
    "TransformerClassifier": (
        lambda _: TransformerClassifier(9, 3, dim=8, heads=2, layers=1), WORDS, lambda net: net.head
    ),
    "BatchNormHead": (
        lambda _: BatchNormHead(MLP(3 * 32 * 32, 3, hidden=[8]), 3),
        IMAGES,
        lambda net: nn.Sequential(net.backbone[-1], net.norm),
    ),
}  # fmt: skip


def test_no_backbone_is_forgotten():
    public = {name for name in noisylightning.models.__all__ if isinstance(getattr(noisylightning.models, name), type)}
    assert public - {"Standardize"} == set(CASES)  # which is a layer


@pytest.mark.parametrize("name", CASES)
def test_the_last_layer_applied_to_the_features_gives_the_logits(name, tmp_path):
    build, inputs, head_of = CASES[name]
    network = build(tmp_path).eval()
    with torch.no_grad():
        expected = network(inputs)
        logits, features = with_features(network)(inputs)
        assert torch.equal(logits, expected)  # the hook changes nothing
        assert features.ndim == 2
        torch.testing.assert_close(head_of(network)(features), expected)
        assert torch.equal(network.features(inputs), features)
        assert torch.equal(feature_extractor(network)(inputs), features)


def test_a_network_with_a_convolution_for_a_head_has_features_too():
    network = TorchvisionModel("squeezenet1_1", 3).eval()
    images = torch.zeros(2, 3, 64, 64)
    features = network.features(images)
    assert features.shape == (2, 512 * 3 * 3)
    assert torch.equal(with_features(network, "network.classifier.1")(images)[1], features)


class Strange(nn.Module):
    """A stranger's network: layers in another order than they are run, one that is not, one that works in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.body = nn.Linear(6, 4)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, inputs):
        return self.head(input=self.relu(self.body(inputs)))


def test_a_layer_can_be_named():
    network, inputs = Strange(), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(feature_extractor(network, "head")(inputs), network.body(inputs).relu())
    assert torch.equal(feature_extractor(network, "relu")(inputs), network.body(inputs))  # before it works in place
    assert torch.equal(feature_extractor(network, "body")(inputs), inputs)


def test_features_of_more_dimensions_are_flattened():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(18, 3))
    assert feature_extractor(network, "0")(torch.zeros(5, 1, 3, 3)).shape == (5, 9)


def test_what_cannot_be_is_answered_in_one_sentence():
    with pytest.raises(ValueError, match=r"Conv2d has no nn\.Linear") as caught:
        feature_extractor(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"Strange has no layer 'haed': did you mean 'head'"):
        with_features(Strange(), "haed")
    with pytest.raises(ValueError, match=r"The layer 'unused' of Strange takes no part") as caught:
        feature_extractor(Strange())(torch.zeros(5, 6))
    assert "\n" not in str(caught.value)
    tokenwise = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 3), nn.Unflatten(0, (5, 3)))
    with pytest.raises(ValueError, match=r"shape \(15, 2\) for 5 samples"):
        feature_extractor(tokenwise)(torch.zeros(5, 6))


def test_the_network_stays_as_it_is():
    network = Strange().train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with_features(network, "head")(torch.zeros(5, 7))
    with_features(network, "head")(torch.zeros(5, 6))
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
