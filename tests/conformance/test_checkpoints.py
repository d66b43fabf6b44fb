"""Checkpoints that the peers themselves write, against what their own samplers take them to say."""

import importlib
import json
import math

import pytest
import torch

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series
from ctflow.errors import UnreadableError, UsageError
from ctflow.noise import Gaussian
from ctflow.operators import Blur
from ctflow.priors import FlowPrior, ForeignPrior, LatentPrior, flow
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.priors._diffusers import _convention
from ctflow.problem import simulate
from ctflow.samplers import DPS
from ctflow.solving import solve
from tests.priors.foreign import TRUTH, Oracle, draw, spherical

pytestmark = pytest.mark.filterwarnings("default")
OURS = {"hu_centre": HU_CENTRE, "hu_width": HU_WIDTH}  # the network's range is ours
UNET = {
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def folder_of(path, scheduler, network, vae=None):
    """The folder that a pipeline of diffusers writes."""
    network.save_pretrained(path / "unet")
    scheduler.save_pretrained(path / "scheduler")
    if vae is not None:
        vae.save_pretrained(path / "vae")
    return path


@pytest.fixture
def unet(diffusers):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**UNET).eval()


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_diffusers_diffusion_says_what_its_scheduler_says(diffusers, unet, tmp_path, kind, prediction):
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, clip_sample=False)
    prior = FlowPrior.load(folder_of(tmp_path / "ddpm", scheduler, unet), **OURS)
    scheduler.set_timesteps(1000)
    generator = torch.Generator().manual_seed(0)
    for k in (20, 500, 900):
        alpha = float(scheduler.alphas_cumprod[k].double())
        mu, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
        vp = torch.randn(2, 1, 16, 16, generator=generator)
        with torch.no_grad():
            theirs = scheduler.step(unet(vp, k).sample, k, vp).pred_original_sample
            ours = prior.denoise(vp / (mu + sigma), mu / (mu + sigma))
        # float32, through a network, at the size 1 / mu of what is subtracted.
        assert float((ours - theirs).abs().max()) < 1e-4 / mu


