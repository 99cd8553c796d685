"""Text classifiers over rows of word indices: the two networks of the loss-correction paper, and a transformer."""

from torch import Tensor, nn
from torch.nn import functional as F

from noisylightning.errors import BadValue


class SpatialDropout(nn.Module):
    """Dropout of whole embedding channels: one draw a sample and channel, the same at every word.

    As Keras' ``SpatialDropout1D``, with the same meaning of the rate: at 0.8, four channels in five are zero while
    training and the fifth is multiplied by 5.

    Args:
        rate: Probability, in [0, 1), of dropping a channel.

    Shape:
        ``(N, L, D)`` to the same.

    Example:
        >>> import torch
        >>> first_word, second_word = SpatialDropout(0.8)(torch.ones(1, 2, 50))[0]
        >>> torch.equal(first_word, second_word), first_word.max()
        (True, tensor(5.))
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise BadValue(
                f"Spatial dropout's rate must lie in [0, 1), got {rate}; set dropout (--model.backbone.dropout), 0 for "
                "none."
            )
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of embedded words ``(N, L, D)``."""
        if not self.training or not self.rate:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.rate)


def _embedding(vocab_size: int, dim: int) -> nn.Embedding:
    """Embedding with the small uniform initial weights, in [-0.05, 0.05], that the paper's networks start from."""
    embedding = nn.Embedding(vocab_size, dim)
    nn.init.uniform_(embedding.weight, -0.05, 0.05)
    return embedding


def _dense(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer that starts with the variance of He et al. (2015), 2 / fan-in, and no bias."""
    linear = nn.Linear(in_features, out_features)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return linear


class EmbeddingClassifier(nn.Module):
    """Word embedding and one linear layer over all positions: the smaller IMDB network of Patrini et al. (2017).

    Embedding, spatial dropout, ReLU, and a linear layer with a weight for every position and channel. Padding is a
    word like any other, as in the paper's network; it pads on the left.

    Args:
        vocab_size: Number of words of the vocabulary, special ones included.
        num_classes: Number of logits.
        length: Number of words L of a text.
        embedding_dim: Number of channels of a word.
        dropout: Rate of the spatial dropout.

    Shape:
        Word indices ``(N, length)`` to logits ``(N, num_classes)``.

    Example:
        >>> import torch
        >>> EmbeddingClassifier(vocab_size=5000, num_classes=2)(torch.zeros(3, 400, dtype=torch.long)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, vocab_size: int, num_classes: int, length: int = 400, embedding_dim: int = 50, dropout: float = 0.8
    ) -> None:
        super().__init__()
        self.embedding = _embedding(vocab_size, embedding_dim)
        self.dropout = SpatialDropout(dropout)
        self.linear = _dense(length * embedding_dim, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of word indices ``(N, length)``."""
        return self.linear(self.features(words))

    def features(self, words: Tensor) -> Tensor:
        """Features ``(N, length * embedding_dim)``, what goes into the linear layer."""
        # Dropout only multiplies by factors >= 0, so ReLU may go first: over the vocabulary, not over every word read.
        return self.dropout(F.embedding(words, self.embedding.weight.relu())).flatten(1)


class LSTMClassifier(nn.Module):
    """Word embedding, LSTM and two linear layers: the larger IMDB network of Patrini et al. (2017).

    Embedding, spatial dropout, LSTM, then from its last state a linear layer back to the width of the embedding,
    dropout 0.5, ReLU and the linear classifier. Texts must be padded on the left, so that the last state follows a
    word.

    Args:
        vocab_size: Number of words of the vocabulary, special ones included.
        num_classes: Number of logits.
        embedding_dim: Number of channels of a word.
        hidden_dim: Width of the LSTM's state.
        dropout: Rate of the spatial dropout.

    Shape:
        Word indices ``(N, L)`` to logits ``(N, num_classes)``.

    Example:
        >>> import torch
        >>> model = LSTMClassifier(vocab_size=100, num_classes=2, embedding_dim=8, hidden_dim=8)
        >>> model(torch.zeros(3, 20, dtype=torch.long)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        embedding_dim: int = 512,
        hidden_dim: int = 512,
        dropout: float = 0.8,
    ) -> None:
        super().__init__()
        self.embedding = _embedding(vocab_size, embedding_dim)
        self.dropout = SpatialDropout(dropout)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.head = nn.Sequential(
            _dense(hidden_dim, embedding_dim), nn.Dropout(0.5), nn.ReLU(), _dense(embedding_dim, num_classes)
        )
        # Usual for an LSTM: uniform input weights as the paper's, orthogonal recurrence, forget gates that start open.
        weights = dict(self.lstm.named_parameters())
        nn.init.uniform_(weights["weight_ih_l0"], -0.05, 0.05)
        nn.init.orthogonal_(weights["weight_hh_l0"])
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])
        nn.init.ones_(weights["bias_ih_l0"].detach()[hidden_dim : 2 * hidden_dim])

    def forward(self, words: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of word indices ``(N, L)``."""
        return self.head[-1](self.features(words))

    def features(self, words: Tensor) -> Tensor:
        """Features ``(N, embedding_dim)``, what goes into the last linear layer."""
        _, (state, _) = self.lstm(self.dropout(self.embedding(words)))
        features: Tensor = state[-1]
        for layer in list(self.head)[:-1]:
            features = layer(features)
        return features


class TransformerClassifier(nn.Module):
    """A small transformer encoder over words, with the mean over a text's own words as its summary.

    Learnt word and position embeddings, pre-norm encoder layers (Vaswani et al. 2017; Xiong et al. 2020) that neither
    attend to nor average over padding, and one linear layer.

    Args:
        vocab_size: Number of words of the vocabulary, special ones included.
        num_classes: Number of logits.
        length: Largest number of words L of a text.
        dim: Width of the model.
        heads: Number of attention heads; must divide ``dim``.
        layers: Number of encoder layers.
        dropout: Dropout probability inside the encoder.
        padding_index: Word index that stands for padding.

    Shape:
        Word indices ``(N, L)`` with ``L <= length`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: If ``heads`` does not divide ``dim``, or a text is longer than ``length``.

    Example:
        >>> import torch
        >>> model = TransformerClassifier(vocab_size=100, num_classes=2, length=20, dim=16, heads=2, layers=1)
        >>> model(torch.tensor([[0, 0, 7, 4], [3, 5, 6, 2]])).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        length: int = 400,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        padding_index: int = 0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise BadValue(
                f"TransformerClassifier's heads must divide its dim, got heads={heads} and dim={dim}: set heads "
                "(--model.backbone.heads) or dim (--model.backbone.dim)."
            )
        self.padding_index = padding_index
        self.words = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(length, dim)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of word indices ``(N, L)``."""
        return self.head(self.features(words))

    def features(self, words: Tensor) -> Tensor:
        """Features ``(N, dim)``, the mean over a text's own words that goes into the linear layer."""
        if words.shape[1] > self.positions.num_embeddings:
            raise BadValue(
                f"TransformerClassifier takes texts of at most {self.positions.num_embeddings} words, got "
                f"{words.shape[1]}; build it with length={words.shape[1]} (--model.backbone.length {words.shape[1]})."
            )
        padding = words == self.padding_index
        # Counted from a text's first word, so that a text has the same logits however it is padded.
        positions = (~padding).cumsum(1).sub(1).clamp(min=0)
        encoded = self.encoder(self.words(words) + self.positions(positions), src_key_padding_mask=padding)
        own = (~padding).unsqueeze(-1).to(encoded.dtype)
        features: Tensor = (encoded * own).sum(1) / own.sum(1).clamp(min=1)
        return features
