"""Priors of other toolkits: what a call, a side-car or a folder declares is typed, bounded and hashed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ctflow.errors import BackendError, UnreadableError, UsageError
from ctflow.priors import FlowPrior, ForeignPrior

DECLARED = {"convention": "torchcfm", "hu_centre": 0.0, "hu_width": 1000.0}
NAN, INF = float("nan"), float("inf")


class Velocity(nn.Module):
    """A torchcfm network of one layer: time first."""

    def __init__(self, channels=1):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t, x):
        return t[:, None, None, None] * self.layer(x)


@pytest.fixture
def theirs(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "velocity.safetensors"
    save_file(Velocity().state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "new"),
    [(f"model.{ending}", "model.safetensors") for ending in ("pt", "pth", "ckpt")]
    + [("model.safetensors", "model-weights.safetensors")],
)
def test_a_pickle_is_refused_by_name_or_content_with_the_way_to_convert_it(tmp_path, name, new):
    path = tmp_path / name
    torch.save(Velocity().state_dict(), path)
    with pytest.raises(UsageError, match=rf"is a pickle.*weights_only=True\), '{new}'"):
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


def test_a_file_must_have_the_hash_that_its_side_car_expects(theirs):
    theirs.with_suffix(".prior.toml").write_text(f'sha256 = "{"0" * 64}"\n')
    with pytest.raises(UnreadableError, match="should have the SHA-256 0000"):
        FlowPrior.load(theirs, network=Velocity(), **DECLARED)


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
    with pytest.raises(UnreadableError, match="is not valid TOML"):
        FlowPrior.load(theirs, network=Velocity())


@pytest.mark.parametrize(
    "said",
    ["sha256 = 5", 'sha256 = "ab"', "mu_water = 5.0", 'network = "subprocess:Popen"', "hu_width = nan"],
)
def test_a_side_car_says_nothing_that_only_a_call_can(theirs, said):
    theirs.with_suffix(".prior.toml").write_text(f"{said}\n")
    with pytest.raises(UnreadableError, match="the side-car"):
        FlowPrior.load(theirs, network=Velocity(), **DECLARED)


def test_weights_of_another_toolkit_are_finite(theirs):
    tensors = load_file(theirs)
    tensors["layer.bias"][0] = NAN
    save_file(tensors, theirs)
    with pytest.raises(UnreadableError, match=r"not finite, the first is 'layer\.bias'"):
        FlowPrior.load(theirs, network=Velocity(), **DECLARED)


def test_nothing_is_guessed(theirs):
    with pytest.raises(UnreadableError, match="network=built"):
        FlowPrior.load(theirs)
    with pytest.raises(UsageError, match="does not say convention, hu_centre, hu_width"):
        FlowPrior.load(theirs, network=Velocity())
    for wrong in (
        *({"hu_width": width} for width in ("1000", 0.0, NAN, INF, -1000.0, True)),
        *({"spacings_mm": pair} for pair in ([1.0, 0.5], [NAN, 1.0], "wide")),
        {"hu_range": [0.0]},
        {"stride": 10**9},
        {"mean": INF},
        {"denoiser_error": [[1.0, NAN]]},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            FlowPrior.load(theirs, network=Velocity(), **DECLARED | wrong)
    with pytest.raises(UsageError, match="'hu_center'; possible declarations are convention"):
        FlowPrior.load(theirs, network=Velocity(), hu_center=0.0, **DECLARED)


def test_another_declaration_is_another_prior(theirs):
    prior, again = (FlowPrior.load(theirs, network=Velocity(), **DECLARED) for _ in range(2))
    wider = FlowPrior.load(theirs, network=Velocity(), **DECLARED | {"hu_width": 2000.0})
    assert prior.sha256 == again.sha256 != wider.sha256


def test_what_a_folder_says_is_in_its_hash(tmp_path, monkeypatch):
    """Its configuration, its scheduler and its side-car; one layer stands for the network of diffusers."""

    class Network(Velocity):
        def forward(self, x, t):
            return super().forward(t, x)

        @classmethod
        def from_config(cls, config):
            return cls()

    library = type("diffusers", (), {"UNet2DModel": Network})
    monkeypatch.setattr("ctflow.priors._diffusers._diffusers", lambda: library)
    unet = {"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8]}
    said = {"config.json": json.dumps(unet), "prior.toml": "hu_centre = 0\nhu_width = 1000\n"}
    said["scheduler_config.json"] = '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
    save_file(Network().state_dict(), tmp_path / "model.safetensors")

    def loaded(**changes):
        for name, text in (said | changes).items():
            (tmp_path / name).write_text(text)
        return FlowPrior.load(tmp_path).sha256

    other = '{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500}'
    found = [
        loaded(),
        loaded(**{"prior.toml": "hu_centre = 0\nhu_width = 2000\n"}),
        loaded(**{"scheduler_config.json": other}),
        loaded(**{"config.json": json.dumps(unet | {"act_fn": "silu", "norm_num_groups": None})}),
    ]
    assert len(set(found)) == 4
    assert loaded() == found[0]


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": [100_000, 100_000]},
        {"block_out_channels": [16_384] * 16},
        {"block_out_channels": []},
        {"layers_per_block": 10**9},
        {"layers_per_block": [1, 10**9]},
        {"sample_size": 10**30},
        {"in_channels": True},
        {"norm_eps": NAN},
    ],
)
def test_numbers_of_a_folder_are_bounded(tmp_path, config):
    unet = {"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(unet | config))
    with pytest.raises(UnreadableError, match=r"config\.json of"):
        FlowPrior.load(tmp_path)


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
