"""T, the transition matrix: one type for every kind of it; matrices to build, check, compare and load."""

from noisylightning.transition.base import Transition
from noisylightning.transition.build import (
    CIFAR10_FLIPS,
    CIFAR100_SUPERCLASSES,
    MNIST_FLIPS,
    binary_asymmetric,
    cifar10_asymmetric,
    cifar100_asymmetric,
    cifar100_flips,
    from_flips,
    mnist_asymmetric,
    pairflip,
    symmetric,
)
from noisylightning.transition.check import (
    condition_number,
    invert_transition,
    relative_l1_error,
    validate_transition,
)
from noisylightning.transition.closed_form import SymmetricTransition
from noisylightning.transition.dense import DenseTransition, as_transition
from noisylightning.transition.grouped import GroupedTransition
from noisylightning.transition.learnt import (
    LearntTransition,
    NoiseAdaptation,
    TotalVariation,
    TransitionRevision,
    VolumeMinimization,
)
from noisylightning.transition.load import load_transition
from noisylightning.transition.low_rank import LowRankTransition
from noisylightning.transition.part_dependent import PartDependentTransition
from noisylightning.transition.sparse import BlockDiagonalTransition, SparseTransition
from noisylightning.transition.structured import StructuredTransition
from noisylightning.transition.trusted import IdentityForTrusted

__all__ = [
    "CIFAR10_FLIPS",
    "CIFAR100_SUPERCLASSES",
    "MNIST_FLIPS",
    "BlockDiagonalTransition",
    "DenseTransition",
    "GroupedTransition",
    "IdentityForTrusted",
    "LearntTransition",
    "LowRankTransition",
    "NoiseAdaptation",
    "PartDependentTransition",
    "SparseTransition",
    "StructuredTransition",
    "SymmetricTransition",
    "TotalVariation",
    "Transition",
    "TransitionRevision",
    "VolumeMinimization",
    "as_transition",
    "binary_asymmetric",
    "cifar10_asymmetric",
    "cifar100_asymmetric",
    "cifar100_flips",
    "condition_number",
    "from_flips",
    "invert_transition",
    "load_transition",
    "mnist_asymmetric",
    "pairflip",
    "relative_l1_error",
    "symmetric",
    "validate_transition",
]
