"""Training on mixed samples: Mixup and CutMix as callbacks."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from noisylightning.callbacks.memorisation import MemorisationStopping, correction_of
from noisylightning.errors import BadType, BadValue
from noisylightning.functional.mixing import cutmix, cutmix_box, mix_labels, mixup, pair_alike
from noisylightning.internals import before_training_steps, callbacks
from noisylightning.phases import Fit, Memory, RunPhases, trusted_in
from noisylightning.phases.identity import require_same_arguments

# torchvision.transforms.v2 has both, but draws from the global random state, takes images alone, which features are
# not, and pairs neighbours of the batch.


class Mixing(Callback):
    """What Mixup and CutMix share: when they mix, what they draw, and the labels.

    A subclass defines :meth:`mix`.

    Args:
        alpha: The share of a batch's samples that stays is drawn from ``Beta(alpha, alpha)``.
        probability: Share of the batches that are mixed.
        stage_one: Whether to mix as long as there is no T-hat too: in stage one and in the networks that refine it.
        seed: Seed of all draws.

    Raises:
        ValueError: If an argument is out of bounds; when the fit starts, if something in it cannot be mixed, or a
            checkpoint to resume from was written with other arguments; at a batch, if its samples cannot be mixed.
        TypeError: At a batch, if its inputs are no tensor of floating dtype.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0, stage_one: bool = False, seed: int = 0) -> None:
        if not 0 < alpha < math.inf:
            raise BadValue(
                f"{type(self).__name__}'s alpha must be positive and finite, got {alpha}: 1 draws all shares equally."
            )
        if not 0 < probability <= 1:
            raise BadValue(
                f"{type(self).__name__}'s probability must lie in (0, 1], got {probability}: it is the share of batches"
                " that are mixed."
            )
        self.alpha = alpha
        self.probability = probability
        self.stage_one = stage_one
        self.seed = seed
        self._batch_idx = 0
        self._num_classes = 0
        self._labels_checked = False
        self._rehearsed = False  # with the first batch, so that what cannot be mixed shows before stage two
        self._undo: Callable[[], None] | None = None

    @abstractmethod
    def mix(self, inputs: Tensor, partners: Tensor, share: float, draws: np.random.Generator) -> tuple[Tensor, float]:
        """Mix the inputs of a batch.

        Args:
            inputs: Samples, floating, shape ``(N, ...)``.
            partners: Place of each sample's partner in the batch, int64, shape ``(N,)``.
            share: How much of a sample is to stay.
            draws: Where further draws come from, the same on every process.

        Returns:
            The mixed samples, and how much of a sample has stayed, which its label's weight will be.
        """

    # What cannot be mixed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be mixed, before any work is done."""
        if stage != "fit":
            return
        name = type(self).__name__
        for peer in callbacks(trainer):
            if isinstance(peer, Mixing) and peer is not self:
                raise BadValue(f"{name} and {type(peer).__name__} would mix the same batches: give one of them.")
            if isinstance(peer, MemorisationStopping):
                raise BadValue(
                    f"MemorisationStopping watches the accuracy on training labels, which {name} mixes: leave one of"
                    " them out, or stop early by noisy validation data."
                )
        correction = correction_of(trainer, pl_module)
        if correction is None:
            return
        if correction.loss.needs_index:
            raise BadValue(
                f"{type(correction.loss).__name__} remembers what the network says of each sample, and a mixed sample"
                f" is none of them: choose another loss, or leave {name} out."
            )
        if correction.T is not None and not correction.T.is_class_conditional:
            raise BadValue(
                f"{type(correction.T).__name__} is another T for each sample, and a mixed sample has none: choose one T"
                f" for all samples, or leave {name} out."
            )

    def _mixable(self, batch: Any) -> Any:
        """Return the batch; raise unless it has inputs and labels that can be mixed."""
        name = type(self).__name__
        if not isinstance(batch, list | tuple) or not all(isinstance(part, Tensor) for part in batch[:2]):
            raise BadType(f"{name} mixes batches (inputs, labels) of tensors, got a {type(batch).__name__} of others.")
        inputs, labels, *_ = batch
        if not inputs.is_floating_point():
            raise BadType(
                f"{name} cannot mix inputs of {inputs.dtype}: mix what an encoder makes of them, or leave {name} out."
            )
        if labels.is_floating_point() or not (labels.is_cpu or not self._labels_checked):
            return batch
        wrong = labels[(labels < 0) | (labels >= self._num_classes)]
        if len(wrong):
            raise BadValue(
                f"{name} met the label {int(wrong[0])}, which is none of the {self._num_classes} classes: leave samples"
                " without a label out of the training data."
            )
        self._labels_checked = True  # once on an accelerator, where looking waits
        return batch

    # Mixing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Come between batches and training steps."""
        memory = Memory(correction=correction_of(trainer, pl_module))
        self._num_classes = Fit(trainer, pl_module, memory).num_classes
        self._undo = before_training_steps(pl_module, lambda batch: self._mixed(trainer, batch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Know which batch comes."""
        self._batch_idx = batch_idx

    def _mixed(self, trainer: Trainer, batch: Any) -> Any:
        # All that is drawn depends on the batch's place in the fit alone, so that a resumed fit draws it again.
        place = [self.seed % 2**64, trainer.current_epoch, self._batch_idx]
        draws = np.random.default_rng([*place, 0])
        mixes = draws.random() < self.probability and self._is_active(trainer)
        if self._rehearsed and not mixes:
            return batch
        inputs, labels, *rest = self._mixable(batch)
        # Each process pairs the samples that it has.
        own_draws = np.random.default_rng([*place, 1, trainer.global_rank])
        partners = torch.from_numpy(own_draws.permutation(len(inputs))).to(inputs.device)
        trusted = trusted_in(batch)
        if trusted is not None:
            partners = pair_alike(partners, trusted)
        mixed, share = self.mix(inputs, partners, draws.beta(self.alpha, self.alpha), draws)
        labels = mix_labels(labels, partners, share, self._num_classes)
        self._rehearsed = True
        return (mixed, labels, *rest) if mixes else batch

    def _is_active(self, trainer: Trainer) -> bool:
        if self.stage_one:
            return True
        return not any(isinstance(peer, RunPhases) and peer.awaits_transition for peer in callbacks(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.on_train_end(trainer, pl_module)

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments, which a resumed fit must agree on."""
        return {name: getattr(self, name) for name in ("alpha", "probability", "stage_one", "seed")}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with other arguments."""
        if trainer.state.fn != "fit":
            return
        saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
        require_same_arguments(type(self).__name__, saved, self.state_dict())


class Mixup(Mixing):
    """Train on samples mixed in pairs, ``share * x + (1 - share) * x'``, with labels mixed alike.

    Zhang et al. (2018, ICLR). Every batch is mixed with a permutation of itself, with one share for all, as in the
    paper. A network that is to be linear between samples finds it hard to learn single labels by heart, wrong ones too.
    It works with every loss and correction but those that know a sample by its index, on images and on features.

    With EstimateTransitionCallback it mixes from the estimate of T on, so in stage two: a network that was trained on
    mixed samples is less sure, and T is estimated from what networks are sure of. Estimation, validation and testing
    see no mixed sample. ``train_accuracy`` then compares with the label that has the larger part of the mixed sample,
    and ``train_memorised`` and its like, which count single labels, are not logged.

    On several processes the share of a batch is the same on all, and each pairs the samples that it has.

    Args:
        alpha: The share is drawn from ``Beta(alpha, alpha)``: small alphas leave most samples nearly alone, 1 mixes
            evenly, large ones mix half and half.
        probability: Share of the batches that are mixed.
        stage_one: Whether to mix as long as there is no T-hat too: in stage one and in the networks that refine it.
        seed: Seed of all draws.

    Raises:
        ValueError: If an argument is out of bounds; when the fit starts, if the loss or T knows samples by their index,
            or a checkpoint to resume from was written with other arguments; at a batch, if a label is no class.
        TypeError: At a batch, if its inputs are no tensor of floating dtype.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[Mixup(alpha=0.4)], logger=False, enable_checkpointing=False)
    """

    def mix(self, inputs: Tensor, partners: Tensor, share: float, draws: np.random.Generator) -> tuple[Tensor, float]:
        """Mix, see :func:`~noisylightning.functional.mixup`."""
        return mixup(inputs, partners, share), share


class CutMix(Mixing):
    """Train on images with a rectangle of another one pasted over, with labels mixed as the areas are.

    Yun et al. (2019, ICCV). In all else as :class:`Mixup`.

    Args:
        alpha: The share of an image that stays is drawn from ``Beta(alpha, alpha)``; the paper uses 1.
        probability: Share of the batches that are mixed; the paper mixes half of them on CIFAR, all on ImageNet.
        stage_one: Whether to mix as long as there is no T-hat too: in stage one and in the networks that refine it.
        seed: Seed of all draws.

    Raises:
        ValueError: As :class:`Mixup`; at a batch, if its inputs are no images ``(N, channels, H, W)``.
        TypeError: As :class:`Mixup`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[CutMix(probability=0.5)], logger=False, enable_checkpointing=False)
    """

    def mix(self, inputs: Tensor, partners: Tensor, share: float, draws: np.random.Generator) -> tuple[Tensor, float]:
        """Paste, see :func:`~noisylightning.functional.cutmix`."""
        if inputs.ndim != 4:
            raise BadValue(
                f"CutMix pastes rectangles of images (N, channels, height, width), got inputs of shape"
                f" {tuple(inputs.shape)}: use Mixup."
            )
        height, width = inputs.shape[2:]
        box, share = cutmix_box(height, width, share, (draws.random(), draws.random()))
        return cutmix(inputs, partners, box), share
