"""What ``noisylightning predict`` leaves: a file of the predicted classes and their probabilities."""

import importlib.util
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning import internals
from noisylightning.errors import BadType, BadValue
from noisylightning.predictions.files import Rows, check_suffix, write_rows
from noisylightning.predictions.gather import gather_rows
from noisylightning.run_folder import run_folder


class PredictionWriter(BasePredictionWriter):
    """Write p(clean | x), which ``predict_step`` returns, to one file; each sample once, on one process or many.

    A row holds the ``index`` of the sample in its data set; its ``label`` where batches carry one, by name; the most
    probable class, ``predicted``, by name; and the C probabilities: in a ``.parquet`` file a column ``p(NAME)`` for
    each class, in a ``.npz`` file one array ``clean_probs`` of shape ``(N, C)``, with the ``class_names`` beside it.
    Names are those of the data module's ``class_names``; the classes' numbers where it has none.

    Each process keeps its own share in memory until the pass is over; the first then writes the file, a part at a time.

    Args:
        output: The file, ``.npz`` or ``.parquet``; by default ``predictions.parquet`` in the run's folder,
            or ``predictions.npz`` where pyarrow is not installed.

    Attributes:
        path: The file that was written; None before.

    Raises:
        ValueError: If ``output`` ends otherwise; while predicting, if there are several loaders, or a batch has another
            number of predictions than samples.

    Example:
        >>> writer = PredictionWriter("predictions.npz")
    """

    def __init__(self, output: str | Path | None = None) -> None:
        super().__init__("batch")
        self.output = None if output is None else check_suffix(output)
        self.path: Path | None = None
        self._parts: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        if trainer.predict_loop.num_dataloaders != 1:
            raise BadValue(
                f"PredictionWriter writes the predictions of one loader, but there are"
                f" {trainer.predict_loop.num_dataloaders}: predict on one at a time."
            )
        self._parts = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep one batch."""
        if not isinstance(prediction, Tensor) or prediction.ndim != 2 or not prediction.is_floating_point():
            raise BadType(
                f"PredictionWriter writes what {type(pl_module).__name__}.predict_step returns, p(clean | x) of shape"
                f" (N, C), but it returned a {type(prediction).__name__}"
                f"{f' of shape {tuple(prediction.shape)}' if isinstance(prediction, Tensor) else ''}."
            )
        if batch_indices is None or len(batch_indices) != len(prediction):
            raise BadValue(
                f"PredictionWriter cannot tell which samples {len(prediction)} predictions belong to: let predict_step"
                " return one row a sample, and predict from a DataLoader over a map-style data set."
            )
        probs = prediction.to("cpu", torch.promote_types(prediction.dtype, torch.float32))
        rows = {"index": torch.as_tensor(batch_indices), "probs": probs}
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if isinstance(labels, Tensor) and labels.shape == (len(prediction),) and labels.dtype == torch.int64:
            rows["label"] = labels.cpu()
        self._parts.append(rows)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather all processes' shares and write the file."""
        path = self._path(trainer)
        own = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        self._parts = []
        num_classes = own["probs"].shape[1]
        names = list(map(str, internals.data_attribute(trainer, "class_names") or range(num_classes)))
        if len(names) != num_classes:
            raise BadValue(f"The network predicts {num_classes} classes, but the data has {len(names)} class_names.")
        parts = (_columns(rows, names, path.suffix) for rows in gather_rows(own))
        if trainer.is_global_zero:
            write_rows(path, parts, names)
        else:
            deque(parts, maxlen=0)  # every process takes part in every batch
        self.path = path
        rank_zero_info(f"Predictions saved as {path}.")

    def _path(self, trainer: Trainer) -> Path:
        folder = run_folder(trainer)  # a collective: every process asks
        if self.output is not None:
            return self.output
        suffix = "parquet" if importlib.util.find_spec("pyarrow") else "npz"
        return folder / f"predictions.{suffix}"


def _columns(rows: dict[str, Tensor], names: list[str], suffix: str) -> Rows:
    """Make what stands in the file."""
    by_name, probs = np.array(names), rows["probs"].numpy()
    columns = {"index": rows["index"].numpy()}
    if "label" in rows:
        label = rows["label"].numpy()
        columns["label"] = np.where(label < 0, "", by_name[label])  # a sample without a label
    columns["predicted"] = by_name[probs.argmax(axis=1)]
    if suffix == ".npz":
        return {**columns, "clean_probs": probs}
    return {**columns, **{f"p({name})": probs[:, i] for i, name in enumerate(names)}}
