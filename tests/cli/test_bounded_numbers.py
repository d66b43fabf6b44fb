"""A number from a file or an option is typed and bounded before it is used: no memory, no loop, one line."""

import inspect
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch

from ctflow.cli import main
from ctflow.dicom.reading.tilt import straightening
from ctflow.errors import CTFlowError, GeometryError, ProtocolError, StudyError, UsageError
from ctflow.experiments import Study
from ctflow.experiments.cases import cases
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.operators import Radon
from ctflow.priors import FlowPrior
from ctflow.rawdata.geometry_file import read_sinogram
from ctflow.registry import build, find_class, names
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.tables import ANYTHING, Listed, Table, Whole, kinds_of, parse_toml, require_kind
from ctflow.training.recipe import Schedule, read_recipe
from ctflow.volume import Volume
from tests.experiments.test_study import PROTOCOL as TINY
from tests.experiments.test_study import STUDY
from tests.runs.test_protocol import SMALL as PROTOCOL
from tests.training.test_training import RECIPE

GRID = VolumeGeometry((1, 64, 64), (1.0, 1.0, 1.0))
HEX = "0x" + "f" * 5000  # a whole number whose decimal text Python refuses to write
WRONG_NUMBERS = ["nan", "inf", "-inf", "1e309", "true", '"3"', "[]", "{}", "1979-05-27", "10" + "0" * 30, HEX]


@pytest.mark.parametrize("wrong", WRONG_NUMBERS, ids=lambda text: text[:12])
@pytest.mark.parametrize(
    "key",
    [
        "method.iterations",
        "method.strength",
        "beside.sirt.iterations",
        "noise.photons",
        "geometry.angles",
        "geometry.pitch",
        "geometry.bins",
        "geometry.arc_degrees",
        "geometry.shift_bins",
        "accept.rmse_hu",
        "mu_water",
        "energy_kev",
    ],
)
def test_a_protocol_takes_no_number_of_another_kind(key, wrong):
    with pytest.raises((ProtocolError, GeometryError)):
        Protocol.parse("p", PROTOCOL).override([f"{key}={wrong}"]).validate().operator(GRID)


@pytest.mark.parametrize(
    "change",
    [
        "geometry.angles=1000000000",
        "geometry.bins=1000000000",
        "geometry.pitch=1e-12",
        "geometry.pitch=1e-300",
        "geometry={name='parallel-beam', angles=100000, bins=100000}",
        "geometry={name='parallel-beam', angles=100000, pitch=1e-5}",
        "geometry={name='parallel-beam', angles=9, axis_offset=1e14}",
        "geometry={name='fan-beam', angles=9, source_axis=1e300, source_detector=1e301}",
        "geometry={name='vector-beam', vectors=[[1]], bins=1000000000}",
        "operator={name='blur', sigma=1e9}",
        "operator={name='motion-blur', length=100000}",
        "operator={name='mask', seed=18446744073709551616}",
        "operator={name='downsample', factor=100000}",
        "method={name='ms-flow', states=100000}",
        "method={name='single-shooting', segments=100000}",
        "method={name='tv', iterations=1000000000}",
        "beside=3",
        "beside=[3]",
        "tuned=[[]]",
        "accept=[]",
        "noise=3",
        "method=[]",
        "geometry.angles=['a']",
        "geometry.angles=[0, [1]]",
        "noise.sigma.deep={a={b={c={d={e={f={g={h={i={j={k={l={m={n={o={p={q=1}}}}}}}}}}}}}}}}}",
    ],
)
def test_what_would_take_memory_is_refused_first(change):
    with pytest.raises((ProtocolError, GeometryError)):
        Protocol.parse("p", PROTOCOL).override([change]).validate().operator(GRID)


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, ".".join("a" * 3000) + " = 1", "x = " + "9" * 5000])
def test_a_file_that_is_deep_or_long_is_no_crash(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text)
    for read in (Protocol.load, Study.load, read_sinogram, read_recipe):
        with pytest.raises(UsageError):
            read(path)


def test_a_device_is_no_file(tmp_path):
    study = tmp_path / "s.toml"
    (tmp_path / "tiny.toml").write_text(TINY)
    study.write_text(
        STUDY.replace("{ phantoms = [0, 1, 2, 3], size = 32, slices = 1 }", "{ csv = '/dev/zero' }")
    )
    with pytest.raises(StudyError, match="the CSV of the cases is not a file"):
        cases(Study.load(study), {})
    with pytest.raises(UsageError, match="is not a file"):
        read_recipe(Path("/dev/zero"))
    with pytest.raises(UsageError, match="no prior '/dev/zero'"):
        FlowPrior.load("/dev/zero")
    with pytest.raises(UsageError, match="no protocol is named"):
        Protocol.load("/dev/zero")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "p.toml"
    path.write_bytes(b"\xff\xfe\x00")
    for read in (Protocol.load, Study.load, read_sinogram, read_recipe):
        with pytest.raises(UsageError, match="not UTF-8 text"):
            read(path)


