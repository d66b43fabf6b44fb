"""Prior files that are not what they should be, and images that the prior was not trained on."""

import hashlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ctflow.errors import BackendError, UnreadableError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.job import prepare
from ctflow.priors import FlowPrior, ForeignPrior, PriorWarning
from ctflow.priors._unet import UNet
from ctflow.priors.network import save
from ctflow.protocol import Protocol
from ctflow.volume import Volume

SMALL = {"channels": [8, 16], "blocks": 1, "embedding": 16}
MANIFEST = {
    "kind": "network",
    "name": "small",
    "network": SMALL,
    "hu_centre": -300.0,
    "hu_width": 500.0,
    "hu_range": [-1000.0, 1500.0],
    "spacings_mm": [0.6, 0.9],
    "mean": -1.0,
    "denoiser_error": [[0.02, 0.015], [1.0, 0.2], [20.0, 0.8]],
}
DECLARED = {"convention": "torchcfm", "hu_centre": 0.0, "hu_width": 1000.0}


class Velocity(nn.Module):
    """A torchcfm network of one layer: time first."""

    def __init__(self, channels=1):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t, x):
        return t[:, None, None, None] * self.layer(x)


@pytest.fixture
def ours(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save(path, UNet(**SMALL).state_dict(), MANIFEST)
    return path


@pytest.fixture
def theirs(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "velocity.safetensors"
    save_file(Velocity().state_dict(), path)
    return path


def with_manifest(path, manifest):
    save_file(
        load_file(path), path, {"manifest": manifest if isinstance(manifest, str) else json.dumps(manifest)}
    )


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.safetensors"])
def test_a_pickle_is_refused_by_name_or_content_with_the_way_to_convert_it(tmp_path, name):
    path = tmp_path / name
    torch.save(Velocity().state_dict(), path)
    with pytest.raises(UsageError, match=r"is a pickle.*weights_only=True\), 'model.safetensors'"):
        FlowPrior.load(path, network=Velocity(), **DECLARED)


def test_an_old_pickle_is_refused_too(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="is a pickle"):
        FlowPrior.load(path)


def test_the_way_to_convert_a_pickle_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Velocity().state_dict(), "model.pt")
    with pytest.raises(UsageError) as caught:
        FlowPrior.load("model.pt")
    exec(str(caught.value).split('"')[1])
    assert FlowPrior.load("model.safetensors", network=Velocity(), **DECLARED).name == "model"


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_a_truncated_file_is_refused(ours, kept):
    ours.write_bytes(ours.read_bytes()[:kept])
    with pytest.raises(UnreadableError, match="not a whole safetensors file"):
        FlowPrior.load(ours)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{not json", "manifest of prior 'small.safetensors' is not of kind gaussian or network"),
        ({**MANIFEST, "kind": "wavelet", "weights_sha256": "0"}, "not of kind"),
        (MANIFEST, "does not say weights_sha256"),
        ({"kind": "gaussian", "weights_sha256": "0"}, "does not say hu_centre, hu_width, mean, name"),
        ({**MANIFEST, "weights_sha256": "0" * 64}, "do not match their hash"),
    ],
)
def test_a_manifest_that_is_damaged_is_refused(ours, manifest, message):
    with_manifest(ours, manifest)
    with pytest.raises(UnreadableError, match=message):
        FlowPrior.load(ours)


def test_a_network_of_another_version_is_refused(tmp_path):
    path = tmp_path / "later.safetensors"
    save(path, {"w": torch.zeros(2)}, {**MANIFEST, "network": {"layers": 3}})
    with pytest.raises(UnreadableError, match="another architecture"):
        FlowPrior.load(path)


def test_a_file_must_have_the_hash_that_is_expected(ours, theirs):
    right = hashlib.sha256(ours.read_bytes()).hexdigest()
    assert FlowPrior.load(ours, sha256=right.upper()).sha256 == right
    with pytest.raises(UnreadableError, match="should have the SHA-256 00"):
        FlowPrior.load(ours, sha256="0" * 64)
    theirs.with_suffix(".prior.toml").write_text(f'sha256 = "{right}"\n')
    with pytest.raises(UnreadableError, match=f"should have the SHA-256 {right}"):
        FlowPrior.load(theirs, network=Velocity(), **DECLARED)


def test_a_manifest_is_not_overridden(ours):
    with pytest.raises(UsageError, match="no convention"):
        FlowPrior.load(ours, convention="edm")


def test_a_state_dict_is_put_into_the_network_that_is_given(theirs):
    prior = FlowPrior.load(theirs, 0.02, network=Velocity(), **DECLARED)
    assert isinstance(prior, ForeignPrior)
    assert (prior.name, len(prior.sha256)) == ("velocity", 64)
    assert torch.equal(prior.network.state_dict()["layer.weight"], load_file(theirs)["layer.weight"])
    assert prior.scale * 0.6 + prior.shift == pytest.approx(0.02)  # u = 0.6 is 0 HU, which is water


