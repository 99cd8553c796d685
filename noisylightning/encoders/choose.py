"""An encoder where none is named."""

from collections.abc import Sequence

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.load import load_encoder
from noisylightning.encoders.plain import pixels, words
from noisylightning.errors import UserError

FOR_IMAGES = ("efficientnet_lite0", "torchvision:efficientnet_b0")
FOR_TEXTS = ("minilm", "sentence-transformers:all-MiniLM-L6-v2")
_BETTER = {
    "images": "--encoder timm:vit_small_patch14_dinov2.lvd142m --size 224, for example, sees more in them",
    "texts": "--encoder sentence-transformers:all-mpnet-base-v2, for example, reads more in them",
}


def choose_encoder(texts: Sequence[str] | None = None) -> tuple[Encoder, str]:
    """Take the first pretrained encoder that can be had here, or else one that needs no weights.

    Args:
        texts: The training texts; None where the samples are images.

    Returns:
        The encoder, and a sentence on why it is this one and how to get a better one.

    Example:
        >>> encoder, reason = choose_encoder(["a fine film", "a dull film", "a dull book"])  # doctest: +SKIP
    """
    takes = "images" if texts is None else "texts"
    reasons = []
    for name in FOR_IMAGES if texts is None else FOR_TEXTS:
        try:
            return load_encoder(name), f"{takes.capitalize()} are encoded by {name}; {_BETTER[takes]}."
        except UserError as error:
            reasons.append(f"{name}: {error}".rstrip("."))
    plain = pixels() if texts is None else words(texts)
    return plain, (
        f"No pretrained encoder can be had here ({'; '.join(reasons)}), so the features are {plain.name} alone, by"
        f" which T and the wrong labels are found less well: {_BETTER[takes]}."
    )