def test_every_keyword_that_a_file_can_give_has_a_kind():
    for kind in ("geometry", "noise", "operator", "method"):
        for name in names(kind):
            call = find_class(kind, name)
            keywords = inspect.signature(call).parameters.keys() - {"volume", "beam"}  # built, not read
            assert {key for key in keywords if kinds_of(call).get(key, ANYTHING) == ANYTHING} == set(), name


def test_a_bound_is_written_beside_the_parameter():
    @dataclass
    class Own:
        steps: Annotated[int, Whole(1, 7)] = 1
        share: float = 0.5
        name: str | None = None
        pairs: list[tuple[float, float]] | None = None

    kinds = kinds_of(Own)
    require_kind(7, kinds["steps"], "steps")
    require_kind([[1, 2.0]], kinds["pairs"], "pairs")
    require_kind(None, kinds["name"], "name")
    for key, wrong in {"steps": 8, "share": "1", "name": 3, "pairs": [[1, "2"]]}.items():
        with pytest.raises(ProtocolError, match=key):
            require_kind(wrong, kinds[key], key)


def test_a_message_says_where_what_and_which_bound():
    with pytest.raises(
        ProtocolError, match=r"method 'tv': iterations is 3\.5 and must be a whole number from"
    ):
        build("method", {"name": "tv", "iterations": 3.5})
    with pytest.raises(
        StudyError, match=r"^x: a\[1\] is 9 and must be a whole number from 0 to 5; correct it$"
    ):
        require_kind({"a": [1, 9]}, Table({"a": Listed(Whole(0, 5))}), "x", StudyError)
    with pytest.raises(StudyError, match=r"^x: a is 5 and must be a list of 0 to 9 entries, each a table;"):
        require_kind({"a": 5}, Table({"a": Listed(Table(), 0, 9)}), "x", StudyError)
    assert parse_toml("a = 1\nb = [1.5]", "x") == {"a": 1, "b": [1.5]}


@pytest.mark.parametrize(
    "change",
    [
        ("trials = 3", "trials = 1000000000"),
        ("trials = 3", "trials = 0"),
        ("trials = 3", "trials = true"),
        ("trials = 3", "seed = -1"),
        ("size = 32", "size = 1000000"),
        ("size = 32", "size = nan"),
        ("size = 32", "size = '32'"),
        ("slices = 1 }", "slices = 1000000000 }"),
        ("slices = 1 }", "slices = 1, noise_hu = inf }"),
        ("phantoms = [0, 1, 2, 3]", "phantoms = 1000000000"),
        ("phantoms = [0, 1, 2, 3]", "phantoms = [-1]"),
        ("protocols =", "seeds = [1e309]\nprotocols ="),
        ("protocols =", "seeds = [-1]\nprotocols ="),
        ("protocols =", "samples = 0\nprotocols ="),
        ("protocols =", "samples = 1000000000\nprotocols ="),
        ("protocols =", "lesions = { places = 1000000000 }\nprotocols ="),
        ("protocols =", "lesions = { diameters_mm = [nan] }\nprotocols ="),
        ("protocols =", "whiteness = { lags = true }\nprotocols ="),
        ("protocols =", "statistics = { margin_hu = nan }\nprotocols ="),
        ("protocols =", "statistics = { margin_hu = '5' }\nprotocols ="),
        ("split = {", "split = { seed = -1, "),
        ('validation = ["phantom-0"]', "validation = nan"),
        ("high = 9", "high = 1000000000"),
        ("high = 9", "high = inf"),
        ("[methods.fbp]", "[methods]\nfbp = 3\n[methods.tv]"),
        ("[methods.fbp]", "[methods.fbp]\ntune = 3"),
    ],
)
def test_a_study_takes_no_number_of_another_kind(tmp_path, change):
    (tmp_path / "tiny.toml").write_text(TINY)
    assert change[0] in STUDY
    with pytest.raises(StudyError):
        cases(Study.parse("small", STUDY.replace(*change), tmp_path), {})


@pytest.mark.parametrize(
    "change",
    [
        ("pixels = 32", "pixels = 1000000000"),
        ("pixels = 32", "pixels = 32.7"),
        ("pixels = 32", "pixels = true"),
        ("pixel_mm = 1.0", "pixel_mm = nan"),
        ("pixel_mm = 1.0", "pixel_mm = 1.0, slice_mm = -1"),
        ("pitch = 1.0", "pitch = 1.0, angles = 1000000000"),
        ("pitch = 1.0", "pitch = inf"),
        ('data = "y.npy"', 'data = "y.npy"\nphotons = nan'),
        ('data = "y.npy"', 'data = "y.npy"\nphotons = "many"'),
        ('data = "y.npy"', 'data = "y.npy"\nmu_water = 1e309'),
        ('data = "y.npy"', 'data = "y.npy"\nfind_axis = 1'),
        ('data = "y.npy"', "data = 3"),
        ('data = "y.npy"', 'data = "/etc/passwd"'),
        ('data = "y.npy"', 'data = "/dev/zero"'),
    ],
)
def test_a_geometry_file_takes_no_number_of_another_kind(tmp_path, change):
    text = (
        'units = { length = "mm", angle = "degrees" }\ndata = "y.npy"\n'
        'geometry = { name = "parallel-beam", pitch = 1.0 }\nimage = { pixels = 32, pixel_mm = 1.0 }\n'
    )
    np.save(tmp_path / "y.npy", np.zeros((9, 32), np.float32))
    file = tmp_path / "y.toml"
    file.write_text(text)
    assert read_sinogram(file).beam.bins == 32
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(CTFlowError):
        read_sinogram(file)


