"""The classes that an option takes by their bare names, and the nearest to a misspelt one."""

import importlib
import inspect
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import NamedTuple

import pytorch_lightning.callbacks
import pytorch_lightning.loggers
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from pytorch_lightning.loggers import Logger

import noisylightning
import noisylightning.corrections
import noisylightning.data
import noisylightning.losses
import noisylightning.models
import noisylightning.transition
from noisylightning.corrections import Correction
from noisylightning.data import LabelNoise, TextEncoder
from noisylightning.estimators import TransitionEstimator
from noisylightning.losses import Loss
from noisylightning.transition import Transition


class Kind(NamedTuple):
    """What an option takes.

    Attributes:
        base: It takes the subclasses of this,
        rooms: of which these modules make known; ours first.
        first: The argument that is not the user's to give.
    """

    base: type
    rooms: tuple[ModuleType, ...]
    first: str | None = None


KINDS = {
    "model": Kind(LightningModule, (noisylightning,)),
    "data": Kind(LightningDataModule, (noisylightning.data,)),
    "backbone": Kind(torch.nn.Module, (noisylightning.models,)),
    "correction": Kind(Correction, (noisylightning, noisylightning.corrections)),
    "loss": Kind(Loss, (noisylightning.losses,)),
    "noise": Kind(LabelNoise, (noisylightning.data,)),
    "encoder": Kind(TextEncoder, (noisylightning.data,)),
    "estimator": Kind(TransitionEstimator, (noisylightning,), "num_classes"),
    "callbacks": Kind(Callback, (noisylightning, pytorch_lightning.callbacks)),
    "logger": Kind(Logger, (pytorch_lightning.loggers,)),
    "transition": Kind(Transition, (noisylightning.transition,)),
    "optimizer": Kind(torch.optim.Optimizer, (torch.optim,), "params"),
    "lr_scheduler": Kind(torch.optim.lr_scheduler.LRScheduler, (torch.optim.lr_scheduler,), "optimizer"),
}
"""By the last part of an option's name: ``noise`` of ``--data.noise``."""


def kind_of(option: str) -> Kind | None:
    """Return what an option takes, for example ``data.noise``; None where it takes no class."""
    return KINDS.get(option.rpartition(".")[2].rstrip("+"))


def classes_of(kind: Kind) -> dict[str, type]:
    """Return the classes by the names they go by: bare, or their import paths where a name is not theirs alone.

    Example:
        >>> list(classes_of(KINDS["correction"]))
        ['BackwardCorrection', 'ForwardCorrection', 'ImportanceReweighting', 'NoCorrection']
    """
    found: dict[type, str] = {}
    for room in kind.rooms:
        for name in getattr(room, "__all__", dir(room)):
            thing = getattr(room, name)
            if inspect.isclass(thing) and issubclass(thing, kind.base) and _can_be_made(thing, kind.base):
                found.setdefault(thing, f"{room.__name__}.{name}")
    bearers = Counter(thing.__name__ for thing in _subclasses(kind.base))
    return {path if bearers[thing.__name__] > 1 else thing.__name__: thing for thing, path in found.items()}


def _can_be_made(thing: type, base: type) -> bool:
    return not inspect.isabstract(thing) and (thing is not base or base is TextEncoder)


def _subclasses(base: type) -> set[type]:
    """Return the public subclasses, whoever wrote them."""
    found: set[type] = set()
    waiting = [base]
    while waiting:
        thing = waiting.pop()
        if thing not in found:
            found.add(thing)
            waiting += thing.__subclasses__()
    return {thing for thing in found if "<locals>" not in thing.__qualname__ and "._" not in thing.__module__}


def import_class(path: str) -> type:
    """Return the class that ``package.module.Class`` names."""
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return what was probably meant.

    Example:
        >>> nearest("DigitDataModule", classes_of(KINDS["data"]))
        'DigitsDataModule'
    """
    by_last_part = {known.rpartition(".")[2].lower(): known for known in names}
    close = get_close_matches(name.rpartition(".")[2].lower(), by_last_part, n=1)
    return by_last_part[close[0]] if close else None
