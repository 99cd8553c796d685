"""What a checkpoint holds of the data that its network was trained on."""

import inspect
import pickle
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule

from noisylightning.errors import BadValue, NoSuchFile

if TYPE_CHECKING:
    from typing_extensions import Self


def read_data_state(path: str | Path, data_module: str) -> dict[str, Any]:
    """Read what a data module put into a checkpoint, without running any code that the file may hold.

    Args:
        path: A checkpoint of Lightning's.
        data_module: Name of the data module's class.

    Returns:
        Its ``state_dict()``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or one of another data module.
    """
    if not Path(path).is_file():
        raise NoSuchFile(f"There is no checkpoint {path}; correct ckpt_path (--ckpt_path).")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint[data_module]
    except (KeyError, TypeError):
        raise BadValue(
            f"The checkpoint {path} was made without a {data_module}; use the data module that it was trained with."
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(" .")
        raise BadValue(f"{path} cannot be read as a checkpoint ({reason}); correct ckpt_path (--ckpt_path).") from error
    return dict(state)


def complete_arguments(class_path: str, arguments: MutableMapping[str, Any], path: str | Path) -> None:
    """Give a data module's arguments that were left out the values that its checkpoint was trained with.

    A checkpoint says, for example, which classes the training table named, so that the table need not be there to test
    or to predict.

    Args:
        class_path: The data module's class, with or without its package.
        arguments: Its arguments by name; those that are None are filled in where the checkpoint knows them.
        path: The checkpoint; one without a word on this data module is left alone.
    """
    try:
        state = read_data_state(path, class_path.rpartition(".")[2])
    except BadValue:
        return
    for name, value in state.get("arguments", {}).items():
        if name in arguments and arguments[name] is None:
            arguments[name] = value


class CheckpointedDataModule(LightningDataModule):
    """A data module that puts what it read off the training data into every checkpoint.

    Attributes:
        learnt_arguments: The arguments whose values may be read off the training data: lists of names.
    """

    learnt_arguments: ClassVar[tuple[str, ...]] = ("class_names",)

    @property
    def is_fitted(self) -> bool:
        """Whether all that test data need to be read is there; else the checkpoint or the training data give it."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was read off the training data, for the checkpoint: the names of the classes and the like."""
        if not self.is_fitted:
            return {}
        return {"arguments": {name: list(getattr(self, name)) for name in self.learnt_arguments if hasattr(self, name)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was made with these classes; Lightning calls this after :meth:`setup`.

        A subclass that learns more from the training data takes it over from the checkpoint, but where it has read
        training data of its own it refuses to.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it was not.
        """
        for name, theirs in state_dict.get("arguments", {}).items():
            own = list(getattr(self, name, theirs))
            if own != theirs:
                raise BadValue(
                    f"The checkpoint was made with the {name} {_few(theirs)}, but {type(self).__name__} has "
                    f"{_few(own)}: set {name} (--data.{name}) to the checkpoint's, or give its training data."
                )

    @classmethod
    def from_checkpoint(cls, path: str | Path, **arguments: Any) -> "Self":
        """Make the data module for a trained network, without the training data.

        Args:
            path: A checkpoint of a fit with this data module.
            arguments: Arguments of the class, for example a ``test_file``; those that the checkpoint knows, such as
                ``class_names``, can be left out.

        Returns:
            The data module, with what the checkpoint's was trained with.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no checkpoint, or one of another data module.
        """
        state = read_data_state(path, cls.__qualname__)
        accepted = inspect.signature(cls).parameters
        learnt = {name: value for name, value in state.get("arguments", {}).items() if name in accepted}
        data = cls(**learnt | arguments)
        data.load_state_dict(state)
        return data


def _few(names: Sequence[str], few: int = 8) -> str:
    shown = ", ".join(names[:few])
    return shown if len(names) <= few else f"{shown} ... ({len(names)})"
