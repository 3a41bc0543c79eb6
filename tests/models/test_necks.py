"""Balanced feature pyramid and PAFPN against loops written from the specification, section 3."""

import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from longtail.models import PAFPN, BalancedFeaturePyramid, EmbeddedGaussian, resnet_fpn, tiny32
from longtail.models.backbones import feature_pyramid
from longtail.schema import UsageError

ODD = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]
EVEN = [(16, 24), (8, 12), (4, 6), (2, 3)]


def pyramid(sizes, channels=3, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (str(index), torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64))
        for index, size in enumerate(sizes)
    )


def randomised(module, seed=1, std=0.4):
    """Double precision and every parameter away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
    return module


def max_pool(x, size):
    """One map (channels, H, W); the window of output i is [floor(i in / out), ceil((i + 1) in / out))."""
    channels, height, width = x.shape
    out = []
    for c in range(channels):
        for i in range(size[0]):
            for j in range(size[1]):
                rows = range(i * height // size[0], math.ceil((i + 1) * height / size[0]))
                columns = range(j * width // size[1], math.ceil((j + 1) * width / size[1]))
                best = None
                for row in rows:
                    for column in columns:
                        best = x[c, row, column] if best is None or x[c, row, column] > best else best
                out.append(best)
    return torch.stack(out).reshape(channels, *size)


def nearest(x, size):
    rows = [i * x.shape[1] // size[0] for i in range(size[0])]
    columns = [j * x.shape[2] // size[1] for j in range(size[1])]
    return torch.stack([torch.stack([x[:, row, column] for column in columns], dim=1) for row in rows], dim=1)


def convolve(x, weight, bias, stride=1):
    """3x3 with padding 1, or 1x1, position by position."""
    side = weight.shape[2]
    height, width = x.shape[1:]
    padded = torch.zeros(x.shape[0], height + side - 1, width + side - 1, dtype=x.dtype)
    edge = side // 2
    padded[:, edge : edge + height, edge : edge + width] = x
    out = [
        torch.stack([
            (weight * padded[None, :, i : i + side, j : j + side]).sum(dim=(1, 2, 3)) + bias
            for j in range(0, width, stride)
        ], dim=1)
        for i in range(0, height, stride)
    ]  # fmt: skip
    return torch.stack(out, dim=1)


def attend(x, block):
    def at(layer, position):
        return layer.weight[:, :, 0, 0] @ x[:, *position] + layer.bias

    positions = [(i, j) for i in range(x.shape[1]) for j in range(x.shape[2])]
    out = x.clone()
    for position in positions:
        products = [float(at(block.theta, position) @ at(block.phi, other)) for other in positions]
        top = max(products)
        total = sum(math.exp(product - top) for product in products)
        y = sum(
            math.exp(product - top) / total * at(block.g, other)
            for product, other in zip(products, positions, strict=True)
        )
        if block.out_proj is not None:
            y = block.out_proj.weight[:, :, 0, 0] @ y + block.out_proj.bias
        out[:, *position] += y
    return out


def balanced(maps, neck, reference, count):
    """Gather, integrate, refine, strengthen: one image after the other."""
    names, outputs = list(maps), []
    for image in range(maps[names[0]].shape[0]):
        levels = [maps[name][image] for name in names]
        size = tuple(levels[reference].shape[1:])
        total = torch.zeros_like(levels[reference])
        for level in range(count):
            total = total + (max_pool(levels[level], size) if level < reference else nearest(levels[level], size))
        f = total / count
        if isinstance(neck.refine, EmbeddedGaussian):
            f = attend(f, neck.refine)
        elif isinstance(neck.refine, nn.Sequential):
            f = convolve(f, neck.refine[0].weight, neck.refine[0].bias).clamp(min=0)
        new = []
        for level in range(count):
            own = tuple(levels[level].shape[1:])
            new.append(levels[level] + (nearest(f, own) if level < reference else max_pool(f, own)))
        for _ in range(count, len(names)):
            new.append(new[-1][:, ::2, ::2])
        outputs.append(new)
    return {name: torch.stack([new[index] for new in outputs]) for index, name in enumerate(names)}


CASES = [
    ({"refine": "none"}, ODD, 2, 5),
    ({"refine": "conv"}, ODD, 2, 5),
    ({"refine": "non_local"}, ODD, 2, 5),
    ({"refine": "non_local", "fused": False}, ODD, 2, 5),
    ({"refine": "non_local", "out_proj": False}, ODD, 2, 5),
    ({"refine": "non_local", "level": 1}, ODD, 1, 5),
    ({"refine": "none", "level": 0}, EVEN, 0, 4),
    ({"refine": "conv", "level": 3}, EVEN, 3, 4),
    ({"refine": "non_local", "num_levels": 4}, ODD, 2, 4),
    ({}, ODD[:3], 1, 3),
    ({}, [(4, 5)], 0, 1),
]


@pytest.mark.parametrize(("options", "sizes", "reference", "count"), CASES)
def test_bfp_equals_the_loops(options, sizes, reference, count):
    neck = randomised(BalancedFeaturePyramid(3, **options))
    maps = pyramid(sizes)
    found, wanted = neck(maps), balanced(maps, neck, reference, count)
    assert list(found) == list(maps)
    for name in maps:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-10)


@given(
    sides=st.lists(st.integers(1, 14), min_size=2, max_size=4),
    width=st.integers(1, 9),
    level=st.integers(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_any_sizes(sides, width, level, seed):
    sizes = [(side, width) for side in sorted(sides, reverse=True)]
    neck = BalancedFeaturePyramid(2, level=level, refine="none")
    maps = pyramid(sizes, channels=2, seed=seed, batch=1)
    wanted = balanced(maps, neck, level, len(sizes))
    for name, value in neck(maps).items():
        torch.testing.assert_close(value, wanted[name])


@pytest.mark.parametrize("options", [options for options, *_ in CASES[:6]])
def test_gradients_are_those_of_finite_differences(options):
    neck = randomised(BalancedFeaturePyramid(2, **options))
    maps = pyramid([(5, 6), (3, 3), (2, 1)], channels=2, batch=1)
    names = [name for name, _ in neck.named_parameters()]

    def run(*values):
        own = dict(zip(names, values[3:], strict=True))
        return tuple(torch.func.functional_call(neck, own, (dict(zip("012", values[:3], strict=True)),)).values())

    inputs = (*maps.values(), *neck.parameters())
    assert torch.autograd.gradcheck(run, tuple(value.detach().requires_grad_() for value in inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_attention_equals_the_explicit_one(dtype):
    fused, explicit = (randomised(EmbeddedGaussian(16, fused=choice)).to(dtype) for choice in (True, False))
    values = []
    for block in (fused, explicit):
        x = torch.randn(2, 16, 9, 11, generator=torch.Generator().manual_seed(3), dtype=dtype).mul(0.5).requires_grad_()
        out = block(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)).sum().backward()
        values.append((out, x.grad, block.theta.weight.grad, block.g.bias.grad))
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


def test_fused_attention_never_holds_the_whole_matrix():
    """At 800x1333 the matrix alone has 18 million entries; nothing made in the forward pass has as many."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    self.entries = max(self.entries, value.numel())
            return out

    found = {}
    for fused in (True, False):
        with Largest() as seen:
            EmbeddedGaussian(8, fused=fused)(torch.randn(1, 8, 25, 42, requires_grad=True))
        found[fused] = seen.entries
    assert found[True] == 8 * 25 * 42
    assert found[False] == (25 * 42) ** 2


