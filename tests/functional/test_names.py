from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisylightning.functional.names import (
    clean_priors,
    decide_names,
    exchangeable,
    name_rows,
    names_warning,
    same_up_to_names,
)
from noisylightning.transition import cifar10_asymmetric, from_flips, mnist_asymmetric, pairflip, symmetric

EXCHANGE = torch.tensor([0, 1, 2, 3, 4, 6, 5, 7, 8, 9])


def random_transition(num_classes, seed, zeros=0.0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num_classes, num_classes, generator=generator, dtype=torch.float64) ** 3
    values *= torch.rand(num_classes, num_classes, generator=generator) >= zeros
    values[torch.arange(num_classes), torch.randperm(num_classes, generator=generator)] += 0.05
    return values / values.sum(dim=1, keepdim=True)


def every_order(transition):
    """All permutations with the products of their diagonals."""
    orders = list(permutations(range(len(transition))))
    values = transition.numpy()
    return orders, [float(np.prod([values[row, name] for name, row in enumerate(order)])) for order in orders]


@given(size=st.integers(2, 6), seed=st.integers(0, 10**6), zeros=st.sampled_from([0.0, 0.3]))
def test_the_named_diagonal_has_the_largest_product_of_all_orders(size, seed, zeros):
    transition = random_transition(size, seed, zeros)
    _, products = every_order(transition)
    named = transition[name_rows(transition)]
    assert float(named.diagonal().prod()) == pytest.approx(max(products), rel=1e-8)


