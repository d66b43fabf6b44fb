"""A narrower network that learns from a wider one: where it starts, and what it learns."""

import copy

import pytest
import torch

from ctflow.errors import ProtocolError
from ctflow.priors import FlowPrior
from ctflow.priors._unet import UNet
from ctflow.training import train
from ctflow.training.processes import Process
from ctflow.training.run import Run

PLAN = {
    "name": "narrow",
    "network": {"channels": [8, 16], "blocks": 1, "embedding": 16},
    "training": {"steps": 4, "batch": 2, "crop": 16, "every": 4},
    "shares": {"256": 1.0},
}
WIDE = """
name = "wide"
network = { channels = [16, 32], blocks = 1, embedding = 16 }
training = { steps = 4, batch = 2, crop = 16, every = 4 }
shares = { "256" = 1.0 }
"""
CPU = Process(torch.device("cpu"))


def some_network():
    torch.manual_seed(0)
    network = UNet(**PLAN["network"])
    for parameter in network.parameters():  # a fresh one predicts nothing
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def doubled(network):
    """A network of twice the channels that computes the same: each channel twice, its inputs halved."""
    wide = UNet(channels=(16, 32), blocks=1, embedding=16)
    narrow, state = network.state_dict(), wide.state_dict()
    for key, weight in state.items():
        for dim, (new, old) in enumerate(zip(weight.shape, narrow[key].shape, strict=True)):
            if new != old:
                narrow[key] = narrow[key].repeat_interleave(2, dim) / (2 if dim == 1 else 1)
        weight.copy_(narrow[key])
    return wide


def test_a_network_whose_channels_stand_twice_is_narrowed_to_the_one_it_repeats():
    narrow, run = some_network(), Run(copy.deepcopy(PLAN), CPU)
    wide = doubled(narrow)
    x, level, spacing = (
        torch.randn(2, 1, 16, 16),
        torch.tensor([0.1, -0.4]),
        torch.tensor([0.3, float("nan")]),
    )
    torch.testing.assert_close(wide(x, level, spacing), narrow(x, level, spacing))
    run.narrow(wide)
    for network in (run.network, run.average):
        for key, weight in network.state_dict().items():
            torch.testing.assert_close(weight, narrow.state_dict()[key], rtol=0, atol=0)


def test_what_is_learned_is_the_teachers_image():
    """A pupil that computes what its teacher does has nothing to learn, whatever the slices are."""
    run, teacher = Run(copy.deepcopy(PLAN), CPU), doubled(some_network()).requires_grad_(False)
    run.teacher = teacher
    batch = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([0.5, 2.0]), torch.ones(2)
    assert run.gradient(batch) > 0.1
    run.narrow(teacher)
    assert run.gradient(batch) < 1e-9
    run.teacher = None
    assert run.gradient(batch) > 0.1


def test_a_recipe_with_a_teacher_makes_a_prior(training_data, tmp_path):
    recipe, wide = tmp_path / "wide.toml", tmp_path / "wide.safetensors"
    recipe.write_text(WIDE)
    train(recipe, training_data, wide)
    small = tmp_path / "small.toml"
    text = f'teacher = "{wide}"\n' + WIDE.replace("[16, 32]", "[8, 16]").replace("every", "rate = 0.0, every")
    small.write_text(text)
    prior = FlowPrior.load(train(small, training_data, tmp_path / "small.safetensors"))
    teacher = FlowPrior.load(wide)
    # At rate 0 it ends where it starts, at every second channel, whose inputs count twice.
    for key, weight in prior.network.state_dict().items():
        wide_weight = teacher.network.state_dict()[key]
        every = [old // new for old, new in zip(wide_weight.shape, weight.shape, strict=True)]
        kept = wide_weight[tuple(slice(None, None, step) for step in every)]
        torch.testing.assert_close(weight, kept * (every[1] if weight.ndim > 1 else 1), rtol=0, atol=0)
    assert prior.manifest["teacher"] == f"wide (sha256 {teacher.sha256})"
    for old, new in (("[8, 16]", "[24, 16]"), ("embedding = 16", "embedding = 8")):
        small.write_text(text.replace(old, new))
        with pytest.raises(ProtocolError, match=r"is no narrower one of its teacher's; give"):
            train(small, training_data, tmp_path / "other.safetensors")


def test_a_run_is_not_resumed_under_another_teacher(training_data, tmp_path):
    recipe, wide = tmp_path / "wide.toml", tmp_path / "wide.safetensors"
    recipe.write_text(WIDE)
    train(recipe, training_data, wide)
    small, out = tmp_path / "small.toml", tmp_path / "small.safetensors"
    small.write_text(f'teacher = "{wide}"\n' + WIDE.replace("[16, 32]", "[8, 16]"))
    assert train(small, training_data, out, max_seconds=0.0) is None
    recipe.write_text(WIDE.replace("steps = 4", "steps = 2"))
    train(recipe, training_data, tmp_path / "other.safetensors").replace(wide)
    with pytest.raises(ProtocolError, match="belongs to another recipe"):
        train(small, training_data, out, resume=True)


def test_what_is_no_network_cannot_teach(training_data, tmp_path):
    small = tmp_path / "small.toml"
    small.write_text(f'teacher = "ct-gaussian"\n{WIDE}')
    with pytest.raises(ProtocolError, match=r"'ct-gaussian' cannot teach"):
        train(small, training_data, tmp_path / "other.safetensors")