@pytest.mark.parametrize(
    "change",
    [
        ("channels = [8, 16]", "channels = [100000, 100000]"),
        ("channels = [8, 16]", "channels = [4096, 4096, 4096, 4096]"),
        ("channels = [8, 16]", "channels = 8"),
        ("blocks = 1", "blocks = 1000000000"),
        ("embedding = 16", "embedding = 1000000000"),
        ("embedding = 16", "embedding = 17"),
        ("steps = 6", "steps = true"),
        ("steps = 6", "steps = 1e309"),
        ("batch = 2", "batch = 1000000000"),
        ("batch = 2", "batch = 4096, zoom = nan"),
        ("crop = 16", "crop = 4096, batch = 4096"),
        ("crop = 16", "crop = 1000000000"),
        ("every = 4", "rate = nan"),
        ("every = 4", "log_sigma_std = inf"),
        ("every = 4", "seed = -1"),
        ('"256" = 1.0', '"256" = nan'),
        ('"256" = 1.0', '"256" = "all"'),
        ('name = "tiny"', 'name = "a\\u001b[31m"'),
    ],
)
def test_a_recipe_takes_no_number_of_another_kind(tmp_path, change):
    assert change[0] in RECIPE
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.replace(*change).replace("batch = 2, crop = 4096, batch", "crop = 4096, batch"))
    with pytest.raises(ProtocolError):
        read_recipe(path)


def test_the_shipped_recipe_is_within_all_bounds():
    recipe = read_recipe(Path(str(files("ctflow.priors"))) / "ct-256.toml")
    assert Schedule(**recipe["training"]).crop == 256


@pytest.mark.parametrize(
    "words",
    [
        ["--samples", "1000000000"],
        ["--samples", "0"],
        ["--seed", "-1"],
        ["--seed", "9" * 30],
        ["--slices", "0:" + "9" * 5000],
        ["--slices", "²:³"],
        ["--energy-kev", "nan"],
        ["--energy-kev", "inf"],
        ["--energy-kev", "0"],
        ["--hu-scale", "nan"],
    ],
)
def test_an_option_takes_no_number_that_cannot_be(tmp_path, words, capsys):
    assert main(["run", "deblur", str(tmp_path), "--dry-run", *words]) in (2, 3)
    assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--jobs", "1000000"], ["--jobs", "0"], ["--shard", "1/" + "9" * 5000], ["--shard", "0/2"]]
)
def test_a_study_takes_no_option_that_cannot_be(tmp_path, words, capsys):
    assert main(["study", "run", "phantoms", "-o", str(tmp_path / "o"), "--dry-run", *words]) == 2
    assert "unexpected" not in capsys.readouterr().err


def test_a_product_is_bounded_where_its_factors_are_not():
    with pytest.raises(GeometryError, match=r"1 rows × 20000 views × 20000 bins are 4e\+08 rays"):
        Radon(GRID, ParallelBeam(20_000, bins=20_000, pitch=1.0))
    assert Radon(GRID, ParallelBeam(3000, bins=100, pitch=1.0)).range_shape == (1, 3000, 100)


def test_the_data_of_all_slices_are_bounded_together():
    data = torch.full((1, 64, 64), -1000.0).expand(80, 64, 64)
    volume = Volume(data, VolumeGeometry((80, 64, 64), (1.0, 1.0, 1.0)), "HU")
    many = Protocol.parse("p", PROTOCOL).override(["geometry.angles=20000", "geometry.bins=6000"])
    with pytest.raises(GeometryError, match=r"80 slices with 1 × 20000 × 6000 data each are 9\.6e\+09"):
        prepare(many, volume)
    assert prepare(many, volume, slices=(0, 2)).A.range_shape == (1, 20_000, 6000)


def test_a_stack_that_leans_beyond_all_gantries_is_refused():
    affine = ((0.0, 0.0, 1.0, 0.0), (1e6, 1.0, 0.0, 0.0), (1e6, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    with pytest.raises(GeometryError, match="straightened slices have"):
        straightening(VolumeGeometry((3, 32, 32), (1e6, 1.0, 1.0), affine))
