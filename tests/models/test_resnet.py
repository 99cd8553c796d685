import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisylightning.models import CIFARResNet, ResNet34


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # He et al. (2016), table 6
def test_parameter_counts_of_the_paper(depth, millions):
    digits = 1 if depth == 110 else 2
    assert round(count(CIFARResNet(depth, 10)) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [14, 20, 32])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_depth_counts_weighted_layers(depth, shortcut):
    weighted = [m for m in CIFARResNet(depth, 10, shortcut).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    projections = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted) - len(projections) == depth
    assert len(projections) == (0 if shortcut == "A" else 2)


def test_shortcut_b_costs_two_projections():
    # A 1x1 convolution and a BatchNorm from 16 to 32 and from 32 to 64 channels.
    assert count(CIFARResNet(32, 10, "B")) - count(CIFARResNet(32, 10, "A")) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_option_a_is_the_subsampled_input_when_the_residual_is_zero():
    model = CIFARResNet(8, 10, "A").eval()
    block = model[4][0]
    for bn in (block.bn1, block.bn2):
        nn.init.zeros_(bn.weight)
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    out = block(x)
    assert out.shape == (2, 32, 4, 4)
    torch.testing.assert_close(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_initial_convolutions_have_he_variance():
    torch.manual_seed(0)
    model = CIFARResNet(14, 10)
    weight = model[5][1].conv1.weight  # 64 x 64 x 3 x 3
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_stages_halve_the_image():
    model = CIFARResNet(14, 10).eval()
    x, shapes = torch.zeros(1, 3, 32, 32), []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Sequential):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("build", [lambda: CIFARResNet(14, 5, "B"), lambda: CIFARResNet(14, 5), lambda: ResNet34(5)])
def test_every_parameter_gets_a_gradient(build):
    torch.manual_seed(0)
    model = build()
    x = torch.randn(4, 3, 32, 32)
    F.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_grey_images():
    assert CIFARResNet(8, 3, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert ResNet34(3, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


def test_resnet34_keeps_resolution_in_its_stem():
    model = ResNet34(10).eval()
    stem = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)
    # torchvision's ImageNet form has 21,797,672 parameters with 1,000 classes; less head and stem differences.
    assert count(model) == 21_797_672 - 3 * 64 * (49 - 9) - 990 * 513


@pytest.mark.parametrize("depth", [2, 15, 18, 0, -4])
def test_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2.*got {depth}"):
        CIFARResNet(depth, 10)


def test_refuses_unknown_shortcut():
    with pytest.raises(ValueError, match="shortcut must be 'A'"):
        CIFARResNet(14, 10, "C")
