"""Labels of several annotators: what to train on of their answers, and what the answers say of the annotators."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisylightning.data._random import seeded_generator
from noisylightning.data.arrays import ArrayDataModule, array_in
from noisylightning.data.locations import default_data_dir
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.functional.crowd import DawidSkene, check_answers, dawid_skene

LabelBy = Literal["majority", "random", "each", "soft"]
_WAYS = ("majority", "random", "each", "soft")


class CrowdDataModule(ArrayDataModule):
    """Your own arrays, with the answers of several annotators in the place of labels.

    What a sample is, and its label, ``label_by`` says:

    - ``"majority"``: an item, with the answer that most gave; one of these where several are as many;
    - ``"random"``: an item, with one of its answers;
    - ``"each"``: an answer, so that an item comes once for each; training and validation share no item;
    - ``"soft"``: an item, with the probability of each class given its answers, by Dawid and Skene: a soft target.

    :attr:`crowd` is what the answers say by Dawid and Skene, :attr:`transition` the T of the labels in use that follows
    from it: ``KnownTransitionCallback`` gives it to the correction.

    Args:
        train: Inputs of shape (N, ...), the ``answers`` beside them; or both as a pair, or an ``.npz`` file of two
            arrays named ``inputs`` and ``answers``. Not needed to test or to predict a checkpoint.
        answers: Class numbers of shape (N, annotators), -1 where an annotator gave none; None where ``train`` holds
            them.
        label_by: ``"majority"``, ``"random"``, ``"each"`` or ``"soft"``.
        smoothing: As in :func:`~noisylightning.functional.dawid_skene`.
        class_names: Names of the C classes in the order of their numbers; by default 0 to the largest answer.
        noise_seed: Seed of the draw among answers.
        **kwargs: What :class:`ArrayDataModule` takes, but for ``labels`` and ``noise``.

    Attributes:
        items: After ``setup``, the item of each sample, int64; of ``"each"`` it says which are one item's.
        annotators: After ``setup`` with ``"each"`` or ``"random"``, who gave the label of each sample, int64.

    Raises:
        ValueError: If ``label_by`` is none of these, or the answers are none that labels can be made of.

    Example:
        >>> answers = torch.tensor([[0, 0, -1], [1, 1, 0]]).repeat(10, 1)
        >>> data = CrowdDataModule(torch.zeros(20, 4), answers, label_by="each", with_index=True)
        >>> data.setup("fit")
        >>> data.summary["train"], data.summary["validation"], data.annotators[:5]
        (46, 4, tensor([0, 1, 0, 1, 2]))
    """

    def __init__(
        self,
        train: Any = None,
        answers: Any = None,
        label_by: LabelBy = "majority",
        smoothing: float = 0.1,
        test: tuple[Any, Any] | str | Path | None = None,
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if label_by not in _WAYS:
            raise BadValue(
                f"label_by must be one of {', '.join(map(repr, _WAYS))}, got {label_by!r}: set label_by"
                " (--data.label_by)."
            )
        if kwargs.get("noise") is not None or kwargs.get("noisy_labels_file") is not None:
            raise BadValue(f"{type(self).__name__} has the noise of its annotators: leave noise (--data.noise) out.")
        if class_names is None:  # the classes must be known before the model is built
            self.train = train if answers is None else (train, answers)
            class_names = [str(c) for c in range(int(self._read_answers().max()) + 1)]
        super().__init__(train, answers, test, class_names=class_names, **kwargs)
        self.label_by = label_by
        self.smoothing = smoothing
        self.items = self.annotators = torch.empty(0, dtype=torch.int64)

    @cached_property
    def answers(self) -> Tensor:
        """The answers, int64 of shape (N, annotators), -1 where one gave none."""
        return check_answers(self._read_answers(), self.num_classes)

    @cached_property
    def crowd(self) -> DawidSkene:
        """What the answers say of items and annotators, see :func:`~noisylightning.functional.dawid_skene`."""
        return dawid_skene(self.answers, self.num_classes, smoothing=self.smoothing)

    @property
    def transition(self) -> Tensor | None:
        """T of the labels in use, by Dawid and Skene; None for soft labels, and before ``setup``."""
        if self._train is None or self.label_by == "soft":
            return None
        labels = self._train[1]
        found = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64)
        found.index_add_(1, labels.cpu(), self.crowd.soft_labels[self.items].mT)
        return (found / found.sum(dim=1, keepdim=True)).float()

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The samples that ``label_by`` makes of items and answers."""
        inputs, answers = self._inputs("train"), self.answers
        if len(inputs) != len(answers):
            raise BadValue(
                f"{type(self).__name__} has {len(inputs)} inputs and {len(answers)} rows of answers: give one row an"
                " input."
            )
        self.items = torch.arange(len(answers))
        if self.label_by == "each":
            self.items, self.annotators = (answers >= 0).nonzero().T
            return inputs[self.items], answers[self.items, self.annotators]
        if self.label_by == "soft":
            return inputs, self.crowd.soft_labels.to(torch.get_default_dtype())
        generator = seeded_generator("answers", self.noise_seed)
        if self.label_by == "random":
            drawn = torch.rand(answers.shape, generator=generator)
            self.annotators = drawn.masked_fill(answers < 0, -1).argmax(dim=1)
            return inputs, answers[self.items, self.annotators]
        item, annotator = (answers >= 0).nonzero().T
        votes = torch.zeros(len(answers), self.num_classes)
        votes.index_put_((item, answers[item, annotator]), torch.ones(()), accumulate=True)
        return inputs, (votes + torch.rand(votes.shape, generator=generator) / 2).argmax(dim=1)  # less than half a vote

    def split(self, num: int) -> tuple[Tensor, Tensor]:
        """Choose at random which items train and which validate, and so their samples.

        Args:
            num: Number of samples N.

        Returns:
            Places of the training and of the validation samples, int64.
        """
        _, validate = super().split(len(self.answers))
        validates = torch.isin(self.items, validate)
        return (~validates).nonzero().flatten(), validates.nonzero().flatten()

    def _checked(
        self, part: tuple[Any, Tensor], what: str, every_class: bool = False, unknown: bool = False
    ) -> tuple[Any, Tensor]:
        if part[1].is_floating_point():  # soft labels, of our own making
            return part
        return super()._checked(part, what, every_class and self.label_by == "each", unknown)

    def _read_answers(self) -> Tensor:
        if isinstance(self.train, str | Path):
            return torch.as_tensor(array_in(Path(self.train), "answers"))
        if not isinstance(self.train, tuple):
            raise BadValue(
                f"{type(self).__name__} has no answers: give answers, or a train file (--data.train) with inputs and"
                " answers; or test a checkpoint (--ckpt_path), which knows class_names."
            )
        return torch.as_tensor(np.asarray(self.train[1]))


