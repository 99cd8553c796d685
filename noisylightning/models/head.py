"""A network in two: the head that decides, and the encoder before it."""

from torch import nn

from noisylightning.errors import BadValue
from noisylightning.models.features import _find_layer


def head_of(network: nn.Module, head: str | None = None) -> nn.Module:
    """Return the head of a network.

    Args:
        network: Any network.
        head: Its name in ``network.named_modules()``; by default the last ``nn.Linear`` there.

    Raises:
        ValueError: If the network has no ``nn.Linear``, or no layer of that name.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> head_of(network)
        Linear(in_features=5, out_features=3, bias=True)
    """
    return _find_layer(network, head)[1]


def encoder_parameters(network: nn.Module, head: str | None = None) -> list[nn.Parameter]:
    """Return the parameters that are not the head's.

    Args:
        network: Any network.
        head: Name of its head, see :func:`head_of`.

    Raises:
        ValueError: As :func:`head_of`; if the network is nothing but a head.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> [tuple(parameter.shape) for parameter in encoder_parameters(network)]
        [(5, 4), (5,)]
    """
    own = {id(parameter) for parameter in head_of(network, head).parameters()}
    found = [parameter for parameter in network.parameters() if id(parameter) not in own]
    if not found:
        raise BadValue(
            f"{type(network).__name__} has no parameters before its head, so there is no encoder to train otherwise:"
            " leave encoder_lr and HeadFirst out, or name a smaller head (head_layer)."
        )
    return found


def encoder_modules(network: nn.Module, head: str | None = None) -> list[nn.Module]:
    """Return the largest parts of a network in which its head is not.

    Args:
        network: Any network.
        head: Name of its head, see :func:`head_of`.

    Raises:
        ValueError: As :func:`head_of`.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        >>> encoder_modules(nn.Sequential(encoder, nn.Linear(5, 3))) == [encoder]
        True
    """
    return _without(network, head_of(network, head))


def _without(network: nn.Module, head: nn.Module) -> list[nn.Module]:
    if network is head:
        return []
    if all(module is not head for module in network.modules()):
        return [network]
    return [part for child in network.children() for part in _without(child, head)]
