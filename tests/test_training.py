"""Training: a stopped and resumed run is the same run, and bad recipes are explained."""

import json
import os
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
from ctflow.training import Batches, Schedule, Slices, train
from ctflow.training.export import load_checkpoint
from ctflow.training.processes import Process
from ctflow.training.run import Run
from ctflow.training.validation import validate

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
name = "tiny"
network = { channels = [8, 16], blocks = 1, embedding = 16 }
training = { steps = 6, batch = 2, crop = 16, every = 4 }
shares = { "256" = 1.0 }
"""


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    index = []
    for split in ("train", "validation"):
        hu = random.integers(-1000, 1000, size=(3, 32, 32)).astype(np.int16)
        np.savez(folder / f"{split}.npz", hu=hu)
        entry = {"file": f"{split}.npz", "split": split, "kind": "256", "collection": "made up"}
        index.append({**entry, "pixel_spacing_mm": 1.5})
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_a_resumed_run_ends_with_the_same_weights(recipe, data, tmp_path):
    whole = train(recipe, data, tmp_path / "whole.safetensors")

    def stop_after_three(step, steps):
        if step == 3:
            raise KeyboardInterrupt

    out = tmp_path / "pieces.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, out, callback=stop_after_three)
    assert train(recipe, data, out, resume=True, max_seconds=0) is None
    pieces = train(recipe, data, out, resume=True)
    assert whole is not None
    assert pieces is not None
    first, second = (FlowPrior.load(path).network.state_dict() for path in (whole, pieces))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_the_finished_prior_says_what_it_was_made_of(recipe, data, tmp_path):
    out = train(recipe, data, tmp_path / "p.safetensors")
    assert out is not None
    manifest = FlowPrior.load(out).manifest
    assert manifest["name"] == "tiny"
    assert manifest["steps"] == 6
    assert manifest["collections"] == ["made up"]
    sigmas, errors = zip(*manifest["denoiser_error"], strict=True)
    assert list(sigmas) == sorted(sigmas)
    # A network that starts as the zero map denoises like a unit Gaussian prior: never worse than sigma.
    assert all(error <= 1.1 * sigma for sigma, error in zip(sigmas[:4], errors[:4], strict=True))


def test_crops_are_pieces_of_the_slices(data):
    slices = Slices(data, "train")
    batches = Batches(slices, {"256": 1.0}, Schedule(1, batch=4, crop=32, told=1.0))
    crops, _, _, spacings = batches[0]
    assert spacings.tolist() == [1.5] * 4
    hu = crops[:, 0] * 500 - 300
    wholes = [torch.from_numpy(image).float() for image in slices.by_kind["256"]]
    for crop in hu:
        views = [
            op(v)
            for v in (crop, crop.T)
            for op in (lambda a: a, lambda a: a.flip(0), lambda a: a.flip(1), lambda a: a.flip(0, 1))
        ]
        # The network range is float32: HU come back to within 1e-3.
        assert any((view - whole).abs().max() < 1e-3 for view in views for whole in wholes)


def test_zoom_changes_spacing_and_size_alike(data):
    """A resampled crop of a ramp keeps its slope per mm."""
    slices = Slices(data, "train")
    ramp = np.arange(40)[:, None] * 10 + np.arange(40)[None] * 10
    slices.by_kind = {"256": [ramp.astype(np.int16)]}
    slices.spacings = {"256": [1.5]}
    schedule = Schedule(1, batch=16, crop=24, zoom=1.5, told=1.0)
    crops, _, _, spacings = Batches(slices, {"256": 1.0}, schedule)[0]
    slope = crops[:, 0].diff(dim=2)[:, 8:16, 8:16].abs().mean((1, 2)) * 500 / spacings
    torch.testing.assert_close(slope, torch.full((16,), 10 / 1.5), rtol=0.02, atol=0)
    assert spacings.min() < 1.2
    assert spacings.max() > 1.8


def test_noise_follows_the_law_of_the_schedule(data):
    schedule = Schedule(1, batch=400, crop=8, log_sigma_mean=-1.0, log_sigma_std=0.5)
    u, noisy, sigma, spacing = Batches(Slices(data, "train"), {"256": 1.0}, schedule)[3]
    # Four standard errors of a mean, of a standard deviation and of a share out of 400.
    assert sigma.log().mean() == pytest.approx(-1.0, abs=4 * 0.5 / 20)
    assert sigma.log().std() == pytest.approx(0.5, rel=4 / 28)
    assert spacing.isnan().float().mean() == pytest.approx(0.2, abs=4 * 0.4 / 20)
    z = (noisy - u) / sigma[:, None, None, None]
    assert z.std() == pytest.approx(1.0, abs=4 / (2 * z.numel()) ** 0.5)


def test_processes_cut_what_one_would(data):
    slices, schedule = Slices(data, "train"), Schedule(1, batch=4, crop=16)
    whole = Batches(slices, {"256": 1.0}, schedule)[7]
    shares = [Process(torch.device("cpu"), rank, 2).share(schedule.batch) for rank in range(2)]
    parts = [Batches(slices, {"256": 1.0}, schedule, share)[7] for share in shares]
    for mine, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.cat(pieces), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ProtocolError, match="4 crops cannot be shared by 3"):
        Process(torch.device("cpu"), 0, 3).share(4)


def test_two_processes_have_the_gradient_of_one(data, tmp_path):
    """AdamW's first moment after one step is a tenth of the gradient, as long as that was not clipped."""
    path = tmp_path / "one.toml"
    path.write_text(RECIPE.replace("steps = 6", "steps = 1"))
    train(path, data, tmp_path / "alone.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "ctflow",
        "train",
        str(path),
        "--data",
        str(data),
        "-o",
        str(tmp_path / "two.safetensors"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the prior is written") == 1
    alone, two = (load_checkpoint(tmp_path / f"{name}.checkpoint") for name in ("alone", "two"))
    first, second = (
        torch.cat([moments["exp_avg"].flatten() for moments in state["optimiser"]["state"].values()]) * 10
        for state in (alone, two)
    )
    assert 0.01 < first.norm() < 0.9
    # Products are in bfloat16, rounded to 0.4 %; a sum in place of a mean would be off by a factor of 2.
    assert (second - first).norm() < 0.01 * first.norm()
    assert two["loss"] == pytest.approx(alone["loss"], rel=0.01)


def test_the_learning_curve_survives_a_stop(recipe, data, tmp_path):
    out = tmp_path / "p.safetensors"

    def stop_at_five(step, steps):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, out, callback=stop_at_five)
    train(recipe, data, out, resume=True)
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


def test_a_diverged_loss_leaves_the_weights_alone(recipe, data, tmp_path):
    plan = {"network": {"channels": [8], "blocks": 1}, "training": {"steps": 1}}
    run = Run(plan, Process(torch.device("cpu")))
    before = [p.clone() for p in run.network.parameters()]
    nothing = torch.full((1, 1, 16, 16), torch.nan)
    with pytest.raises(UsageError, match="loss at step 1 is nan"):
        run.advance((nothing, nothing, torch.ones(1), torch.ones(1)), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))


