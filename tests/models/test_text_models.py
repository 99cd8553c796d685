import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisylightning.models import EmbeddingClassifier, LSTMClassifier, TransformerClassifier
from noisylightning.models.text import SpatialDropout


def words(*shape, low=1, high=20, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- spatial dropout --------------------------------------------------------------------------------------------------


def test_spatial_dropout_drops_whole_channels_of_a_sample():
    torch.manual_seed(0)
    out = SpatialDropout(0.8).train()(torch.ones(200, 7, 50))
    assert (out == out[:, :1]).all()  # the same at every word
    assert set(out.unique().tolist()) == {0.0, 5.0}  # 1 / (1 - 0.8)
    assert (out[:, 0] == 0).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert len(out[:, 0].unique(dim=0)) > 190  # a draw of its own for every sample


def test_spatial_dropout_keeps_the_input_outside_training():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SpatialDropout(0.8).eval()(x), x)
    assert torch.equal(SpatialDropout(0.0).train()(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_spatial_dropout_refuses(rate):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got"):
        SpatialDropout(rate)


# --- the paper's two networks -----------------------------------------------------------------------------------------


def test_sizes_of_the_papers_networks():
    assert count(EmbeddingClassifier(5000, 2)) == 5000 * 50 + 400 * 50 * 2 + 2
    lstm = 4 * 512 * (512 + 512 + 2)  # PyTorch keeps two biases
    assert count(LSTMClassifier(5000, 2)) == 5000 * 512 + lstm + 512 * 513 + 513 * 2


def test_embedding_classifier_by_hand():
    model = EmbeddingClassifier(20, 3, length=5, embedding_dim=4).eval()
    table, linear = model.embedding.weight, model.linear
    text = words(2, 5)
    expected = torch.stack([table[row].clamp(min=0).reshape(-1) for row in text]) @ linear.weight.T + linear.bias
    torch.testing.assert_close(model(text), expected)


def test_embedding_classifier_is_the_papers_order_of_layers():
    model = EmbeddingClassifier(20, 3, length=5, embedding_dim=40).train()
    layers = nn.Sequential(model.embedding, model.dropout, nn.ReLU(), nn.Flatten(), model.linear)
    text, grads = words(4, 5), []
    for network in (model, layers):
        torch.manual_seed(1)
        network.zero_grad()
        logits = network(text)
        logits.square().sum().backward()
        grads.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*grads)


def test_initial_weights_of_the_papers_networks():
    torch.manual_seed(0)
    model = EmbeddingClassifier(5000, 2)
    assert model.embedding.weight.abs().max() <= 0.05
    assert model.embedding.weight.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.01)
    assert model.linear.weight.std().item() == pytest.approx((2 / 20_000) ** 0.5, rel=0.02)
    lstm = LSTMClassifier(50, 2, embedding_dim=16, hidden_dim=12)
    forget = slice(12, 24)
    assert torch.equal((lstm.lstm.bias_ih_l0 + lstm.lstm.bias_hh_l0)[forget], torch.ones(12))


def test_lstm_reads_the_last_state():
    model = LSTMClassifier(20, 2, embedding_dim=6, hidden_dim=5).eval()
    text = words(3, 7)
    outputs, _ = model.lstm(model.embedding(text))
    torch.testing.assert_close(model(text), model.head(outputs[:, -1]))


# --- the transformer --------------------------------------------------------------------------------------------------


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return TransformerClassifier(20, 3, length=12, dim=16, heads=2, layers=2)


@pytest.mark.parametrize("pad", [(5, 0), (0, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(transformer, pad, training):
    transformer.train(training)
    for module in transformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    text = words(4, 7)
    torch.testing.assert_close(transformer(F.pad(text, pad)), transformer(text))


def test_order_of_words_matters(transformer):
    transformer.eval()
    text = torch.arange(1, 8)[None]
    assert not torch.allclose(transformer(text), transformer(text.flip(1)), atol=1e-5)


def test_a_text_of_padding_alone_stays_finite(transformer):
    text = F.pad(words(1, 3), (2, 0)).repeat(2, 1)
    text[1] = 0
    for mode in (True, False):
        logits = transformer.train(mode)(text)
        assert logits.isfinite().all()


def test_transformer_refuses(transformer):
    with pytest.raises(ValueError, match="heads must divide"):
        TransformerClassifier(20, 3, dim=10, heads=4)
    with pytest.raises(ValueError, match="at most 12 words, got 13"):
        transformer(words(1, 13))


@pytest.mark.parametrize(
    "build",
    [
        lambda: EmbeddingClassifier(20, 2, length=8, embedding_dim=16),
        lambda: LSTMClassifier(20, 2, embedding_dim=16, hidden_dim=16, dropout=0.2),
        lambda: TransformerClassifier(20, 2, length=8, dim=16, heads=2, layers=1),
    ],
)
def test_learns_to_find_a_word(build):
    torch.manual_seed(0)
    model, text = build(), words(128, 8)
    label = (text == 3).any(1).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(text), label).backward()
        optimizer.step()
    assert (model.eval()(text).argmax(1) == label).double().mean() > 0.9
