"""Prior files that are not what they should be, and images that the prior was not trained on."""

import hashlib
import json
import warnings
from importlib.resources import files

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ctflow.cli import main
from ctflow.errors import OutputError, UnreadableError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.priors import FlowPrior, PriorWarning
from ctflow.priors._manifest import manifest_text
from ctflow.priors._unet import UNet
from ctflow.priors.network import save
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
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
GAUSSIAN = ("name", "mean", "hu_centre", "hu_width")
LEFT_OUT = object()


@pytest.fixture
def ours(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save(path, UNet(**SMALL).state_dict(), MANIFEST)
    return path


def rewritten(path, changes=None, text=None, tensors=None, out=None):
    """A file whose manifest says something else, and hashes that agree with it, as a liar would write it."""
    tensors = load_file(path) if tensors is None else tensors
    with safe_open(path, framework="pt") as file:
        manifest = json.loads(file.metadata()["manifest"]) | (changes or {})
    manifest = {key: value for key, value in manifest.items() if value is not LEFT_OUT}
    for key in {"schema", "weights_sha256", "sha256"} - (changes or {}).keys():
        del manifest[key]
    written = json.loads(manifest_text(manifest, tensors)) | {
        k: v for k, v in manifest.items() if k in (changes or {})
    }
    save_file(tensors, out or path, {"manifest": json.dumps(written) if text is None else text})
    return out or path


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_a_truncated_file_is_refused(ours, kept):
    ours.write_bytes(ours.read_bytes()[:kept])
    with pytest.raises(UnreadableError, match="not a whole safetensors file"):
        FlowPrior.load(ours)


@pytest.mark.parametrize("text", ["{not json", "[" * 100_000, "3", "null"])
def test_a_manifest_that_is_no_table_is_refused(ours, text):
    with pytest.raises(UnreadableError, match=r"manifest of prior 'small\.safetensors' is no"):
        FlowPrior.load(rewritten(ours, text=text))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hu_width", wrong) for wrong in (NAN, INF, -500.0, 0.0, 1e6, "500", True, None, [500.0], 10**400)),
        *(("hu_centre", wrong) for wrong in (NAN, -1e6, "x")),
        *(("mean", wrong) for wrong in (NAN, 1e9, "-1", False)),
        *(
            ("denoiser_error", wrong)
            for wrong in ([], [[1.0]], [[1.0, NAN]], [[1.0, 0.0]], [[2.0, 1], [1.0, 1]], 3)
        ),
        *(("hu_range", wrong) for wrong in ([1500.0, -1000.0], [NAN, 1.0], [0.0], "all", [0, 1, 2])),
        *(("spacings_mm", wrong) for wrong in ([0.9, 0.6], [0.0, 1.0], [-1.0, 1.0], [0.1, INF])),
        *(("network", wrong) for wrong in ({"layers": 3}, [], {"channels": [100_000, 100_000]})),
        *(
            ("network", SMALL | {"channels": wrong})
            for wrong in ([], [8.0], [8] * 99, [4096] * 8, [True, 16])
        ),
        *(("network", SMALL | {"blocks": wrong}) for wrong in (0, -1, 10**9, 1.0)),
        *(("network", SMALL | {"embedding": wrong}) for wrong in (0, 10**9)),
        ("network", SMALL | {"design": "pickled"}),
        *(("name", wrong) for wrong in (3, "", "a\x1b[31m", "n" * 1000)),
        ("kind", "wavelet"),
        ("kind", 3),
        ("sigma_data", 0.5),
        ("convention", "x_t = t z + (1 - t) u"),
        ("licence", 3),
        ("hu_wdith", 500.0),
    ],
)
def test_what_a_manifest_says_is_typed_and_bounded(ours, key, value):
    """The file is whole and its hashes agree."""
    with pytest.raises(UnreadableError, match=key):
        FlowPrior.load(rewritten(ours, {key: value}))


@pytest.mark.parametrize(
    "key", ["kind", "name", "mean", "hu_centre", "hu_width", "network", "denoiser_error"]
)
def test_what_a_manifest_must_say_is_named(ours, key):
    with pytest.raises(UnreadableError, match=key):
        FlowPrior.load(rewritten(ours, {key: LEFT_OUT}))


@pytest.mark.parametrize("change", [{"hu_width": 501.0}, {"licence": "CC0"}, {"steps": 7}])
def test_no_entry_can_be_changed_alone(ours, change):
    with safe_open(ours, framework="pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
    save_file(load_file(ours), ours, {"manifest": json.dumps(manifest | change)})
    with pytest.raises(UnreadableError, match="do not match their hash"):
        FlowPrior.load(ours)


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_weights_are_finite_half_precision(ours, wrong):
    tensors = load_file(ours)
    tensors["head.bias"][0] = wrong
    with pytest.raises(UnreadableError, match=r"'head\.bias' holds torch\.float16 and must hold finite"):
        FlowPrior.load(rewritten(ours, tensors=tensors))
    # The same bytes as whole numbers: names, shapes and bytes stay.
    whole = {key: value.view(torch.int16) for key, value in load_file(ours).items()}
    with pytest.raises(UnreadableError, match=r"holds torch\.int16"):
        FlowPrior.load(rewritten(ours, tensors=whole))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"spectrum": torch.ones(1)},
        {"spectrum": torch.ones(4, 4)},
        {"spectrum": torch.tensor([1.0, 0.0])},
        {"spectrum": torch.ones(8), "more": torch.ones(8)},
        {"spectrum": torch.tensor([1.0, NAN])},
    ],
)
def test_a_gaussian_prior_holds_a_spectrum_and_nothing_else(tmp_path, tensors):
    path = tmp_path / "g.safetensors"
    save(path, {"spectrum": torch.ones(8)}, {key: MANIFEST[key] for key in GAUSSIAN} | {"kind": "gaussian"})
    assert FlowPrior.load(path).residual_variance(0.5) == pytest.approx(0.5)  # white: 1 / (1 + 1)
    with pytest.raises(UnreadableError, match="spectrum"):
        FlowPrior.load(rewritten(path, tensors=tensors))