def test_a_side_car_declares_what_the_call_does_not(theirs):
    side_car = theirs.with_suffix(".prior.toml")
    side_car.write_text(
        'convention = "torchcfm"\nhu_centre = 0.0\nhu_width = 1000.0\nspacings_mm = [0.5, 1.0]\n'
    )
    prior = FlowPrior.load(theirs, network=Velocity(), hu_width=2000.0)
    assert (prior.gain, prior.spacings_mm) == (0.25, [0.5, 1.0])
    side_car.write_text("convention = \n")
    with pytest.raises(UnreadableError, match="is not TOML"):
        FlowPrior.load(theirs, network=Velocity())


def test_nothing_is_guessed(theirs):
    with pytest.raises(UnreadableError, match="network=built"):
        FlowPrior.load(theirs)
    with pytest.raises(UsageError, match="does not say convention, hu_centre, hu_width"):
        FlowPrior.load(theirs, network=Velocity())
    for wrong in ({"hu_width": "1000"}, {"hu_width": 0.0}, {"spacings_mm": [1.0, 0.5]}, {"hu_range": [0.0]}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            FlowPrior.load(theirs, network=Velocity(), **DECLARED | wrong)
    with pytest.raises(UsageError, match="'hu_center'; what can be declared is convention"):
        FlowPrior.load(theirs, network=Velocity(), hu_center=0.0, **DECLARED)


def test_a_misfit_names_the_key_and_both_shapes(theirs, tmp_path):
    with pytest.raises(
        UnreadableError,
        match=r"'layer.weight' is \(1, 1, 3, 3\) in the file and \(2, 2, 3, 3\) in the network",
    ):
        FlowPrior.load(theirs, network=Velocity(2), **DECLARED)
    more = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(UnreadableError, match=r"'0.weight' is missing in the file and \(1, 1, 3, 3\)"):
        FlowPrior.load(theirs, network=more, **DECLARED)
    save_file({**load_file(theirs), "ema": torch.zeros(2)}, theirs)
    with pytest.raises(UnreadableError, match=r"'ema' is \(2,\) in the file and missing in the network"):
        FlowPrior.load(theirs, network=Velocity(), **DECLARED)


def test_a_folder_that_is_not_of_diffusers_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no config.json"):
        FlowPrior.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UsageError, match="holds a UNet2DConditionModel and a UNet2DModel is understood"):
        FlowPrior.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnreadableError, match="is not JSON"):
        FlowPrior.load(tmp_path)


def test_colour_classes_schedulers_and_pickles_in_a_folder_are_refused(tmp_path):
    unet = {"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8]}
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}

    def write(config, scheduler=flow):
        (tmp_path / "config.json").write_text(json.dumps(unet | config))
        (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))

    write({"num_class_embeds": 10})
    with pytest.raises(UsageError, match="must be unconditional"):
        FlowPrior.load(tmp_path)
    write({}, {"_class_name": "KarrasVeScheduler"})
    with pytest.raises(UsageError, match="KarrasVeScheduler"):
        FlowPrior.load(tmp_path)
    write({"in_channels": 3})
    with pytest.raises(UsageError, match="takes images of 3 channels; CT has one"):
        FlowPrior.load(tmp_path)
    write({})
    with pytest.raises(UsageError, match=r"holds no \.safetensors file"):
        FlowPrior.load(tmp_path)
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="is a pickle"):
        FlowPrior.load(tmp_path)


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    (tmp_path / "config.json").write_text(
        '{"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [8]}'
    )
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(BackendError, match=r"pip install \"ctflow\[diffusers\]\""):
        FlowPrior.load(tmp_path)


@pytest.mark.parametrize(("spacing", "far"), [(0.6, 0), (1.1, 0), (1.2, 1), (0.4, 1), (None, 0)])
def test_a_spacing_far_from_training_is_warned_of(ours, spacing, far):
    # A quarter outside [0.6, 0.9] is 0.48 to 1.125 mm.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FlowPrior.load(ours, spacing=spacing)
    assert [w.category for w in caught] == [PriorWarning] * far
    assert all("trained on 0.6 to 0.9 mm" in str(w.message) for w in caught)


def test_a_run_states_spacing_and_values_that_the_prior_does_not_know(ours):
    protocol = Protocol.load("deblur")

    def warned(spacing_mm, most):
        data = torch.full((2, 16, 16), -1000.0)
        data[0, 8, 8] = most
        volume = Volume(data, VolumeGeometry((2, 16, 16), (3.0, spacing_mm, spacing_mm)), "HU")
        return " ".join(prepare(protocol, volume, prior=str(ours)).warnings)

    assert "prior" not in warned(0.7, 1540.0)
    assert "the pixels are 3 mm and prior 'small' was trained on 0.6 to 0.9 mm" in warned(3.0, 1000.0)
    # One of 512 pixels.
    assert "0.2 % of the pixels lie outside the -1000 to 1500 HU" in warned(0.7, 3000.0)
