"""Features without a pretrained network, for where there is none: they know colours and words, not things."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.images import ImageTransform
from noisylightning.errors import BadValue

_SIDE = 16


def pixels(size: int | None = None) -> Encoder:
    """The colours of an image, shrunk.

    Args:
        size: Its side in pixels; by default 16, which makes 768 features.

    Returns:
        The encoder.

    Example:
        >>> pixels(4)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 48])
    """
    transform = ImageTransform(size or _SIDE)
    return Encoder(nn.Flatten(), "images", transform, "pixels", transform.image_size)


class _Words(nn.Module):
    def __init__(self, texts: Sequence[str], width: int) -> None:
        super().__init__()
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), max_features=50_000, sublinear_tf=True)
        try:
            counts = self.vectorizer.fit_transform(texts)
        except ValueError as error:
            raise BadValue(
                "The training texts have no word of two letters or more to make features of: correct train_file"
                " (--data.train_file), or give an encoder (--encoder)."
            ) from error
        width = min(width, min(counts.shape) - 1)
        if width < 1:
            raise BadValue("Features of words need two texts and two words at least: give an encoder (--encoder).")
        self.axes = TruncatedSVD(width, random_state=0).fit(counts)

    def forward(self, texts: Sequence[str]) -> Tensor:
        found = self.axes.transform(self.vectorizer.transform(list(texts)))
        return torch.from_numpy(found.astype(np.float32))

    def weights_checksum(self) -> str:
        digest = hashlib.sha256("\n".join(self.vectorizer.get_feature_names_out()).encode(errors="surrogatepass"))
        digest.update(self.vectorizer.idf_.astype("<f8").tobytes())
        return digest.hexdigest()


def words(texts: Sequence[str], width: int = 256) -> Encoder:
    """The words and pairs of words of a text, weighted by tf-idf, on the main axes of the training texts.

    Latent semantic analysis (Deerwester et al. 1990), by scikit-learn.

    Args:
        texts: The training texts.
        width: Number of axes at most.

    Returns:
        The encoder.

    Raises:
        ValueError: If the texts have too few words.

    Example:
        >>> encoder = words(["a fine film", "a dull film", "a dull book"])
        >>> encoder(["fine book", "dull film"]).shape
        torch.Size([2, 2])
    """
    return Encoder(_Words(texts, width), "texts", name="words")
