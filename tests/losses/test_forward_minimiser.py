"""Forward's theorem as an optimiser sees it: from anywhere, on noisy labels alone, to the clean posterior."""

import pytest
import torch
from test_every_loss import CLASSES, LOSSES, PROPER

from noisylightning.corrections import ForwardCorrection


@pytest.mark.parametrize("name", sorted(PROPER))
@pytest.mark.parametrize("seed", range(3))
def test_optimisation_finds_the_clean_posterior(name, seed):
    """Theorem 2 of Patrini et al. (2017): a free table of logits, trained on the noisy posterior of random T."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    transition = 0.4 * draw(CLASSES, CLASSES).softmax(1) + 0.6 * torch.eye(CLASSES, dtype=torch.float64)
    clean = draw(8, CLASSES).softmax(1)
    forward = ForwardCorrection(transition, loss=LOSSES[name](reduction="sum"))
    table = (2 * draw(8, CLASSES)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [table], max_iter=3000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        risk = forward(table, clean @ transition)
        risk.backward()
        return risk

    optimizer.step(closure)
    torch.testing.assert_close(table.softmax(1).detach(), clean, rtol=0, atol=1e-5)
