"""Bring together what the processes of a run have predicted: each sample once, in the order of the data set."""

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.predictions.record import ROWS, Predictions


def gather(predictions: Predictions, size: int = ROWS) -> Iterator[Predictions]:
    """Yield the predictions of all processes, batch by batch, in the order of their ``index``.

    Every process must take every batch. Shares may be uneven; a sample that several processes have comes once.

    Args:
        predictions: This process's share; all of one form.
        size: Samples in a batch.

    Yields:
        Batches, the same on every process.

    Raises:
        ValueError: If the index of a sample is unknown.

    Example:
        >>> share = Predictions(torch.zeros(3, 2), torch.tensor([0, 1, 1]), index=torch.tensor([5, 2, 5]))
        >>> [batch.index for batch in gather(share)]
        [tensor([2, 5])]
    """
    fields = {name: value for name, value in vars(predictions).items() if isinstance(value, Tensor)}
    for rows in gather_rows(fields, size):
        yield Predictions(**rows, class_names=predictions.class_names)


def gather_rows(columns: Mapping[str, Tensor], size: int = ROWS) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of all processes in the order of the column ``index``; see :func:`gather`.

    Args:
        columns: Tensors by name, with a row for each sample of this process's share; one of them is ``index``.
        size: Rows in a batch.

    Yields:
        The same columns.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if _many() else (1, 0)
    counts = _counts(len(columns["index"]), world)
    device = columns["index"].device
    index = _all_rows(columns["index"], counts).cpu()
    if (index < 0).any():
        raise BadValue("Predictions of samples whose index is unknown (-1) cannot be brought into an order.")
    owner = torch.arange(world).repeat_interleave(torch.tensor(counts))
    place = torch.cat([torch.arange(count) for count in counts])
    order = index.argsort(stable=True)
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = index[order][1:] != index[order][:-1]
    for batch in order[first].split(size):
        owners = owner[batch]
        own = place[batch][owners == rank].to(device)
        shares = owners.bincount(minlength=world).tolist()
        # The rows come process by process; each goes where its sample stands in the batch.
        back = owners.argsort(stable=True).argsort().to(device)
        yield {name: _all_rows(column[own], shares)[back] for name, column in columns.items()}


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _counts(own: int, world: int) -> list[int]:
    if world == 1:
        return [own]
    counts: list[int] = [0] * world
    dist.all_gather_object(counts, own)
    return counts


def _all_rows(own: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all processes, one process after the other, where process r has ``counts[r]``."""
    if len(counts) == 1:
        return own
    # NCCL talks between GPUs alone, gloo takes few dtypes: rows travel as bytes, padded to one length.
    wire = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    row = own.new_empty(max(counts), *own.shape[1:])
    row[: len(own)] = own
    sent = row.to(wire).reshape(len(row), -1).contiguous().view(torch.uint8)
    received = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(received, sent)
    rows = torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])
    return rows.view(own.dtype).reshape(-1, *own.shape[1:]).to(own.device)
