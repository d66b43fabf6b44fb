"""Protocols: every shipped one builds, every typo gets an answer, an override is the same as an edit."""

import math

import pytest
import torch

from ctflow.errors import GeometryError, ProtocolError
from ctflow.geometry import VolumeGeometry
from ctflow.registry import find_class
from ctflow.runs.protocol import Protocol, summary_of, texts
from ctflow.scanner import Scanner

SHIPPED = [  # with a flow prior, and so with the same methods beside it
    "dead-columns",
    "deblur",
    "inpaint",
    "limited-angle",
    "low-dose",
    "missing-views",
    "sparse-view-20",
    "sparse-view-20-fan",
    "sparse-view-60",
    "sparse-view-60-fan",
    "super-resolution",
]
SMALL = """# A small one.
geometry = { name = "parallel-beam", angles = 9 }
noise = { name = "poisson" }
method = { name = "tv" }
beside = [{ name = "sirt" }]
reference = { name = "fbp" }
"""


@pytest.fixture
def small():
    return Protocol.parse("small", SMALL)


@pytest.mark.parametrize("name", sorted(texts()))
def test_shipped_protocols_build(name):
    protocol = Protocol.load(name).validate()
    assert protocol.summary == summary_of(texts()[name]) != ""


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_protocols_compare_the_same_methods(name):
    protocol = Protocol.load(name)
    wanted = dict.fromkeys([protocol.tables["reference"]["name"], "tv", "conjugate", "ms-flow"])
    found = [name.replace("conjugate-refinement", "conjugate") for name in protocol.methods()]
    assert sorted(found) == sorted(wanted)
    assert found[0] == next(iter(wanted))  # the others stand in the order of the task's merits


def test_the_promised_protocols_ship():
    promised = {"sparse-view-20", "sparse-view-60", "limited-angle", "low-dose"}
    assert promised | {"deblur", "super-resolution", "inpaint"} <= set(texts())


def test_limited_angle_leaves_out_a_third_of_the_half_turn():
    views = Protocol.load("limited-angle").beam().views
    assert len(views) == 120
    # Equidistant views with the end point left out: the last lies one step before 120 degrees.
    assert math.degrees(views[-1]) == pytest.approx(119)


@pytest.mark.parametrize(("name", "axis", "share"), [("dead-columns", -1, 0.05), ("missing-views", -2, 0.5)])
def test_an_operator_beside_a_geometry_acts_on_the_projections(name, axis, share):
    A = Protocol.load(name).validate().operator(VolumeGeometry((1, 256, 256), (1.0, 1.0, 1.0)))
    mask, whole = A.left.mask, A.right(torch.ones(1, 256, 256))
    assert torch.equal(A(torch.ones(1, 256, 256)), mask * whole)
    lines = mask[0].any(-1 if axis == -2 else -2)
    whole_lines = lines[:, None] if axis == -2 else lines[None]
    assert torch.equal(mask[0], whole_lines.expand_as(mask[0]))  # a line is lost whole
    # Binomial: three standard deviations for 120 views or 363 bins.
    assert 1 - float(lines.float().mean()) == pytest.approx(share, abs=0.14 if axis == -2 else 0.035)


def test_angles_in_a_file_are_degrees(small):
    beam = small.override(["geometry.angles=[0, 45, 90]"]).beam()
    assert beam.views == pytest.approx((0, math.pi / 4, math.pi / 2))


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("method.iteratons=80", "did you mean 'iterations'"),
        ("method.name=tvv", "did you mean 'tv'"),
        ("geometry.angels=3", "did you mean 'angles'"),
        ("noise.name=poison", "did you mean 'poisson'"),
        ("accept.rmse=40", "did you mean 'rmse_hu'"),
        ("methods.iterations=80", "did you mean 'method'"),
        ("beside.sirtt.iterations=80", "did you mean 'sirt'"),
        ('operator={name="mask", kinds="views"}', "did you mean 'kind'"),
    ],
)
def test_a_near_miss_is_offered(small, change, near):
    with pytest.raises(ProtocolError, match=near):
        small.override([change]).validate()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ProtocolError, match="did you mean 'sparse-view-60'"):
        Protocol.load("sparse-view60")


@pytest.mark.parametrize(
    "change",
    [
        "method.iterations",
        "method.iterations=[1",
        "mu_water.x.y=1",
        "geometry.angles=sixty",
        "mu_water=19.2",
        "noise=3",
    ],
)
def test_nonsense_is_refused(small, change):
    with pytest.raises(ProtocolError):
        small.override([change]).validate()


def test_values_out_of_range_keep_their_own_error(small):
    with pytest.raises(GeometryError):
        small.override(["geometry.angles=0"]).validate()