class LabelMeDataModule(CrowdDataModule):
    """LabelMe's scenes as 59 people labelled them (Rodrigues and Pereira, AAAI 2018), 8 classes, 512 features each.

    1,000 images with 2.5 answers each to train and validate, 1,188 with right labels to test, and 500 with right labels
    that are the trusted samples. The features are those of a VGG network.

    Args:
        data_dir: Folder with ``labelme_crowd.npz``; ``$NOISYLIGHTNING_DATA`` or ``data`` where it is left out.
        label_by: As in :class:`CrowdDataModule`.
        smoothing: As in :class:`CrowdDataModule`.
        **kwargs: What every data module takes, but for ``noise``.

    Raises:
        FileNotFoundError: If the file is missing.

    Example:
        >>> data = LabelMeDataModule(label_by="each")  # doctest: +SKIP
    """

    num_classes = 8
    class_names = ("highway", "insidecity", "tallbuilding", "street", "forest", "coast", "mountain", "opencountry")
    num_features = 512

    def __init__(
        self,
        data_dir: str | Path | None = None,
        label_by: LabelBy = "majority",
        smoothing: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.path = (default_data_dir() if data_dir is None else Path(data_dir)) / "labelme_crowd.npz"
        super().__init__(None, None, label_by, smoothing, class_names=list(type(self).class_names), **kwargs)
        self.has_test = True

    def _inputs(self, part: str) -> Tensor:
        return torch.from_numpy(self._read(f"x_{part}")).to(torch.get_default_dtype())

    def _labels(self, part: str) -> Tensor:
        return torch.from_numpy(self._read(f"y_{part}")).long()

    def _read_answers(self) -> Tensor:
        return torch.from_numpy(self._read("answers"))

    def load_trusted(self) -> tuple[Tensor, Tensor]:
        """The 500 images with right labels."""
        return self._inputs("valid"), self._labels("valid")

    def true_labels(self) -> Tensor:
        """The right labels of the 1,000 items, which training never sees; for benchmarks."""
        return self._labels("train")

    def _read(self, name: str) -> Any:
        if not self.path.is_file():
            raise NoSuchFile(
                f"There is no {self.path}: set data_dir or NOISYLIGHTNING_DATA to the folder that holds it"
                " (--data.data_dir)."
            )
        return array_in(self.path, name)
