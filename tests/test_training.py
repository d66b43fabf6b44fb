"""Training: a stopped and resumed run is the same run, and bad recipes are explained."""

import json

import numpy as np
import pytest
import torch

from ctflow.errors import ProtocolError, UnreadableError, UsageError
from ctflow.priors import FlowPrior
from ctflow.training import Schedule, Slices, train

RECIPE = """
name = "tiny"
network = { channels = [8, 16], blocks = 1, embedding = 16 }
training = { steps = 6, batch = 2, crop = 16 }
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
    schedule = Schedule(1, batch=4, crop=32, told=1.0)
    crops, spacings = slices.crops({"256": 1.0}, schedule, np.random.default_rng(0))
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
    schedule = Schedule(1, batch=8, crop=24, zoom=1.5, told=1.0)
    crops, spacings = slices.crops({"256": 1.0}, schedule, np.random.default_rng(0))
    slope = crops[:, 0].diff(dim=2)[:, 8:16, 8:16].abs().mean((1, 2)) * 500 / spacings
    torch.testing.assert_close(slope, torch.full((8,), 10 / 1.5), rtol=0.02, atol=0)
    assert spacings.min() < 1.2
    assert spacings.max() > 1.8


def test_bad_recipes_are_explained(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("name = 'x'")
    with pytest.raises(ProtocolError, match="lacks network, shares, training"):
        train(path, tmp_path, tmp_path / "o.safetensors")
    path.write_text(RECIPE.replace("steps", "stepps"))
    with pytest.raises(ProtocolError, match="stepps"):
        train(path, tmp_path, tmp_path / "o.safetensors")


def test_missing_data_and_checkpoints_are_explained(recipe, data, tmp_path):
    with pytest.raises(UsageError, match=r"no index\.json"):
        train(recipe, tmp_path, tmp_path / "o.safetensors")
    with pytest.raises(UsageError, match="no checkpoint"):
        train(recipe, data, tmp_path / "o.safetensors", resume=True)
    (tmp_path / "o.checkpoint").write_bytes(b"not a checkpoint")
    with pytest.raises(UnreadableError, match="damaged"):
        train(recipe, data, tmp_path / "o.safetensors", resume=True)
