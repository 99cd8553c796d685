"""What a network has made of its inputs when its last layer decides: the features."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from noisylightning.errors import BadValue


def with_features(network: nn.Module, layer: str | None = None) -> Callable[[Any], tuple[Any, Tensor]]:
    """Let a network return its features beside its logits, in one pass.

    Features are what goes into the last ``nn.Linear`` of the network, or into the layer that is named; of more than two
    dimensions they are flattened. The network itself stays as it is, training flags included.

    Args:
        network: Any network.
        layer: Name of the layer in ``network.named_modules()``; by default the last ``nn.Linear`` there.

    Returns:
        Function from what the network takes to its logits and its features of shape (N, D).

    Raises:
        ValueError: If the network has no ``nn.Linear``, or no layer of that name; when called, if the layer takes no
            part, or its input is not one row a sample.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> logits, features = with_features(network)(torch.ones(2, 4))
        >>> logits.shape, torch.equal(features, network[:2](torch.ones(2, 4)))
        (torch.Size([2, 3]), True)
        >>> with_features(network, layer="1")(torch.ones(2, 4))[1].equal(network[0](torch.ones(2, 4)))
        True
    """
    _find_layer(network, layer)

    def run(inputs: Any) -> tuple[Any, Tensor]:
        with record_features(network, layer) as features:
            logits = network(inputs)
        return logits, features(len(logits) if isinstance(logits, Tensor) else None)

    return run


@contextmanager
def record_features(network: nn.Module, layer: str | None = None) -> Iterator[Callable[[int | None], Tensor]]:
    """Keep the features of each forward pass of a network, whoever calls it; see :func:`with_features`.

    Args:
        network: Any network.
        layer: Name of the layer whose input they are; by default the last ``nn.Linear``.

    Yields:
        Function from the number of samples N, or None where it is not known, to the features of the last pass, of shape
        (N, D). It gives them once.

    Raises:
        ValueError: As :func:`with_features` does.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> with record_features(network) as features:
        ...     logits = network(torch.ones(2, 2, 2))
        >>> features(2).shape
        torch.Size([2, 4])
    """
    name, module = _find_layer(network, layer)
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        seen[:] = [given.clone()]  # what follows may work in place

    def last(num: int | None) -> Tensor:
        found = _as_rows(seen, num, f"The layer {name!r} of {type(network).__name__}")
        seen.clear()  # a pass that leaves the layer out must not be taken for it
        return found

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield last
    finally:
        handle.remove()


def feature_extractor(network: nn.Module, layer: str | None = None) -> Callable[[Any], Tensor]:
    """The features alone, see :func:`with_features`.

    Args:
        network: Any network.
        layer: Name of the layer whose input they are; by default the last ``nn.Linear``.

    Returns:
        Function from what the network takes to features of shape (N, D).

    Raises:
        ValueError: As :func:`with_features` does.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> feature_extractor(network)(torch.ones(2, 2, 2))
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """
    run = with_features(network, layer)
    return lambda inputs: run(inputs)[1]


def _find_layer(network: nn.Module, layer: str | None) -> tuple[str, nn.Module]:
    modules = dict(network.named_modules())
    if layer is None:
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        if not linear:
            raise BadValue(
                f"{type(network).__name__} has no nn.Linear whose input could be its features: name a layer, one of "
                f"{_few(modules)}."
            )
        layer = linear[-1]
    elif layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=3, cutoff=0.3) or modules
        raise BadValue(f"{type(network).__name__} has no layer {layer!r}: did you mean {_few(near)}?")
    return layer, modules[layer]


def _few(names: Any, few: int = 8) -> str:
    named = [repr(name) for name in names if name]
    return ", ".join(named[-few:])


def _as_rows(seen: list[Tensor], num: int | None, where: str) -> Tensor:
    if not seen:
        raise BadValue(f"{where} takes no part in the forward pass: name another whose input is the features.")
    features = seen[0]
    num = len(features) if num is None else num
    if features.ndim < 2 or len(features) != num:
        raise BadValue(
            f"{where} takes an input of shape {tuple(features.shape)} for {num} samples, not one row a sample: "
            "name a layer before it."
        )
    return features.flatten(1)
