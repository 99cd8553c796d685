"""Encoders in files that hold the network whole: ONNX, and what torch.export wrote."""

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from noisylightning.encoders.encoder import Encoder, checksum_of_file
from noisylightning.encoders.hub import reason_of
from noisylightning.encoders.images import ImageTransform
from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage

_SIZE = 224


class _WholeFile(nn.Module):
    """A network that a file holds. It stays on the device that its file or its runtime says, and is never copied."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __deepcopy__(self, memo: Any) -> "_WholeFile":
        return self

    def weights_checksum(self) -> str:
        return checksum_of_file(self.path)


class _OnnxNetwork(_WholeFile):
    def __init__(self, path: Path, session: Any) -> None:
        super().__init__(path)
        self.session = session
        self.input = session.get_inputs()[0].name

    def forward(self, batch: Tensor) -> Tensor:
        found = self.session.run(None, {self.input: batch.cpu().contiguous().numpy()})[0]
        return torch.from_numpy(found).to(batch.device)


class _ExportedNetwork(_WholeFile):
    def __init__(self, path: Path, program: Any) -> None:
        super().__init__(path)
        self.run = [program.module()]  # in a list: an exported module refuses eval()
        weight = next(iter(program.state_dict.values()), torch.empty(0))
        self.home = weight.device

    def forward(self, batch: Tensor) -> Any:
        return self.run[0](batch.to(self.home))


def onnx_encoder(path: str | Path, size: int | None = None) -> Encoder:
    """A network in an ONNX file, run by onnxruntime (the extra ``onnx``), on the devices that this can use.

    It has one input, of floats, and its first output is the features. If the input is of shape ``(B, 3, H, W)`` it
    takes images, whose transform the file beside it tells, ``NAME.json`` for ``NAME.onnx``, by the arguments of
    :class:`~noisylightning.encoders.ImageTransform`; without that file, images are scaled to the size that the input
    has, else to 224 pixels, and normalised by ImageNet's mean and deviation. Any other input is what a data module
    gives to networks.

    Args:
        path: The file.
        size: Side of the images, in pixels, where the input leaves it open.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If onnxruntime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ONNX, or its input is not one of floats for batches of any size.
    """
    path = _file(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise NoSuchPackage(f"{path} needs onnxruntime: pip install 'noisylightning[onnx]'.") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has an exception for each kind of damage, with no base of their own
        raise BadValue(f"{path} cannot be read as ONNX ({reason_of(error)}): export it again.") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        kinds = ", ".join(f"{each.name}: {each.type}" for each in inputs)
        raise BadValue(
            f"{path} takes {kinds}, not one input of floats: for texts give transformers:FOLDER or"
            " sentence-transformers:FOLDER, which bring their tokenizer."
        )
    return _encoder(_OnnxNetwork(path, session), inputs[0].shape, size)


def exported_encoder(path: str | Path, size: int | None = None) -> Encoder:
    """A network in a ``.pt2`` file of ``torch.export.save``, exported for batches of any size.

    It runs on the device that it was exported on. All else is as for :func:`onnx_encoder`.

    Args:
        path: The file.
        size: Side of the images, in pixels, where the input leaves it open.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none, or its input is not one tensor of floats for batches of any size.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "encoder.pt2"
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> batch = {"input": {0: torch.export.Dim("batch")}}
        >>> torch.export.save(torch.export.export(network, (torch.ones(2, 4),), dynamic_shapes=batch), file)
        >>> exported_encoder(file)(torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """
    path = _file(path)
    if not zipfile.is_zipfile(path):  # of which torch would say so in a log of its own
        raise BadValue(f"{path} cannot be read as a .pt2 of torch.export, it is truncated or none: export it again.")
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise BadValue(
            f"{path} cannot be read as a .pt2 of torch.export ({reason_of(error)}): export it again."
        ) from error
    signature = program.graph_signature
    given = [node.meta["val"] for node in program.graph.nodes if node.name in signature.user_inputs]
    if len(given) != 1 or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        raise BadValue(f"{path} takes {len(given)} inputs, not one tensor of floats: export the network with one.")
    return _encoder(_ExportedNetwork(path, program), list(given[0].shape), size)


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise NoSuchFile(f"There is no encoder {path}: correct the path (--encoder).")
    return Path(path)


def _encoder(network: _WholeFile, shape: Sequence[Any], size: int | None) -> Encoder:
    """Make the encoder of a network whose input has a shape, of which only fixed sizes are ints."""
    path = network.path
    if isinstance(shape[0], int):
        raise BadValue(f"{path} was exported for batches of {shape[0]} alone: export it with a dynamic batch size.")
    if len(shape) != 4 or shape[1] != 3:
        if size is not None:
            raise BadValue(f"{path} takes no images, so size={size} has no meaning: leave size (--size) out.")
        return Encoder(network, "inputs", name=path.name)
    fixed = shape[2] if isinstance(shape[2], int) else None
    if None not in (fixed, size) and size != fixed:
        raise BadValue(f"{path} takes images of {fixed} pixels, not of size={size}: leave size (--size) out.")
    beside = path.with_suffix(".json")
    if beside.is_file():
        transform = _transform_in(beside, size)
    else:
        transform = ImageTransform(size or fixed or _SIZE)
        rank_zero_info(
            f"{path} has no {beside.name} beside it to say how its images are made: they are taken at"
            f" {transform.size} pixels, with ImageNet's mean and deviation."
        )
    return Encoder(network, "images", transform, path.name, transform.image_size)


def _transform_in(file: Path, size: int | None) -> ImageTransform:
    try:
        arguments = json.loads(file.read_text(encoding="utf-8"))
        return ImageTransform(**arguments | ({} if size is None else {"size": size, "resize": None}))
    except (TypeError, ValueError, UnicodeDecodeError) as error:
        raise BadValue(f"{file} holds no arguments of ImageTransform ({reason_of(error)}): correct it.") from error
