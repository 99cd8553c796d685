"""Memory that is kept for reuse."""

import ctypes
from types import SimpleNamespace

import pytest

from noisylightning.allocator import kept_for_reuse


class Library(SimpleNamespace):
    """A C library that takes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        super().__init__(
            mallopt=lambda *option: self.asked.append(option),
            malloc_trim=lambda pad: self.asked.append((pad,)),
            gnu_get_libc_version=None,
        )


def test_the_usual_comes_back_even_after_a_fault(monkeypatch):
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    during = []

    def fault():
        with kept_for_reuse():
            during.extend(library.asked)
            raise RuntimeError("fault")

    with pytest.raises(RuntimeError, match="fault"):
        fault()
    assert dict(during)[-4] == 0  # no buffer of its own mapping
    assert dict(library.asked[:-1])[-4] == 65536
    assert library.asked[-1] == (0,)


@pytest.mark.parametrize("missing", ["mallopt", "gnu_get_libc_version"])
def test_another_library_is_left_alone(monkeypatch, missing):
    library = Library()
    delattr(library, missing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with kept_for_reuse():
        pass
    assert library.asked == []


def test_without_any_library_nothing_happens(monkeypatch):
    def fail(name):
        raise OSError("none")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with kept_for_reuse():
        pass
