"""Training: a stopped and resumed run is the same run, and bad recipes are explained."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ctflow.errors import BackendError, OutputError, ProtocolError, UnreadableError, UsageError
from ctflow.priors import FlowPrior
from ctflow.priors._unet import UNet
from ctflow.system.interruption import interruptible
from ctflow.training import train
from ctflow.training.export import load_checkpoint
from ctflow.training.optimiser import Optimiser
from ctflow.training.processes import Process
from ctflow.training.run import Run
from ctflow.training.validation import validate

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "tiny"
network = { channels = [8, 16], blocks = 1, embedding = 16 }
training = { steps = 6, batch = 2, crop = 16, every = 4 }
shares = { "256" = 1.0 }
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_a_resumed_run_ends_with_the_same_weights(recipe, training_data, tmp_path, monkeypatch):
    whole = train(recipe, training_data, tmp_path / "whole.safetensors")
    out, step = tmp_path / "pieces.safetensors", Optimiser.step

    rates = []

    def stopped_in_the_third(self, rate):
        step(self, rate)
        rates.append(rate)
        if len(rates) == 3:  # the weights have changed, and are not counted yet
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Optimiser, "step", stopped_in_the_third)
    with pytest.raises(KeyboardInterrupt), interruptible():
        train(recipe, training_data, out)
    monkeypatch.undo()
    assert load_checkpoint(out.with_suffix(".checkpoint"))["step"] == 3
    assert train(recipe, training_data, out, resume=True, max_seconds=0) is None
    pieces = train(recipe, training_data, out, resume=True)
    assert whole is not None
    assert pieces is not None
    first, second = (FlowPrior.load(path).network.state_dict() for path in (whole, pieces))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_the_finished_prior_says_what_it_was_made_of(recipe, training_data, tmp_path):
    out = train(recipe, training_data, tmp_path / "p.safetensors")
    assert out is not None
    manifest = FlowPrior.load(out).manifest
    assert manifest["name"] == "tiny"
    assert manifest["steps"] == 6
    assert manifest["collections"] == ["made up"]
    sigmas, errors = zip(*manifest["denoiser_error"], strict=True)
    assert list(sigmas) == sorted(sigmas)
    # A network that starts as the zero map denoises like a unit Gaussian prior: never worse than sigma.
    assert all(error <= 1.1 * sigma for sigma, error in zip(sigmas[:4], errors[:4], strict=True))


def test_a_prior_of_the_shipped_recipe_has_the_name_of_its_file(recipe, training_data, tmp_path):
    recipe.write_text(RECIPE.replace("tiny", "ct-256"))
    assert FlowPrior.load(train(recipe, training_data, tmp_path / "mine.safetensors")).name == "mine"


def gradient(checkpoint):
    """After one step AdamW's first moment is a tenth of the gradient, Muon's a twentieth."""
    moments = load_checkpoint(checkpoint)["optimiser"]
    adam = [10 * state["exp_avg"].flatten() for state in moments["adam"]["state"].values()]
    muon = [20 * state["momentum_buffer"].flatten() for state in moments["muon"]["state"].values()]
    assert adam
    assert muon
    return torch.cat(adam + muon)


def test_two_processes_have_the_gradient_of_one(training_data, tmp_path):
    path = tmp_path / "one.toml"
    path.write_text(RECIPE.replace("steps = 6", "steps = 1"))
    train(path, training_data, tmp_path / "alone.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "ctflow",
        "train",
        str(path),
        "--data",
        str(training_data),
        "-o",
        str(tmp_path / "two.safetensors"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the prior is written") == 1
    alone, two = (tmp_path / f"{name}.checkpoint" for name in ("alone", "two"))
    first, second = gradient(alone), gradient(two)
    assert 0.01 < first.norm() < 0.9  # not clipped
    # Products may be in bfloat16, rounded to 0.4 %; a sum in place of a mean would be off by a factor of 2.
    assert (second - first).norm() < 0.01 * first.norm()
    assert load_checkpoint(two)["loss"] == pytest.approx(load_checkpoint(alone)["loss"], rel=0.01)


@pytest.mark.parametrize("units", [True, False])
def test_products_are_in_bfloat16_where_the_cpu_has_units(
    recipe, training_data, tmp_path, monkeypatch, caplog, units
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units}, raising=False)
    kinds, convolve = set(), nn.Conv2d.forward

    def noted(self, x):
        y = convolve(self, x)
        if torch.is_grad_enabled():
            kinds.add(y.dtype)
        return y

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    with caplog.at_level("INFO", "ctflow.training.run"):
        train(recipe, training_data, tmp_path / "p.safetensors")
    assert kinds == {torch.bfloat16 if units else torch.float32}
    assert ("no units for bfloat16" in caplog.text) is not units


def test_convolutions_move_along_the_orthogonal_factor_of_their_gradient():
    """The first step of Muon, in closed form: -rate 0.2 √(longer side) U Vᵀ, where the gradient is U S Vᵀ.

    Five Newton-Schulz steps bring singular values to between 0.5 and 1.5, not to 1 (Jordan et al., 2024).
    """
    network = UNet((8, 16), blocks=1, embedding=16).to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(network)
    Optimiser(network, weight_decay=0).step(1e-3)
    for name in ("down.1.0.conv1", "up.0.0.conv1", "widen.0"):
        kernel, old = network.get_submodule(name).weight, before.get_submodule(name).weight
        # Which order a kernel's entries have as a row does not change the factor's entries.
        left, _, right = torch.linalg.svd(kernel.grad.flatten(1), full_matrices=False)
        step = (old - kernel).detach().flatten(1) / (1e-3 * 0.2 * max(kernel.flatten(1).shape) ** 0.5)
        values = torch.linalg.svdvals(step)
        assert values.min() > 0.5
        assert values.max() < 1.5
        assert torch.nn.functional.cosine_similarity(step.flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_a_run_starts_from_the_weights_of_a_prior(recipe, training_data, tmp_path):
    first = tmp_path / "first.safetensors"
    train(recipe, training_data, first)
    again = tmp_path / "again.toml"
    again.write_text(f'start = "{first}"\n' + RECIPE.replace("every = 4", "every = 4, rate = 0.0, seed = 1"))
    train(again, training_data, tmp_path / "again.safetensors")
    old, new = (FlowPrior.load(tmp_path / f"{name}.safetensors").network for name in ("first", "again"))
    # At rate 0 a run ends where it starts.
    for parameter, started in zip(new.parameters(), old.parameters(), strict=True):
        torch.testing.assert_close(parameter, started, rtol=0, atol=0)
    again.write_text(again.read_text().replace("[8, 16]", "[8, 8]"))
    with pytest.raises(ProtocolError, match=r"'first.safetensors' cannot start this run"):
        train(again, training_data, tmp_path / "other.safetensors")


def test_moments_of_another_optimiser_are_refused(recipe, training_data, tmp_path):
    checkpoint = tmp_path / "o.checkpoint"
    train(recipe, training_data, checkpoint.with_suffix(".safetensors"))
    state = load_checkpoint(checkpoint)
    torch.save({**state, "optimiser": state["optimiser"]["adam"]}, checkpoint)
    with pytest.raises(ProtocolError, match="another optimiser"):
        train(recipe, training_data, checkpoint.with_suffix(".safetensors"), resume=True)


def test_a_run_is_never_begun_anew_over_another(recipe, training_data, tmp_path):
    out = tmp_path / "p.safetensors"
    (tmp_path / "p.png").write_text("a picture of somebody's")
    with pytest.raises(OutputError, match=r"give another$"):
        train(recipe, training_data, out)
    (tmp_path / "p.png").unlink()

    def second(step, steps):
        with pytest.raises(OutputError, match="another run"):
            train(recipe, training_data, out, resume=step > 4)

    train(recipe, training_data, out, callback=second)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.stem.startswith("p")}
    assert {path.suffix for path in before} == {".safetensors", ".checkpoint", ".jsonl", ".png"}
    with pytest.raises(OutputError, match="or --resume") as caught:
        train(recipe, training_data, out)
    assert caught.value.exit_code == 6
    assert {path: path.read_bytes() for path in before} == before
    train(recipe, training_data, out, resume=True)
    assert not list(tmp_path.glob(".*"))


def test_the_learning_curve_survives_a_stop(recipe, training_data, tmp_path):
    out = tmp_path / "p.safetensors"

    def stop_at_five(step, steps):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, training_data, out, callback=stop_at_five)
    train(recipe, training_data, out, resume=True)
    curve = [json.loads(line) for line in out.with_suffix(".curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [4, 6]
    assert all(set(point["rmse_hu"]) == {"0.2", "0.5", "0.8"} for point in curve)


def test_an_untrained_network_has_the_error_of_a_unit_gaussian_prior():
    """Its output is zero, so D = x / (sigma² + 1), whose error on u ~ N(0, 1) is sigma / √(sigma² + 1)."""
    plan = {"network": {"channels": [8], "blocks": 1}, "training": {"steps": 1}}
    run = Run(plan, Process(torch.device("cpu")))
    u = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    for t, hu in validate(run.average, [(u, 1.0)]).items():
        sigma = (1 - float(t)) / float(t)
        # Three standard errors of a root mean square over 256² pixels.
        assert hu == pytest.approx(500 * sigma / (sigma**2 + 1) ** 0.5, rel=3 / (2 * 256**2) ** 0.5)


def test_a_diverged_loss_leaves_the_weights_alone(recipe, training_data, tmp_path):
    plan = {"network": {"channels": [8], "blocks": 1}, "training": {"steps": 1}}
    run = Run(plan, Process(torch.device("cpu")))
    before = [p.clone() for p in run.network.parameters()]
    nothing = torch.full((1, 1, 16, 16), torch.nan)
    with pytest.raises(UsageError, match="loss at step 1 is nan"):
        run.advance((nothing, nothing, torch.ones(1), torch.ones(1)), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))


def test_the_manifest_describes_data_and_spacings(training_data, tmp_path):
    path = tmp_path / "zoom.toml"
    path.write_text(RECIPE.replace("every = 4", "zoom = 1.25").replace("steps = 6", "steps = 1"))
    train(path, training_data, tmp_path / "z.safetensors")
    manifest = FlowPrior.load(tmp_path / "z.safetensors").manifest
    assert manifest["spacings_mm"] == pytest.approx([1.5 / 1.25, 1.5 * 1.25])
    # White HU, even from -1000 to 1000, have this deviation and this power at every frequency; each of the
    # 64 frequencies has some 20 coefficients of three slices, those without any are not counted.
    deviation = 2000 / 12**0.5 / 500
    assert manifest["sigma_data"] == 1.0
    assert manifest["standard_deviation"] == pytest.approx(deviation, rel=0.03)
    power = [S for S in manifest["spectrum"][1:] if S > 1e-9]
    assert np.mean(power) == pytest.approx(deviation**2, rel=0.1)
    with Image.open(tmp_path / "z.png") as sheet:
        assert sheet.size == (128, 128)  # sixteen samples of twice the crop


@pytest.mark.parametrize("design", ["unshuffle", "plain", "depthwise"])
def test_designs_work_at_any_multiple_of_their_stride(design):
    network = UNet((8, 16), 1, 16, design)
    torch.manual_seed(0)
    for parameter in network.parameters():  # zeros, too, which would hide what stands before them
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 1, 3 * network.stride, 5 * network.stride, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(2)
    y = network(x, level, level)
    assert y.shape == x.shape
    # A slice's answer does not depend on its neighbours in the batch; rounding of float32 may.
    torch.testing.assert_close(network(x[:1], level[:1], level[:1]), y[:1], rtol=1e-4, atol=1e-5)
    for other in ((level + 1, level), (level, level + 1)):  # noise level and spacing are heard
        assert (network(x, *other) - y).abs().max() > 0.01
    unknown = torch.full((2,), torch.nan)
    assert network(x, level, unknown).isfinite().all()


def test_bad_recipes_are_explained(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("name = 'x'")
    with pytest.raises(ProtocolError, match="lacks network, shares, training"):
        train(path, tmp_path, tmp_path / "o.safetensors")
    changes = {
        "stepps": ("steps", "stepps"),
        "unknown key 'colour'": ("name =", "colour = 'red'\nname ="),
        r"training\.batch must be at least 1": ("batch = 2", "batch = 0"),
        "multiple of 4": ("crop = 16", "crop = 18"),
        "no network design 'transformer'": ("blocks = 1", "blocks = 1, design = 'transformer'"),
        "multiples of 8": ("[8, 16]", "[8, 12]"),
        "shares must be numbers above 0": ('"256" = 1.0', '"256" = 0.0'),
    }
    for message, (old, new) in changes.items():
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(ProtocolError, match=message):
            train(path, tmp_path, tmp_path / "o.safetensors")


def test_missing_data_and_checkpoints_are_explained(recipe, training_data, tmp_path):
    with pytest.raises(UsageError, match=r"no index\.json"):
        train(recipe, tmp_path, tmp_path / "o.safetensors")
    with pytest.raises(UsageError, match="no checkpoint"):
        train(recipe, training_data, tmp_path / "o.safetensors", resume=True)
    (tmp_path / "o.checkpoint").write_bytes(b"not a checkpoint")
    with pytest.raises(UnreadableError, match="damaged"):
        train(recipe, training_data, tmp_path / "o.safetensors", resume=True)
    with pytest.raises(OutputError, match="no folder for"):
        train(recipe, training_data, tmp_path / "nowhere" / "o.safetensors")
    recipe.write_text(RECIPE.replace('"256" = 1.0', '"256" = 1.0, "1024" = 1.0'))
    with pytest.raises(UsageError, match="no 'train' slices of kind 1024"):
        train(recipe, training_data, tmp_path / "p.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_named(recipe, training_data, tmp_path):
    with pytest.raises(BackendError, match="'cuda' is not on this machine, which has cpu"):
        train(recipe, training_data, tmp_path / "o.safetensors", device="cuda")


def test_a_checkpoint_of_another_recipe_is_refused(recipe, training_data, tmp_path):
    out = tmp_path / "o.safetensors"
    train(recipe, training_data, out)
    recipe.write_text(RECIPE.replace("steps = 6", "steps = 7"))
    with pytest.raises(ProtocolError, match="belongs to another recipe"):
        train(recipe, training_data, out, resume=True)