def test_starts_as_plain_integration():
    torch.manual_seed(0)
    maps = pyramid(ODD)
    refined = BalancedFeaturePyramid(3).double()(maps)
    plain = BalancedFeaturePyramid(3, refine="none")(maps)
    assert all(torch.equal(refined[name], plain[name]) for name in maps)


@pytest.mark.parametrize("sizes", [ODD, EVEN])
def test_equal_constant_maps_gain_that_constant(sizes):
    maps = OrderedDict((str(i), torch.full((1, 2, *size), 3.5)) for i, size in enumerate(sizes))
    for value in BalancedFeaturePyramid(2, refine="none")(maps).values():
        assert (value == 7).all()


def test_published_number_of_parameters():
    assert sum(p.numel() for p in BalancedFeaturePyramid(256).parameters()) == 263_168
    assert sum(p.numel() for p in BalancedFeaturePyramid(256, out_proj=False).parameters()) == 3 * (256 * 256 + 256)


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"level": -1}, {"num_levels": 0}, {"refine": "gaussian"}], ids=str
)
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        BalancedFeaturePyramid(**({"channels": 2} | options))


@pytest.mark.parametrize("options", [{"level": 5}, {"num_levels": 6}, {"num_levels": 2, "level": 2}], ids=str)
def test_too_few_maps_are_refused(options):
    with pytest.raises(ValueError, match="there are 5 maps"):
        BalancedFeaturePyramid(3, refine="none", **options)(pyramid(ODD))


