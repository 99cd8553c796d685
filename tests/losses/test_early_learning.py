"""Early-learning regularization: its state, and that the state survives."""

import copy
import datetime
import io
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from noisylightning.corrections import ForwardCorrection, NoCorrection
from noisylightning.losses import EarlyLearningRegularization

SAMPLES, CLASSES = 12, 3


def make(**kwargs):
    return EarlyLearningRegularization(SAMPLES, CLASSES, **kwargs).double()


def batches(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randperm(SAMPLES, generator=generator)[:5]
        logits = 3 * torch.randn(5, CLASSES, dtype=torch.float64, generator=generator)
        yield logits, torch.randint(CLASSES, (5,), generator=generator), index


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_several_epochs_agree_with_numpy():
    loss = make(strength=7.0, momentum=0.9, floor=0.01)
    average = np.zeros((SAMPLES, CLASSES))
    for logits, target, index in batches(20):
        p = softmax(logits.numpy())
        expected = []
        for row, label, sample in zip(p, target.tolist(), index.tolist(), strict=True):
            average[sample] = 0.9 * average[sample] + 0.1 * row
            inner = sum(min(max(p_k, 0.01), 0.99) * t_k for p_k, t_k in zip(row, average[sample], strict=True))
            expected.append(-np.log(row[label]) + 7 * np.log(1 - inner))
        assert loss(logits, target, index).item() == pytest.approx(np.mean(expected), rel=1e-12)
    np.testing.assert_allclose(loss.average.numpy(), average, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:EarlyLearningRegularization is not proper")
@pytest.mark.parametrize("correct", [NoCorrection, ForwardCorrection])
def test_one_sample_without_a_batch_is_a_batch_of_one(correct):
    alone, batched = (correct(torch.eye(CLASSES, dtype=torch.float64), loss=make()) for _ in range(2))
    logits, target, index = next(batches(1))
    value = alone(logits[0], target[0], index[0])
    torch.testing.assert_close(value, batched(logits[:1], target[:1], index[:1]))
    torch.testing.assert_close(make()(logits[0], target[0], index[0]), make()(logits[:1], target[:1], index[:1]))
    torch.testing.assert_close(alone.loss.average, batched.loss.average)


def test_no_gradient_reaches_the_average():
    loss = make(strength=2.0, floor=0.0)
    logits, target, index = next(batches(1))
    logits.requires_grad_()
    loss(logits, target, index).backward()
    fixed = loss.average[index].clone()
    z = logits.detach().clone().requires_grad_()
    p = z.softmax(1)
    (-p.log().gather(1, target[:, None]).squeeze(1) + 2 * torch.log(1 - (p * fixed).sum(1))).mean().backward()
    torch.testing.assert_close(logits.grad, z.grad, rtol=1e-12, atol=1e-14)


def test_state_dict_resumes_to_the_bit():
    steps = list(batches(10))
    whole, first = make(), make()
    for step in steps[:4]:
        whole(*step), first(*step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make()
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in steps[4:]:
        assert whole(*step).item() == second(*step).item()
    assert torch.equal(whole.average, second.average)


def test_evaluation_is_cross_entropy_and_leaves_the_average():
    loss = make()
    logits, target, index = next(batches(1))
    loss(logits, target, index)
    before = loss.average.clone()
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(loss.eval()(logits, target), expected)
    torch.testing.assert_close(loss(logits, target, index), expected)
    assert torch.equal(loss.average, before)


def test_finite_when_the_network_has_long_been_certain():
    loss = EarlyLearningRegularization(1, 2)
    index, target = torch.tensor([0]), torch.tensor([1])
    for _ in range(200):
        logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
        value = loss(logits, target, index)
        value.backward()
        assert value.isfinite()
        assert logits.grad.isfinite().all()
    assert value.item() == pytest.approx(2e4 + 3 * math.log(1e-4), rel=1e-4)


def test_half_precision_and_soft_targets():
    loss = EarlyLearningRegularization(SAMPLES, CLASSES)
    logits, target, index = next(batches(1))
    twin = copy.deepcopy(loss)
    value = loss(logits.bfloat16(), target, index)
    soft = torch.nn.functional.one_hot(target, CLASSES).double()
    torch.testing.assert_close(value, twin(logits.bfloat16().double(), soft, index).float(), rtol=1e-5, atol=1e-5)
    assert value.dtype == loss.average.dtype == torch.float32


def test_compiles_in_one_graph():
    steps = list(batches(3))
    eager, traced = make(), make()
    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for step in steps:
        torch.testing.assert_close(compiled(*step), eager(*step), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(traced.average, eager.average, rtol=1e-12, atol=1e-12)


def _rank(rank, port, queue):
    wait = datetime.timedelta(seconds=120)  # for the other process, which first has to import
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    loss = make()
    for logits, target, index in batches(3):
        mine = slice(0, 3) if rank == 0 else slice(3, 5)  # shards of different sizes
        loss(logits[mine], target[mine], index[mine])
    queue.put((rank, loss.average.tolist()))
    dist.destroy_process_group()


def test_ranks_hold_the_averages_of_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    other = context.Process(target=_rank, args=(1, port, queue))
    other.start()
    _rank(0, port, queue)  # here, which spares an interpreter its imports
    other.join(120)
    assert other.exitcode == 0
    averages = dict(queue.get() for _ in range(2))
    alone = make()
    for step in batches(3):
        alone(*step)
    assert averages[0] == averages[1] == alone.average.tolist()


INDEX = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (
            torch.tensor([0, SAMPLES]),
            ValueError,
            "^index holds 12 but early-learning regularization knows 12 training samples, 0 to 11: set num_samples",
        ),
        (torch.tensor([-1, 0]), ValueError, "^index holds -1 but early-learning regularization knows 12"),
        (torch.tensor([0]), ValueError, r"^index has shape \(1,\) but there are 2 samples"),
        (torch.tensor([0.0, 1.0]), TypeError, "^index must be int64, got torch.float32"),
    ],
)
def test_bad_index(index, error, message):
    with pytest.raises(error, match=message):
        make()(torch.zeros(2, CLASSES), torch.tensor([0, 1]), index)


def test_missing_index():
    with pytest.raises(ValueError, match="needs the index of each sample in training mode"):
        make()(torch.zeros(2, CLASSES), torch.tensor([0, 1]))


def test_other_number_of_classes():
    with pytest.raises(ValueError, match=r"^logits have shape \(2, 5\) but the averages need \(N, 3\)"):
        make()(torch.zeros(2, 5), torch.tensor([0, 1]), INDEX)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, r"^num_samples must lie in \[1, inf\), got 0"),
        ({"num_classes": 1}, r"^num_classes must lie in \[2, inf\), got 1"),
        ({"strength": -1.0}, r"^strength must lie in \[0, inf\), got -1.0"),
        ({"momentum": 1.0}, r"^momentum must lie in \[0, 1\), got 1.0"),
        ({"floor": 0.5}, r"^floor must lie in \[0, 0.5\), got 0.5"),
    ],
)
def test_bad_hyper_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyLearningRegularization(**{"num_samples": 5, "num_classes": 3, **arguments})