def test_the_manifest_describes_data_and_spacings(data, tmp_path):
    path = tmp_path / "zoom.toml"
    path.write_text(RECIPE.replace("every = 4", "zoom = 1.25").replace("steps = 6", "steps = 1"))
    train(path, data, tmp_path / "z.safetensors")
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


def test_the_hash_is_of_the_pixels_and_not_of_names(data):
    before = Slices(data, "train").sha256()
    (data / "train.npz").rename(data / "renamed.npz")
    index = json.loads((data / "index.json").read_text())
    index[0]["file"] = "renamed.npz"
    (data / "index.json").write_text(json.dumps(index))
    assert Slices(data, "train").sha256() == before
    hu = np.load(data / "renamed.npz")["hu"]
    hu[0, 0, 0] += 1
    np.savez(data / "renamed.npz", hu=hu)
    assert Slices(data, "train").sha256() != before


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
        "unknown key colour": ("name =", "colour = 'red'\nname ="),
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


def test_missing_data_and_checkpoints_are_explained(recipe, data, tmp_path):
    with pytest.raises(UsageError, match=r"no index\.json"):
        train(recipe, tmp_path, tmp_path / "o.safetensors")
    with pytest.raises(UsageError, match="no checkpoint"):
        train(recipe, data, tmp_path / "o.safetensors", resume=True)
    (tmp_path / "o.checkpoint").write_bytes(b"not a checkpoint")
    with pytest.raises(UnreadableError, match="damaged"):
        train(recipe, data, tmp_path / "o.safetensors", resume=True)
    with pytest.raises(OutputError, match="no folder for"):
        train(recipe, data, tmp_path / "nowhere" / "o.safetensors")
    recipe.write_text(RECIPE.replace('"256" = 1.0', '"256" = 1.0, "1024" = 1.0'))
    with pytest.raises(UsageError, match="no 'train' slices of kind 1024"):
        train(recipe, data, tmp_path / "o.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_named(recipe, data, tmp_path):
    with pytest.raises(BackendError, match="no CUDA device"):
        train(recipe, data, tmp_path / "o.safetensors", device="cuda")


def test_a_checkpoint_of_another_recipe_is_refused(recipe, data, tmp_path):
    out = tmp_path / "o.safetensors"
    train(recipe, data, out)
    recipe.write_text(RECIPE.replace("steps = 6", "steps = 7"))
    with pytest.raises(ProtocolError, match="belongs to another recipe"):
        train(recipe, data, out, resume=True)


@pytest.mark.parametrize(
    ("hu", "message"),
    [
        (np.zeros((1, 32, 32), np.float32), "must be int16"),
        (np.zeros((32, 32), np.int16), "2 axes"),
        (np.full((1, 32, 32), 700, np.int16), "are not HU; apply the rescale"),
        (np.full((1, 32, 32), -2000, np.int16), "100 % outside"),
    ],
)
def test_data_that_are_not_hu_are_refused_without_their_name(data, hu, message):
    np.savez(data / "train.npz", hu=hu)
    with pytest.raises(UsageError, match=message) as caught:
        Slices(data, "train")
    assert "file #0" in str(caught.value)
    assert "npz" not in str(caught.value)


def test_damaged_data_are_explained(data):
    (data / "train.npz").write_bytes(b"PK no archive")
    with pytest.raises(UnreadableError, match="file #0 of the index is missing"):
        Slices(data, "train")
    (data / "index.json").write_text('[{"file": "train.npz"}]')
    with pytest.raises(UnreadableError, match=r"entry #0 of index\.json lacks collection"):
        Slices(data, "train")
    (data / "index.json").write_text("[]")
    with pytest.raises(UsageError, match="no 'train' slices"):
        Slices(data, "train")
    (data / "index.json").write_text("{")
    with pytest.raises(UnreadableError, match="not a list"):
        Slices(data, "train")