def test_pafpn_equals_the_loops():
    sizes, channels = [(9, 13), (5, 7), (3, 4)], [2, 3, 4]
    neck = randomised(PAFPN(channels, 3, extra_blocks=LastLevelMaxPool()))
    generator = torch.Generator().manual_seed(5)
    maps = OrderedDict(
        (name, torch.randn(1, width, *size, generator=generator, dtype=torch.float64))
        for name, width, size in zip("abc", channels, sizes, strict=True)
    )
    inner = [convolve(x[0], b[0].weight, b[0].bias) for x, b in zip(maps.values(), neck.inner_blocks, strict=True)]
    for level in (1, 0):
        inner[level] = inner[level] + nearest(inner[level + 1], sizes[level])
    n = [convolve(x, b[0].weight, b[0].bias) for x, b in zip(inner, neck.layer_blocks, strict=True)]
    m = [n[0]]
    for level in (1, 2):
        down = neck.down_blocks[level - 1][0]
        m.append(n[level] + convolve(m[-1], down.weight, down.bias, stride=2))
    wanted = [m[0]] + [convolve(m[k], neck.outer_blocks[k - 1][0].weight, neck.outer_blocks[k - 1][0].bias)
                       for k in (1, 2)]  # fmt: skip
    wanted.append(wanted[-1][:, ::2, ::2])
    found = neck(maps)
    assert list(found) == ["a", "b", "c", "pool"]
    for value, want in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(value[0], want, rtol=1e-10, atol=1e-10)


def test_gradients_of_pafpn_are_those_of_finite_differences():
    """Of inputs and of all parameters; maps of odd sides, and one level more."""
    channels, sizes = [2, 1, 2], [(5, 3), (3, 2), (2, 1)]
    neck = randomised(PAFPN(channels, 2, extra_blocks=LastLevelMaxPool()))
    generator = torch.Generator().manual_seed(7)
    maps = [
        torch.randn(1, width, *size, generator=generator, dtype=torch.float64)
        for width, size in zip(channels, sizes, strict=True)
    ]
    names = [name for name, _ in neck.named_parameters()]

    def run(*values):
        own = dict(zip(names, values[3:], strict=True))
        inputs = OrderedDict(zip("abc", values[:3], strict=True))
        return tuple(torch.func.functional_call(neck, own, (inputs,)).values())

    inputs = (*maps, *neck.parameters())
    assert torch.autograd.gradcheck(run, tuple(value.detach().requires_grad_() for value in inputs))


def test_pafpn_takes_the_weights_of_a_plain_pyramid():
    plain = FeaturePyramidNetwork([2, 3, 4], 3)
    report = PAFPN([2, 3, 4], 3).load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {key.split(".")[0] for key in report.missing_keys} == {"down_blocks", "outer_blocks"}


@pytest.mark.parametrize("extra", ["pool", "p6p7", None])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_pafpn_has_names_and_strides_of_the_plain_pyramid(extra, norm):
    plain = resnet_fpn("resnet18", weights=None, fpn_channels=8, extra_level=extra, fpn_norm=norm)
    other = resnet_fpn("resnet18", weights=None, fpn_channels=8, extra_level=extra, fpn_norm=norm, fpn_kind="pafpn")
    x = torch.rand(1, 3, 70, 90)
    one, two = plain(x), other(x)
    assert plain.strides == other.strides
    assert [(name, value.shape) for name, value in one.items()] == [(name, value.shape) for name, value in two.items()]
    sum(value.sum() for value in two.values()).backward()
    assert all(p.grad is not None for p in other.fpn.parameters())


def test_balanced_pafpn_behind_a_backbone():
    pyramid_backbone = tiny32(fpn_channels=8, fpn_kind="pafpn")
    x = torch.rand(2, 3, 60, 84)
    before = pyramid_backbone.eval()(x)
    pyramid_backbone.balance = BalancedFeaturePyramid(8)
    after = pyramid_backbone(x)
    assert [value.shape for value in after.values()] == [value.shape for value in before.values()]
    wanted = BalancedFeaturePyramid(8, refine="none")(before)
    assert all(torch.equal(after[name], wanted[name]) for name in after)


def test_an_unknown_pyramid_is_refused():
    with pytest.raises(UsageError, match="pafpn"):
        feature_pyramid([2, 3], [4, 8], 8, None, "none", "bifpn")
