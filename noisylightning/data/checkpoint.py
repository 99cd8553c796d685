"""What a checkpoint holds of the data that its network was trained on."""

import pickle
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from noisylightning.errors import BadValue, NoSuchFile


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