@given(size=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_the_order_of_the_rows_that_come_in_does_not_matter(size, seed):
    transition = random_transition(size, seed)
    shuffled = transition[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
    assert transition[name_rows(transition)].equal(shuffled[name_rows(shuffled)])
    assert exchangeable(transition) == exchangeable(shuffled)


@pytest.mark.parametrize("transition", [torch.full((4, 4), 0.25), symmetric(5, 0.8), pairflip(6, 0.5), torch.eye(3)])
def test_in_a_tie_the_rows_stay(transition):
    assert name_rows(transition).tolist() == list(range(len(transition)))


def test_where_no_order_has_a_product_the_fewest_zeros_win():
    transition = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert name_rows(transition)[0] == 2


@given(size=st.integers(2, 6), seed=st.integers(0, 10**6), threshold=st.sampled_from([0.05, 0.3, 0.9]))
def test_groups_are_those_of_all_orders_near_the_best(size, seed, threshold):
    transition = random_transition(size, seed, zeros=0.2)
    transition = transition[name_rows(transition)]
    orders, products = every_order(transition)
    together = np.eye(size, dtype=bool)
    for order, product in zip(orders, products, strict=True):
        if product > threshold * max(products):
            for name, row in enumerate(order):
                together[name, row] = together[row, name] = True
    for _ in range(size):
        together = together @ together
    groups = sorted({tuple(np.flatnonzero(row).tolist()) for row in together})
    assert exchangeable(transition, threshold) == [names for names in groups if len(names) > 1]


@pytest.mark.parametrize(
    ("transition", "groups"),
    [
        (mnist_asymmetric(0.6), [(5, 6)]),
        (mnist_asymmetric(0.6)[EXCHANGE], [(5, 6)]),
        (mnist_asymmetric(0.4), [(5, 6)]),
        (mnist_asymmetric(0.34), []),
        (mnist_asymmetric(0.2), []),
        (cifar10_asymmetric(0.6), [(3, 5)]),
        (pairflip(10, 0.45), []),
        (symmetric(10, 0.5), []),
        (torch.eye(10), []),
        (pairflip(3, 0.45), [(0, 1, 2)]),
        (torch.full((4, 4), 0.25), [(0, 1, 2, 3)]),
    ],
)
def test_it_names_exactly_the_classes_that_cannot_be_told_apart(transition, groups):
    assert exchangeable(transition) == groups
    smeared = 0.98 * transition + 0.02 / len(transition)  # an estimate has no zeros
    assert exchangeable(smeared) == groups


def test_a_thousand_classes_are_found_too():
    flips = {i: i ^ 1 for i in range(10)} | {i: i + 1 for i in range(500, 900, 2)}  # five pairs, and one-way flips
    found = exchangeable(0.99 * from_flips(1000, flips, 0.6) + 0.01 / 1000)
    assert found == [(i, i + 1) for i in range(0, 10, 2)]


@given(size=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_a_sparse_t_is_named_as_a_dense_one(size, seed):
    transition = 0.9 * random_transition(size, seed, zeros=0.5) + 0.1 * torch.eye(size)
    named, sparse = transition[name_rows(transition)], transition[name_rows(transition.to_sparse())]
    torch.testing.assert_close(sparse.diagonal().prod(), named.diagonal().prod())
    assert exchangeable(transition.to_sparse()) == exchangeable(transition)
    counts = torch.arange(1, size + 1)
    torch.testing.assert_close(
        clean_priors(transition.to_sparse(), counts), clean_priors(transition, counts), atol=1e-3, rtol=0
    )


def test_ten_thousand_classes_are_named_where_t_is_sparse():
    flips = {i: i ^ 1 for i in range(10)} | {i: i + 1 for i in range(10, 9999)}
    rows = torch.arange(10_000)
    others = torch.tensor([flips.get(i, i) for i in range(10_000)])
    entries = torch.stack([torch.cat([rows, rows]), torch.cat([rows, others])])
    values = torch.cat([torch.full((10_000,), 0.55), torch.full((10_000,), 0.45)])
    transition = torch.sparse_coo_tensor(entries, values, (10_000, 10_000), check_invariants=True).coalesce()
    assert exchangeable(transition) == [(i, i + 1) for i in range(0, 10, 2)]
    warning = names_warning(transition, torch.ones(10_000))
    assert "cannot tell apart 0 and 1; nor 2 and 3;" in warning


@given(size=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_estimates_that_agree_but_for_names_are_one(size, seed):
    transition = random_transition(size, seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    found = same_up_to_names(transition, transition[order], tolerance=1e-9)
    assert found is not None
    assert transition[order][found].equal(transition)


def test_estimates_that_do_not_agree_are_two():
    assert same_up_to_names(mnist_asymmetric(0.6), mnist_asymmetric(0.2), tolerance=0.1) is None
    near = 0.99 * mnist_asymmetric(0.6)[EXCHANGE] + 0.001
    assert same_up_to_names(mnist_asymmetric(0.6), near, tolerance=0.05).equal(EXCHANGE)


def posteriors(clean, names, share):
    """What a network says of samples of these classes whose outputs have these names."""
    p = torch.full((len(clean), 10), (1 - share) / 9, dtype=torch.float64)
    p[torch.arange(len(clean)), names.argsort()[clean]] = share
    return p.log()


@pytest.mark.parametrize("rate", [0.4, 0.6])
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("trusted", [[5], [6], [5, 6, 0, 9], [0, 1, 2, 5]])
def test_one_trusted_label_decides_the_names(rate, exchanged, trusted):
    true = mnist_asymmetric(rate)
    names = EXCHANGE if exchanged else torch.arange(10)
    clean = torch.tensor(trusted)
    permutation = decide_names(true[names], posteriors(clean, names, 0.7), clean)
    assert true[names][permutation].equal(true)


@pytest.mark.parametrize("transition", [mnist_asymmetric(0.6), mnist_asymmetric(0.6)[EXCHANGE]])
def test_trusted_labels_of_other_classes_change_nothing(transition):
    clean = torch.tensor([0, 1, 2, 3])
    decided = decide_names(transition, posteriors(clean, torch.arange(10), 0.7), clean)
    assert decided.equal(torch.arange(10))


def test_most_of_several_trusted_labels_decide():
    clean = torch.tensor([5, 5, 5])
    log_p = posteriors(torch.tensor([5, 6, 6]), torch.arange(10), 0.9)
    assert decide_names(mnist_asymmetric(0.4), log_p, clean).equal(EXCHANGE)


def test_certain_predictions_decide():
    clean = torch.tensor([6, 6])
    log_p = posteriors(torch.tensor([5, 5]), torch.arange(10), 1.0)  # log 0 where it is not certain
    assert decide_names(mnist_asymmetric(0.4), log_p, clean).equal(EXCHANGE)


@given(size=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_shares_of_classes_follow_from_shares_of_labels(size, seed):
    transition = 0.5 * random_transition(size, seed) + 0.5 * torch.eye(size)
    priors = random_transition(size, seed + 1)[0]
    torch.testing.assert_close(clean_priors(transition, 1000 * priors @ transition), priors)


def test_shares_are_none_negative_and_of_rows_that_are_alike_right_in_sum():
    priors = clean_priors(symmetric(3, 0.4), torch.tensor([0, 50, 50]))  # fewer labels 0 than T alone would make
    torch.testing.assert_close(priors, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    priors = clean_priors(from_flips(3, {0: 1, 1: 0}, 0.5), torch.tensor([30, 30, 40]))
    assert float(priors[:2].sum()) == pytest.approx(0.6)


def test_the_warning_names_classes_points_and_remedy():
    counts = 1000 * mnist_asymmetric(0.6).sum(dim=0)
    assert names_warning(mnist_asymmetric(0.6), counts) == (
        "Noisy labels cannot tell apart 5 and 6, on which up to 20.0 points of accuracy hang: their rows of T-hat may"
        " have to be exchanged; one trusted label of one of them decides it."
    )
    assert names_warning(mnist_asymmetric(0.2), counts) is None


def test_the_warning_tells_groups_apart():
    transition = from_flips(5, {0: 1, 1: 0, 2: 3, 3: 4, 4: 2}, rate=0.5)
    warning = names_warning(transition, torch.full((5,), 0.2), ["ape", "bee", "cat", "dog", "eel"])
    assert "cannot tell apart ape and bee; nor cat, dog and eel, on which up to 100.0 points" in warning


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: name_rows(torch.ones(2, 2)), "sums to 2, not to one"),
        (lambda: exchangeable(torch.eye(3), threshold=1.5), "threshold is a ratio .* got 1.5"),
        (lambda: same_up_to_names(torch.eye(3), torch.eye(2), 0.1), "is for 2 classes but 3 are expected"),
        (lambda: decide_names(torch.eye(3), torch.zeros(1, 3), torch.tensor([3])), "between 0 and 2, got 3"),
        (lambda: decide_names(torch.eye(3), torch.zeros(2, 3), torch.tensor([0])), r"\(M, 3\), got \(2, 3\)"),
        (lambda: clean_priors(torch.eye(3), torch.zeros(3)), r"some above 0, got shape \(3,\) and the sum 0"),
        (lambda: names_warning(torch.full((3, 3), 1 / 3), torch.ones(2)), r"needs a count a label.* got shape \(2,\)"),
    ],
)
def test_bad_input_stops_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()