def test_a_diffusers_flow_says_what_its_scheduler_says(diffusers, unet, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    prior = FlowPrior.load(folder_of(tmp_path / "flow", scheduler, unet), **OURS)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for sigma in (0.9, 0.5, 0.1):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[sigma])
        k = scheduler.timesteps[0]
        with torch.no_grad():
            # One step from sigma to 0 ends at the image.
            theirs = scheduler.step(unet(x, k).sample, k, x).prev_sample
        torch.testing.assert_close(prior.denoise(x, 1 - sigma), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_schedule_of_diffusers_on_the_gaussian(diffusers, schedule):
    scheduler = diffusers.DDPMScheduler(beta_schedule=schedule)
    levels = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    network = Oracle(lambda k: float(levels[round(k)]), spherical, "z", 1.0, 0.0)
    config = {"_class_name": "DDPMScheduler", **scheduler.config}
    prior = ForeignPrior(network, _convention(config, UNET), **OURS)
    for k in (100, 500, 800):
        t = 1 / (1 + float(levels[k]))
        x = draw(t)
        # float32 at the size of x / t.
        assert float((prior.denoise(x, t) - TRUTH.denoise(x, t)).abs().max()) < 1e-5 + 1e-6 * float(levels[k])


def test_a_folder_without_hu_is_refused_and_a_side_car_says_it(diffusers, unet, tmp_path):
    folder = folder_of(tmp_path / "ddpm", diffusers.DDPMScheduler(), unet)
    with pytest.raises(UsageError, match="does not say hu_centre, hu_width"):
        FlowPrior.load(folder)
    (folder / "prior.toml").write_text("hu_centre = 0.0\nhu_width = 1000.0\nspacings_mm = [0.6, 0.9]\n")
    prior = FlowPrior.load(folder)
    assert (prior.gain, prior.name, prior.stride) == (0.5, "ddpm", 2)
    assert prior.denoise(torch.zeros(1, 15, 17), 0.5).shape == (1, 15, 17)


def test_the_command_line_takes_a_folder(diffusers, unet, tmp_path, capsys):
    write_toy_series(tmp_path / "toy", slices=2, size=32)
    folder = folder_of(tmp_path / "theirs", diffusers.FlowMatchEulerDiscreteScheduler(), unet)
    (folder / "prior.toml").write_text("hu_centre = 0.0\nhu_width = 1000.0\nspacings_mm = [0.1, 0.2]\n")
    words = ["run", "sparse-view-20", str(tmp_path / "toy"), "--dry-run", "--json", "--prior", str(folder)]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["prior"].startswith("theirs (sha256 ")
    assert "prior 'theirs' was trained on 0.1 to 0.2 mm" in plan["warnings"]
    assert main(["priors", str(folder)]) == 0
    assert "theirs: ForeignPrior" in capsys.readouterr().out


def test_a_misfit_in_a_folder_names_the_key(diffusers, unet, tmp_path):
    folder = folder_of(tmp_path / "ddpm", diffusers.DDPMScheduler(), unet)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layers_per_block": 2}))
    with pytest.raises(UnreadableError, match=r"'\S+' is missing in the file and \(\S+.*\) in the network"):
        FlowPrior.load(folder, **OURS)


def test_attention_layers_of_old_checkpoints_are_found(diffusers, unet, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = folder_of(tmp_path / "ddpm", diffusers.DDPMScheduler(), unet)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    new = FlowPrior.load(folder, **OURS).denoise(x, 0.5)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(file)
    for after, before in old.items():
        tensors = {key.replace(after, before): value for key, value in tensors.items()}
    assert any(".query." in key for key in tensors)
    save_file(tensors, file)
    assert torch.equal(FlowPrior.load(folder, **OURS).denoise(x, 0.5), new)


def test_a_latent_folder_decodes_as_diffusers_does(diffusers, tmp_path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**UNET | {"in_channels": 4, "out_channels": 4}).eval()
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.25,
    ).eval()
    prior = FlowPrior.load(folder_of(tmp_path / "ldm", diffusers.DDIMScheduler(), unet, vae), **OURS)
    assert isinstance(prior, LatentPrior)
    u = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = vae.encode(u).latent_dist.mode() * 0.25
        image = vae.decode(latents / 0.25).sample
        torch.testing.assert_close(prior.encode(u), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prior.decode(prior.encode(u)), image, rtol=1e-4, atol=1e-4)
    assert prior.latent_shape((1, 16, 16)) == (4, 8, 8)
    A = Blur((1, 16, 16), sigma=1.0)
    problem = simulate(A, prior.scale * image[0] + prior.shift, Gaussian(1e-3))
    assert solve(problem, DPS(steps=3), prior).mean.shape == (1, 16, 16)


def test_monais_rectified_flow_says_what_its_scheduler_says(monai):
    networks = importlib.import_module("monai.networks.nets")
    schedulers = importlib.import_module("monai.networks.schedulers")
    torch.manual_seed(0)
    network = networks.DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 8),
        attention_levels=(False, False),
        num_res_blocks=1,
        norm_num_groups=4,
    )
    for parameter in network.out.parameters():  # MONAI starts it at zero
        torch.nn.init.normal_(parameter)
    prior = ForeignPrior(network, "monai", **OURS)
    scheduler = schedulers.RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    scheduler.set_timesteps(10)
    u, z = torch.randn(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for k in (900.0, 500.0, 100.0):
        time = torch.full((2,), k)
        x = scheduler.add_noise(u, z, time)
        torch.testing.assert_close(x, (1 - k / 1000) * u + k / 1000 * z)
        with torch.no_grad():
            _, theirs = scheduler.step(network(x, time), k, x)
        torch.testing.assert_close(prior.denoise(x, 1 - k / 1000), theirs, rtol=1e-4, atol=1e-4)


def test_monais_autoencoder_makes_a_latent_prior(monai):
    networks = importlib.import_module("monai.networks.nets")
    torch.manual_seed(0)
    vae = networks.AutoencoderKL(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        num_res_blocks=(1, 1),
        channels=(8, 8),
        attention_levels=(False, False),
        latent_channels=3,
        norm_num_groups=4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    prior = LatentPrior(lambda y, time: -y, flow(1000.0, falling=True), vae, **OURS)
    u = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, _ = vae.encode(u[None])
        torch.testing.assert_close(prior.decode(prior.encode(u)), vae.decode(mean)[0], rtol=1e-4, atol=1e-4)


def test_torchcfm_calls_and_points_as_its_own_matcher(torchcfm):
    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    z, u = torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.full((3,), 0.3)
    _, x, velocity = matcher.sample_location_and_conditional_flow(z, u, t)
    prior = ForeignPrior(lambda t, y: velocity if len(y) == 3 else 0 * y, "torchcfm", mean=0.0, **OURS)
    # A network that knows the pair says its image.
    torch.testing.assert_close(prior.denoise(x, 0.3), u, rtol=1e-5, atol=1e-5)
    wrapper = importlib.import_module("torchcfm.models.unet.unet").UNetModelWrapper
    network = wrapper(dim=(1, 28, 28), num_channels=32, num_res_blocks=1)
    prior = ForeignPrior(network, "torchcfm", stride=4, **OURS)
    with torch.no_grad():
        torch.testing.assert_close(prior.velocity(x, 0.3), network(t, x), rtol=1e-4, atol=1e-4)


def test_deepinvs_denoisers_are_asked_at_their_own_noise_level(deepinv):
    torch.manual_seed(0)
    network = deepinv.models.DRUNet(in_channels=1, out_channels=1, nc=(8, 8, 8, 8), nb=1, pretrained=None)
    prior = ForeignPrior(network, "deepinv", hu_centre=-1000.0, hu_width=2500.0, stride=8)
    # HU -300 + 500 u = -1000 + 2500 w: a noise of 0.1 in w is 250 HU, 0.5 in u.
    u = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    w = (HU_CENTRE + HU_WIDTH * u + 1000) / 2500
    t = 1 / 1.5
    with torch.no_grad():
        theirs = (2500 * network(w, 0.1) - 1000 - HU_CENTRE) / HU_WIDTH
        torch.testing.assert_close(prior.denoise(t * u, t), theirs, rtol=1e-4, atol=1e-4)
