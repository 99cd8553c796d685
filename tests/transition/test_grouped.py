"""A T for each group against a loop over the samples."""

import pytest
import torch

from noisylightning import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.functional import clean_log_posterior
from noisylightning.transition import GroupedTransition, symmetric


def grouped(groups=(0, 1, 1, 2, 0), classes=4):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.rand(3, classes, classes, generator=generator, dtype=torch.float64).add(0.1)
    return GroupedTransition(matrices / matrices.sum(dim=2, keepdim=True), torch.tensor(groups))


def samples(num=5, classes=4):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.arange(num) % classes, torch.tensor([4, 3, 2, 1, 0])[:num]


@pytest.mark.parametrize("correction", [ForwardCorrection, ImportanceReweighting])
def test_a_loss_is_that_of_each_sample_with_its_own_t(correction):
    transition, (logits, labels, index) = grouped(), samples()
    loss = correction(transition)(logits, labels, index)
    each = [
        correction(transition.matrices[transition.groups[i]])(logits[n : n + 1], labels[n : n + 1])
        for n, i in enumerate(index)
    ]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    found, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, torch.stack(each).mean()))
    torch.testing.assert_close(found, expected)


def test_the_noisy_posterior_is_p_t_of_each_sample():
    transition, (logits, _, index) = grouped(), samples()
    found = ForwardCorrection(transition).noisy_log_posterior(logits, index).exp()
    expected = torch.einsum("ni,nij->nj", logits.softmax(dim=1), transition.matrices[transition.groups[index]])
    torch.testing.assert_close(found, expected)


def test_bayes_rule_reads_its_columns():
    transition, (logits, labels, index) = grouped(), samples()
    found = clean_log_posterior(logits, labels, transition.at(None, index)).exp()
    assert found.sum(dim=1).allclose(torch.ones(5, dtype=torch.float64))


def test_as_a_whole_it_is_the_mean_over_the_samples():
    transition = grouped()
    torch.testing.assert_close(transition.to_dense(), transition.matrices[transition.groups].mean(dim=0))


def test_it_travels_in_a_state_dict():
    one, two = ForwardCorrection(grouped()), ForwardCorrection(grouped(groups=(2, 2, 0, 0, 1)))
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.T.groups, one.T.groups)


@pytest.mark.parametrize(
    ("matrices", "groups", "error", "message"),
    [
        (torch.eye(2), torch.tensor([0]), ValueError, r"of shape \(G, C, C\)"),
        (torch.ones(1, 2, 2), torch.tensor([0]), ValueError, "row"),
        (symmetric(2, 0.1)[None], torch.tensor([0, 1]), ValueError, "which of the 1 groups it is of"),
        (symmetric(2, 0.1)[None], torch.tensor([0.0]), TypeError, "groups must be int64"),
    ],
)
def test_bad_groups_are_refused(matrices, groups, error, message):
    with pytest.raises(error, match=message):
        GroupedTransition(matrices, groups)


def test_a_batch_without_index_and_a_backward_correction_are_refused():
    logits, labels, _ = samples()
    with pytest.raises(RuntimeError, match="set with_index=True in the data module"):
        ForwardCorrection(grouped())(logits, labels)
    with pytest.raises(TypeError, match="use it with ForwardCorrection or ImportanceReweighting"):
        BackwardCorrection(grouped())
