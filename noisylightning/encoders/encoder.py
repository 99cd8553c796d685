"""A network that makes a vector of each sample, with the transform that its inputs need."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from noisylightning.encoders.images import rgb_images
from noisylightning.errors import BadType, BadValue

Takes: TypeAlias = Literal["images", "texts", "inputs"]
Precision: TypeAlias = Literal["32", "bf16"]
_KINDS = ("images", "texts", "inputs")


class Encoder(nn.Module):
    """A network that makes a vector of each sample, with the transform that its inputs need.

    Args:
        network: From what ``transform`` gives, a batch of B samples, to features of shape ``(B, D)``. It is put into
            evaluation mode.
        takes: What it makes them of: ``"images"``, uint8 of shape ``(B, 3, H, W)``, to which grey images and those of
            floats in [0, 1] are brought; ``"texts"``, B strings; or ``"inputs"``, what a data module gives to any
            network.
        transform: From these to what the network takes; None leaves them as they are.
        name: What it is called in messages and in the manifest of a features folder.
        image_size: For image files, the side of the squares that they are cut to, and of those that are cut from; None
            where the data module says it.
        details: What else the features depend on, for the manifest: a tokenizer, for example.

    Attributes:
        precision: ``"32"``, or ``"bf16"`` to run the network in bfloat16: about half the time on GPUs and on processors
            that have it, and features that are right to two or three digits.

    Raises:
        ValueError: If ``takes`` is none of these.

    Example:
        >>> encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
        >>> encoder(torch.ones(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        takes: Takes = "inputs",
        transform: Callable[[Any], Any] | None = None,
        name: str | None = None,
        image_size: tuple[int, int] | None = None,
        details: str = "",
    ) -> None:
        super().__init__()
        if takes not in _KINDS:
            raise BadValue(f"An encoder takes one of {', '.join(map(repr, _KINDS))}, got takes={takes!r}: correct it.")
        self.network = network
        self.takes: Takes = takes
        self.transform = transform
        self.name = type(network).__name__ if name is None else name
        self.image_size = image_size
        self.details = details
        self.precision: Precision = "32"
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU where there are none."""
        found = next(self.network.parameters(), None)
        return torch.device("cpu") if found is None else found.device

    @torch.inference_mode()
    def forward(self, samples: Tensor | Sequence[str]) -> Tensor:
        """Encode a batch.

        Args:
            samples: B samples of the kind that the encoder takes.

        Returns:
            Features of shape ``(B, D)``, floating point, on the encoder's device.

        Raises:
            TypeError: If they are of another kind.
            ValueError: If the network's output is no vector a sample, or not finite.
        """
        if isinstance(samples, Tensor) == (self.takes == "texts"):
            given = f"a tensor of shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else "texts"
            raise BadType(f"{self.name} takes {self.takes}, and was given {given}: choose another encoder (--encoder).")
        prepared: Any = samples.to(self.device) if isinstance(samples, Tensor) else samples
        if self.takes == "images":
            prepared = rgb_images(prepared, self.name)
        if self.transform is not None:
            prepared = self.transform(prepared)
        if hasattr(prepared, "to"):  # a tensor, or a tokenizer's tensors by name
            prepared = prepared.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.network(prepared)
        return self._checked(found, len(samples))

    def _checked(self, found: Any, num: int) -> Tensor:
        if not isinstance(found, Tensor) or found.shape[:1] != (num,) or found.ndim != 2:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise BadValue(
                f"{self.name} gives {got} for {num} samples, not one vector a sample, ({num}, D): let it pool its"
                " output, or choose another encoder."
            )
        if not found.is_floating_point() or not bool(found.isfinite().all()):
            raise BadValue(f"{self.name} gives features that are no finite numbers: its weights or inputs are broken.")
        return found

    def replica(self, device: torch.device) -> "Encoder":
        """The encoder on a device; a copy where it is on another one.

        Args:
            device: Where to.
        """
        return self if device == self.device else copy.deepcopy(self).to(device)

    def weights_checksum(self) -> str:
        """SHA-256 of the weights: names, types, shapes and values, or of the file that they are in."""
        own = getattr(self.network, "weights_checksum", None)
        return str(own()) if own is not None else checksum_of_state(self.network)

    def described(self) -> str:
        """What is done to a sample before the network sees it, in words that are the same for the same transform."""
        parts = [f"takes {self.takes}", "" if self.precision == "32" else self.precision, self.details]
        if self.transform is not None:
            parts.append(described(self.transform))
        return "; ".join(filter(None, parts))


def described(thing: object) -> str:
    """Say what an object is, by its own ``repr`` or else by its class and attributes.

    Args:
        thing: The object.

    Example:
        >>> described(nn.ReLU()), described(described)
        ('ReLU()', 'noisylightning.encoders.encoder.described')
    """
    if isinstance(thing, FunctionType | MethodType | type):
        return f"{thing.__module__}.{thing.__qualname__}"
    if type(thing).__repr__ is not object.__repr__:
        return repr(thing)
    attributes = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(thing).items()))
    return f"{type(thing).__name__}({attributes})"


def checksum_of_state(network: nn.Module) -> str:
    """SHA-256 of a network's state dict: names, types, shapes and values.

    Args:
        network: The network.

    Example:
        >>> checksum_of_state(nn.ReLU())[:8]  # of nothing
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(values: Tensor) -> bytes:
    r"""The bytes of a tensor's values, of any type, in order.

    Args:
        values: The tensor.

    Example:
        >>> bytes_of(torch.ones(1, dtype=torch.bfloat16))
        b'\x80?'
    """
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def checksum_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes.

    Args:
        path: The file.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
