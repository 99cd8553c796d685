"""Where the published data sets lie."""

import os
from pathlib import Path


def default_data_dir() -> Path:
    """The folder that the environment variable ``NOISYLIGHTNING_DATA`` names, else ``data``.

    Example:
        >>> isinstance(default_data_dir(), Path)
        True
    """
    return Path(os.environ.get("NOISYLIGHTNING_DATA", "data"))
