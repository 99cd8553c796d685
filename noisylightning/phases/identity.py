"""Say as plain data which callable it is, so that a checkpoint can tell it from another."""

import zlib
from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor

from noisylightning.errors import BadValue


def identify(value: Any) -> Any:
    """Return plain data that is the same in every process for the same setting, and loads with ``weights_only``.

    A function, a method and a class go by their qualified names, lambdas of one function by the same one; a
    :func:`functools.partial` by its function, arguments and keywords; another object by the name of its class and its
    public attributes that are plain; a tensor by its values' checksum.

    Args:
        value: A callable, or what one is made from.

    Example:
        >>> from functools import partial
        >>> from noisylightning import AnchorEstimator
        >>> identify(AnchorEstimator)
        'noisylightning.estimators.anchor.AnchorEstimator'
        >>> identify(partial(AnchorEstimator, quantile=0.9))["keywords"]
        {'quantile': 0.9}
    """
    if _is_plain(value):
        return value
    if isinstance(value, list | tuple):
        return [identify(item) for item in value]
    if isinstance(value, dict):
        return {str(name): identify(item) for name, item in value.items()}
    if isinstance(value, partial):
        return {
            "function": identify(value.func),
            "arguments": identify(value.args),
            "keywords": identify(value.keywords),
        }
    if isinstance(value, Tensor):
        values = value.detach().cpu().double().contiguous().numpy()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "checksum": zlib.crc32(values.tobytes())}
    if isinstance(value, MethodType) and not isinstance(value.__self__, type):
        return {"method": value.__func__.__qualname__, "of": identify(value.__self__)}
    if hasattr(value, "__qualname__"):  # a function or a class
        return f"{value.__module__}.{value.__qualname__}"
    attributes = getattr(value, "__dict__", {}).items()
    plain = {name: item for name, item in attributes if not name.startswith("_") and _is_plain(item)}
    return {"class": identify(type(value)), **plain}


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def require_same_arguments(name: str, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise unless a callback has the arguments that the fit to resume was begun with.

    Args:
        name: The callback's name.
        saved: The arguments that the checkpoint keeps, as plain data.
        mine: Those of the callback at hand.

    Raises:
        ValueError: If one of them is another.
    """
    for argument, value in saved.items():
        if value != mine.get(argument):
            raise BadValue(
                f"The checkpoint was written with {name}({argument}={value!r}), but this one has"
                f" {argument}={mine.get(argument)!r}: resume with the same arguments, or start a new fit."
            )