def test_a_shipped_name_is_kept_for_what_ships(tmp_path, monkeypatch):
    """An edited copy is refused though its hashes agree, wherever it lies."""
    shipped = files("ctflow.priors") / "ct-gaussian.safetensors"
    same = rewritten(shipped, out=tmp_path / "same.safetensors")
    assert FlowPrior.load(same).name == "ct-gaussian"
    edited = rewritten(shipped, {"hu_width": 5000.0}, out=tmp_path / "ct-gaussian.safetensors")
    with pytest.raises(UnreadableError, match="is not what this version of ctflow ships under that name"):
        FlowPrior.load(edited)
    renamed = rewritten(edited, {"name": "other"})
    assert FlowPrior.load(renamed).name == "other"
    monkeypatch.setattr("ctflow.priors._manifest._HOME", tmp_path)
    monkeypatch.setattr("ctflow.priors.network.files", lambda package: tmp_path)
    with pytest.raises(UnreadableError, match="is not what this version of ctflow ships under that name"):
        FlowPrior.load("ct-gaussian")
    (tmp_path / "same.safetensors").rename(tmp_path / "further.safetensors")
    with pytest.raises(UsageError, match="there is no prior 'further'"):
        FlowPrior.load("further")


def earlier(ours, **changes):
    """The file as the version before wrote it: a hash of the weights alone."""
    with safe_open(ours, framework="pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
    del manifest["sha256"]
    save_file(load_file(ours), ours, {"manifest": json.dumps(manifest | {"schema": 1} | changes)})


def test_a_file_of_an_earlier_version_is_refused_with_what_renews_it(ours, monkeypatch, capsys):
    monkeypatch.chdir(ours.parent)
    weights = load_file(ours)
    earlier(ours, name="ct-256")
    with pytest.raises(UnreadableError, match="written by an earlier version") as caught:
        FlowPrior.load(ours)
    command = str(caught.value).partition(": ctflow ")[2].replace("NEW", "mine").split()
    assert main(command) == 0
    assert "mine: FlowPrior" in capsys.readouterr().out  # a name that ships is not given away
    assert main(command) == OutputError.exit_code
    new = load_file("mine.safetensors")
    assert new.keys() == weights.keys()
    assert all(torch.equal(new[key], value) for key, value in weights.items())


def test_what_cannot_be_is_not_hashed_anew(ours, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(1)}, bare)
    new = tmp_path / "new.safetensors"
    rewritten(ours, {"weights_sha256": "0" * 64})
    assert main(["priors", str(ours), "--rehash", str(new)]) == UnreadableError.exit_code
    rewritten(ours, {"hu_width": NAN})
    assert main(["priors", str(ours), "--rehash", str(new)]) == UnreadableError.exit_code
    assert main(["priors", str(bare), "--rehash", str(new)]) == UnreadableError.exit_code
    assert main(["priors", "--rehash", str(new)]) == UsageError.exit_code
    assert not new.exists()


def test_a_network_of_another_shape_takes_no_memory(ours):
    """The largest that a manifest may describe: 8 levels of 4096 channels, 16 blocks."""
    with pytest.raises(UnreadableError, match="billion parameters"):
        FlowPrior.load(rewritten(ours, {"network": {"channels": [4096] * 8, "blocks": 16}}))


def test_a_file_must_have_the_hash_that_is_expected(ours):
    right = hashlib.sha256(ours.read_bytes()).hexdigest()
    assert FlowPrior.load(ours, sha256=right.upper()).sha256 == right
    with pytest.raises(UnreadableError, match="should have the SHA-256 00"):
        FlowPrior.load(ours, sha256="0" * 64)


def test_a_manifest_is_not_overridden(ours):
    with pytest.raises(UsageError, match="no convention"):
        FlowPrior.load(ours, convention="edm")


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

    def warned(spacing_mm, most, corner=-1000.0):
        data = torch.full((2, 16, 16), -1000.0)
        data[0, 8, 8], data[:, 0, 0] = most, corner
        mask = torch.ones(2, 16, 16, dtype=torch.bool)
        mask[:, 0, 0] = False
        volume = Volume(data, VolumeGeometry((2, 16, 16), (3.0, spacing_mm, spacing_mm)), "HU", mask)
        measurement = prepare(protocol, volume)
        return " ".join(measurement.warnings(measurement.prior(str(ours))))

    assert "prior" not in warned(0.7, 1540.0)
    assert "the pixels are 3 mm and prior 'small' was trained on 0.6 to 0.9 mm" in warned(3.0, 1000.0)
    assert "prior" not in warned(0.7, 1540.0, corner=-3024.0)  # what no scanner reconstructed is no value
    # One of 510 pixels.
    assert "0.2 % of the pixels lie outside the -1000 to 1500 HU" in warned(0.7, 3000.0)
