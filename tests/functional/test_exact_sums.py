import torch
from hypothesis import given
from hypothesis import strategies as st

from noisylightning.functional.exact_sums import from_fixed, to_fixed


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.randoms())
def test_order_and_grouping_do_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    half = len(values) // 2
    whole = to_fixed(torch.tensor(values)).sum()
    assert torch.equal(
        to_fixed(torch.tensor(shuffled[:half])).sum() + to_fixed(torch.tensor(shuffled[half:])).sum(), whole
    )
    assert abs(from_fixed(whole).item() - sum(values)) <= len(values) * 2**-37
