"""EDM and guided-diffusion, which are no packages: their clones on PYTHONPATH, their networks in our hands.

PYTHONPATH=EDM:GUIDED_DIFFUSION pytest tests/conformance/test_diffusion_peers.py
"""

import math

import pytest
import torch
from torch import nn

from ctflow.priors import ForeignPrior

HU = {"hu_centre": 0.0, "hu_width": 1000.0}


@pytest.fixture
def roused():
    """Weights at random for a network, also where it starts at zero and would hide what it is told."""

    def rouse(network):
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.05)
        return network.eval()

    return rouse


def asked(prior, w, sigma):
    """The prior's answer to w with noise of level sigma, both in the network's own range."""
    t = 1 / (1 + sigma / prior.gain)
    return prior.denoise((w - prior.offset) / prior.gain * t, t) * prior.gain + prior.offset


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_edm_says_what_its_preconditioned_network_says(roused, sigma):
    edm = pytest.importorskip("training.networks", reason="NVlabs/edm is not on PYTHONPATH")
    shape = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
    network = edm.EDMPrecond(64, 1, model_type="SongUNet", **shape)
    prior = ForeignPrior(roused(network), "edm", **HU)
    w = 5 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = network(w, torch.full((2,), sigma))
    # float32, through a network.
    assert (asked(prior, w, sigma) - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("k", [20, 300, 800, 999])
def test_guided_diffusion_says_what_its_sampler_says(roused, k):
    script_util = pytest.importorskip(
        "guided_diffusion.script_util", reason="openai/guided-diffusion is not on PYTHONPATH"
    )
    unet = pytest.importorskip("guided_diffusion.unet")
    diffusion = script_util.create_gaussian_diffusion(learn_sigma=True)
    network = roused(unet.UNetModel(64, 1, 32, 2, 1, attention_resolutions=(), channel_mult=(1, 2)))
    prior = ForeignPrior(network, "guided-diffusion", **HU)
    alpha = diffusion.alphas_cumprod[k]
    y = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = diffusion.p_mean_variance(network, y, torch.full((2,), k), clip_denoised=False)["pred_xstart"]
    ours = asked(prior, y / math.sqrt(alpha), math.sqrt((1 - alpha) / alpha))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
