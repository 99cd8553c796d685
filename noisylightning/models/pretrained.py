"""Networks of other libraries by name, from random, published or local weights: torchvision, timm, Hugging Face."""

import re
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.models
from torch import Tensor, nn

from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage
from noisylightning.models.features import feature_extractor

# These two return a tuple while training unless built without their auxiliary classifiers.
_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def read_state_dict(path: str | Path) -> MutableMapping[str, Tensor]:
    """Read a network's weights from a local file without running any code that the file may hold.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save`` with a state dict, either bare or under the key
            ``state_dict`` or ``model``.

    Returns:
        The state dict, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise NoSuchFile(
            f"There is no weights file {path}; download it first or correct weights_file "
            "(--model.backbone.weights_file)."
        )
    load: Callable[[Path], Any] = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load
    try:
        state = load(path)
    except Exception as error:  # each format and each kind of damage has an exception of its own
        raise BadValue(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged or holds more than tensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, MutableMapping) and isinstance(state.get(key), MutableMapping):
            state = state[key]
    if (
        not isinstance(state, MutableMapping)
        or not all(isinstance(value, Tensor) for value in state.values())
        or not state
    ):
        raise BadValue(f"{path} holds no state dict of tensors; save the network with torch.save(net.state_dict()).")
    return state  # as it is: a state dict carries the version of each module in an attribute


def _classes_in(state: Mapping[str, Tensor], head: str, source: str) -> int:
    """Number of classes of the weights, read off the classification layer called ``head``."""
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise BadValue(
            f"{source} has no entry {head}.weight, so it is not for this architecture; correct "
            "name (--model.backbone.name) or weights_file (--model.backbone.weights_file)."
        )
    return len(weight)


def classification_layer(network: nn.Module) -> str:
    """Name of the classification layer of a network of torchvision's, a convolution in SqueezeNet.

    Args:
        network: The network.
    """
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


class TorchvisionModel(nn.Module):
    """Any classification network of torchvision by its name.

    Args:
        name: Name in ``torchvision.models.list_models(torchvision.models)``, such as ``resnet50``.
        num_classes: Number of logits. Where the weights have another number, the classification layer starts afresh.
        weights: Published weights by name (``DEFAULT``, ``IMAGENET1K_V2`` ...), downloaded by torchvision on first
            use; random initial weights if left out.
        weights_file: The same weights as a local file instead (see :func:`read_state_dict`); nothing is downloaded.

    Shape:
        Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``. The auxiliary classifiers of ``googlenet`` and
        ``inception_v3`` are left out.

    Raises:
        ValueError: If the name or the weights are unknown, both kinds of weights are given, or they do not fit.
        FileNotFoundError: If there is no such ``weights_file``.

    Example:
        >>> model = TorchvisionModel("resnet50", num_classes=14)
        >>> model.network.fc
        Linear(in_features=2048, out_features=14, bias=True)
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        weights: str | None = None,
        weights_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise BadValue(
                f"torchvision has no classification network {name!r}; set name (--model.backbone.name) to one of "
                "torchvision.models.list_models()."
            )
        if weights and weights_file:
            raise BadValue(
                f"Give either weights ({weights!r}, --model.backbone.weights) or weights_file ({str(weights_file)!r}, "
                "--model.backbone.weights_file), not both."
            )
        options: dict[str, bool] = {}
        if name in _AUXILIARY_HEADS:  # their published weights expect inputs of another normalisation
            pretrained = bool(weights or weights_file)
            options = {"aux_logits": False, "init_weights": not pretrained, "transform_input": pretrained}
        self.network: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **options)
        if weights:
            published = torchvision.models.get_model_weights(name)
            if weights not in published.__members__:
                known = ", ".join(published.__members__)
                raise BadValue(
                    f"torchvision publishes no weights {weights!r} for {name}; it publishes {known}: "
                    "set weights (--model.backbone.weights) to one of these."
                )
            self._load(published[weights].get_state_dict(check_hash=True), name, f"The file of {name} {weights}")
        elif weights_file:
            self._load(read_state_dict(weights_file), name, str(weights_file))

    def _load(self, state: MutableMapping[str, Tensor], name: str, source: str) -> None:
        """Load ``state`` in full, but for a classification layer of another number of classes."""
        for key in list(state):
            if key.startswith(_AUXILIARY_HEADS.get(name, ())):
                del state[key]
            elif name.startswith("densenet"):  # published before module names lost their dots
                state[re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key)] = state.pop(key)
        own = self.network.state_dict()
        head = classification_layer(self.network)
        if _classes_in(state, head, source) != len(own[f"{head}.weight"]):
            state.update({key: value for key, value in own.items() if key.startswith(f"{head}.")})
        for key, value in state.items():
            if key in own and own[key].shape != value.shape:
                raise BadValue(
                    f"{source} does not fit {name}: {key} has shape {tuple(value.shape)}, not {tuple(own[key].shape)}."
                )
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise BadValue(
                f"{source} does not fit {name}: {len(missing)} entries are missing and {len(unexpected)} unknown, "
                f"{(missing or unexpected)[0]} the first of them."
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        return self.network(inputs)

    def features(self, inputs: Tensor) -> Tensor:
        """Features ``(N, D)`` of images, what goes into the classification layer."""
        return feature_extractor(self.network, classification_layer(self.network))(inputs)


class TimmModel(nn.Module):
    """Any image network of timm (the extra ``timm``) by its name.

    Args:
        name: Name in ``timm.list_models()``, such as ``resnet18`` or ``vit_small_patch16_224.augreg_in1k``.
        num_classes: Number of logits. Where the weights have another number, the classification layer starts afresh.
        pretrained: Whether to start from the published weights, downloaded by timm on first use.
        weights_file: The same weights as a local file instead (see :func:`read_state_dict`); nothing is downloaded.
        in_channels: Number of channels of the images.

    Shape:
        Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the name is unknown, ``pretrained`` and ``weights_file`` are both given, or they do not fit.
        FileNotFoundError: If there is no such ``weights_file``.

    Example:
        >>> import pytest, torch
        >>> timm = pytest.importorskip("timm")
        >>> TimmModel("test_resnet", num_classes=14)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 14])
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool = False,
        weights_file: str | Path | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise NoSuchPackage("TimmModel needs timm: pip install 'noisylightning[timm]'.") from error
        if not timm.is_model(name.partition(".")[0]):
            raise BadValue(
                f"timm {timm.__version__} has no network {name!r}; set name (--model.backbone.name) to one of "
                "timm.list_models()."
            )
        if pretrained and weights_file:
            raise BadValue(
                f"Give either pretrained=True or weights_file ({str(weights_file)!r}), not both "
                "(--model.backbone.pretrained, --model.backbone.weights_file)."
            )
        if weights_file is None:
            self.network: nn.Module = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
            )
            return
        state = read_state_dict(weights_file)
        heads: Any = timm.create_model(name).pretrained_cfg["classifier"]  # type: ignore[index]
        head = heads if isinstance(heads, str) else heads[0]
        classes = _classes_in(state, head, str(weights_file))
        source = {"state_dict": state, "num_classes": classes, "label_offset": 0}
        try:  # with the file's own classes, timm loads every entry or fails
            self.network = timm.create_model(
                name, pretrained=True, num_classes=classes, in_chans=in_channels, pretrained_cfg_overlay=source
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200].rstrip(" .")
            raise BadValue(f"{weights_file} does not fit timm's {name}: {reason}.") from error
        if classes != num_classes:
            self.network.reset_classifier(num_classes)  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, in_channels, H, W)``."""
        return self.network(inputs)

    def features(self, inputs: Tensor) -> Tensor:
        """Features ``(N, D)`` of images, what goes into the last linear layer."""
        return feature_extractor(self.network)(inputs)


class HuggingFaceClassifier(nn.Module):
    """Any text or image classifier of Hugging Face transformers (the extra ``huggingface``).

    Args:
        name: Name on the hub, such as ``distilbert-base-uncased``, or a local folder with ``config.json`` and, for
            ``pretrained``, the weights.
        num_classes: Number of logits. Where the weights have another number, the classification layer starts afresh.
        task: ``"text"`` for sequence classification or ``"image"``.
        pretrained: Whether to load the weights, or only to build the architecture from the configuration.

    Shape:
        Token indices ``(N, L)``, made by the network's own tokenizer and padded with its padding index, or images
        ``(N, 3, H, W)``, or a mapping of the network's own named inputs, to logits ``(N, num_classes)``.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the configuration or weights are not found or do not fit, or ``task`` is unknown.

    Example:
        >>> import pytest, tempfile
        >>> transformers = pytest.importorskip("transformers")
        >>> config = transformers.DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_heads=2, n_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.save_pretrained(folder)
        ...     model = HuggingFaceClassifier(folder, num_classes=3, pretrained=False)
        >>> model(torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, name: str, num_classes: int, task: Literal["text", "image"] = "text", pretrained: bool = True
    ) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise NoSuchPackage(
                "HuggingFaceClassifier needs transformers: pip install 'noisylightning[huggingface]'."
            ) from error
        automatic = {
            "text": transformers.AutoModelForSequenceClassification,
            "image": transformers.AutoModelForImageClassification,
        }
        if task not in automatic:
            raise BadValue(
                f"HuggingFaceClassifier's task must be 'text' or 'image', got {task!r}: set task "
                "(--model.backbone.task)."
            )
        try:
            config = transformers.AutoConfig.from_pretrained(name, num_labels=num_classes)
            if pretrained:
                self.network, report = automatic[task].from_pretrained(
                    name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
                )
            else:
                self.network, report = automatic[task].from_config(config), {"mismatched_keys": []}
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200].rstrip(" .")
            raise BadValue(
                f"Hugging Face's {task} classifier {name!r} cannot be built: {reason}: "
                "set name (--model.backbone.name) to a folder or a name on the hub."
            ) from error
        # Another number of classes is expected to change the head, never the body.
        body = f"{self.network.base_model_prefix}."
        misfits = [key for key, *_ in report["mismatched_keys"] if key.startswith(body)]
        if misfits:
            raise BadValue(f"The weights of {name!r} do not fit its configuration, {misfits[0]} the first misfit.")
        self.task = task
        self.padding_index: int | None = getattr(config, "pad_token_id", None)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits ``(N, num_classes)``; padding is masked where ``inputs`` are token indices."""
        if isinstance(inputs, Mapping):
            return self.network(**inputs).logits
        if self.task == "image":
            return self.network(pixel_values=inputs).logits
        mask = None if self.padding_index is None else (inputs != self.padding_index).long()
        return self.network(input_ids=inputs, attention_mask=mask).logits

    def features(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Features ``(N, D)``, what goes into the last linear layer."""
        return feature_extractor(self)(inputs)