def test_an_override_is_the_same_as_an_edit(small):
    changed = small.override(["method.iterations=80", "beside.sirt.iterations=7", "reference.filter=hann"])
    edited = SMALL.replace('"tv"', '"tv", iterations = 80').replace('"sirt"', '"sirt", iterations = 7')
    edited = edited.replace('"fbp"', '"fbp", filter = "hann"')
    assert changed.sha256 == Protocol.parse("small", edited).sha256 != small.sha256
    assert changed.methods()["tv"].iterations == 80
    assert changed.methods()["sirt"].iterations == 7
    assert small.dump() == Protocol.parse("small", SMALL).dump()  # the original is untouched


def test_dump_is_toml_of_the_same_protocol(small):
    again = Protocol.parse("small", small.override(["accept={rmse_hu=40, ssim=0.9}"]).dump())
    assert again.accept == {"rmse_hu": 40, "ssim": 0.9}
    assert again.dump() == Protocol.parse("small", again.dump()).dump()


def test_water_by_energy_and_by_number_exclude_each_other(small):
    # NIST: 0.2059 cm²/g at 60 keV.
    assert small.override(["energy_kev=60"]).mu_water == pytest.approx(0.02059)
    with pytest.raises(ProtocolError, match="keep one of them"):
        small.override(["energy_kev=60", "mu_water=0.02"])


def test_two_settings_of_one_method_get_two_names(small):
    twice = small.override(['beside=[{name="tv", iterations=3}, {name="tv", iterations=5}]'])
    assert list(twice.methods()) == ["fbp", "tv", "tv-2", "tv-3"]
    assert [method.iterations for method in list(twice.methods().values())[1:3]] == [3, 5]


def test_own_folder_goes_first(tmp_path, monkeypatch):
    (tmp_path / "sparse-view-60.toml").write_text(SMALL)
    monkeypatch.setenv("CTFLOW_PROTOCOLS", str(tmp_path))
    assert Protocol.load("sparse-view-60").summary == "A small one."
    assert "deblur" in texts()


@pytest.mark.parametrize("missing", ["geometry", "noise", "method", "reference"])
def test_missing_tables_are_named(missing):
    text = "\n".join(line for line in SMALL.splitlines() if not line.startswith(missing))
    with pytest.raises(ProtocolError, match=missing):
        Protocol.parse("small", text)


def test_a_method_beside_comes_as_the_protocol_tunes_it():
    """The first entry of the `tuned` table counts; a method that is not in it has its defaults."""
    tuned = [{"name": "flow-dps", "steps": 12}, {"name": "flow-dps", "steps": 50}]
    tables = {**Protocol.load("sparse-view-60").tables, "tuned": tuned}
    protocol = Protocol("p", "s", tables).with_methods(["flow-dps", "ddnm"]).validate()
    methods = protocol.methods()
    assert methods["flow-dps"].steps == 12
    assert methods["ddnm"] == find_class("method", "ddnm")()
    assert list(methods)[-1] == "ms-flow"


def test_methods_that_are_chosen_keep_the_protocols_parameters():
    """Of its own tables by the name in reports or in the file, then of `tuned`, then the defaults."""
    whole = Protocol.load("sparse-view-60")
    chosen = whole.only_methods(["conjugate-refinement", "flow-dps", "ddnm", "tv"]).validate()
    methods, own = chosen.methods(), whole.methods()
    assert list(methods) == ["conjugate-refinement", "flow-dps", "ddnm", "tv"]
    assert (methods["conjugate-refinement"], methods["tv"]) == (own["conjugate-refinement"], own["tv"])
    assert methods["flow-dps"].steps == 17
    assert methods["ddnm"] == find_class("method", "ddnm")()
    assert chosen.main == "tv"
    assert chosen.overrides == ("methods conjugate-refinement,flow-dps,ddnm,tv",)
    assert whole.only_methods(["conjugate"]).methods() == {k: own[k] for k in ("fbp", "conjugate-refinement")}


def test_a_tuned_table_that_cannot_be_built_is_refused():
    tables = {**Protocol.load("sparse-view-60").tables, "tuned": [{"name": "flow-dps", "stepz": 12}]}
    with pytest.raises(ProtocolError, match="stepz"):
        Protocol("p", "s", tables).validate()


def test_a_scanner_is_built_from_its_table_and_needs_projections(small):
    scanned = small.override(["scanner={ kvp = 120, fine = 2 }"]).validate()
    assert scanned.scanner() == Scanner(kvp=120, fine=2)
    assert small.scanner() is None
    for changes, said in (
        (["scanner={ kvp = 120, fien = 2 }"], "fine"),
        (["scanner={ scatter = 1 }"], "from 0 to 0.9"),
        (["scanner={}", 'operator={ name = "mask", kind = "columns", missing = 0.1 }'], "no operator"),
    ):
        with pytest.raises(ProtocolError, match=said):
            small.override(changes).validate()
    with pytest.raises(ProtocolError, match="needs geometry"):
        Protocol.load("deblur").override(["scanner={}"]).validate()
