"""Transition matrices with structure: memory and time follow the structure, never ``C`` squared."""

from noisylightning.structured.base import Transition
from noisylightning.structured.low_rank import LowRankTransition
from noisylightning.structured.sparse import BlockDiagonalTransition, SparseTransition
from noisylightning.structured.symmetric import SymmetricTransition

__all__ = [
    "BlockDiagonalTransition",
    "LowRankTransition",
    "SparseTransition",
    "SymmetricTransition",
    "Transition",
]
