"""Whether models can be downloaded, found out at once and not after a minute of retries."""

import socket
from urllib.parse import urlparse
from urllib.request import getproxies


def is_offline() -> bool:
    """Whether the Hugging Face hub cannot be reached, or must not be (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if getproxies():  # which look names up themselves
        return False
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def reason_of(error: BaseException) -> str:
    r"""The first line of what an error says, shortened, without the full stop.

    Args:
        error: The error.

    Example:
        >>> reason_of(ValueError("no such thing.\nHere is a manual ..."))
        'no such thing'
    """
    lines = " ".join(str(error).split()) if isinstance(error, RuntimeError | KeyError) else str(error).strip()
    first = lines.splitlines()[0] if lines else type(error).__name__
    return first[:200].rstrip(" .")
