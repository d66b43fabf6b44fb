"""Convolutions with fewer products are the convolutions of torch, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from ctflow.priors import _winograd
from ctflow.priors._winograd import Convolution

pytestmark = pytest.mark.skipif(
    not getattr(torch, "_nnpack_available", bool)(),
    reason="this torch holds no NNPACK, whose convolutions these are",
)


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(_winograd, "quicker", lambda: True)
    torch.manual_seed(0)
    return Convolution(24, 16)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 301)])
def test_it_is_the_convolution_of_torch_with_its_gradients(layer, size):
    x = torch.randn(3, 24, *size)
    found, expected = [], []
    for kept, way in ((found, layer), (expected, lambda x: conv2d(x, layer.weight, layer.bias, padding=1))):
        image = x.clone().requires_grad_()
        y = way(image)
        kept += [y, *torch.autograd.grad(y.square().mean(), (image, layer.weight, layer.bias))]
    for ours, theirs in zip(found, expected, strict=True):
        # Tiles of 8 × 8 add and subtract what float32 has rounded: 1e-5 at the rim, where they hang over.
        assert (ours - theirs).abs().max() < 3e-5 * theirs.abs().max()
    assert not torch.equal(found[0], expected[0])  # it was the other way


def test_what_becomes_of_an_image_does_not_depend_on_the_others(layer):
    x = torch.randn(3, 24, 40, 40)
    assert torch.equal(layer(x)[1:2], layer(x[1:2]))


def test_small_images_narrow_layers_and_other_types_go_the_way_of_torch(layer):
    for of, x in (
        (layer, torch.randn(1, 24, 31, 31)),
        (Convolution(8, 16), torch.randn(1, 8, 40, 40)),
        (Convolution(24, 16).double(), torch.randn(1, 24, 40, 40, dtype=torch.float64)),
    ):
        assert torch.equal(of(x), conv2d(x, of.weight, of.bias, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 24, 40, 40)).dtype == torch.bfloat16
