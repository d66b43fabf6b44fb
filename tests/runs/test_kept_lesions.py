"""Sentences about lesions come from the bench, and only for what it has measured."""

import pytest

from ctflow.datasets.synthetic import toy_volume
from ctflow.geometry import VolumeGeometry
from ctflow.runs import kept_lesions
from ctflow.runs.protocol import Protocol
from ctflow.runs.run import run
from ctflow.volume import Volume

PRIOR = "ab" * 32


@pytest.fixture
def protocol(monkeypatch):
    """A protocol of 20 views, what the bench has seen of its TV and MS-Flow, and of others at 60 views."""
    protocol = Protocol.load("sparse-view-20")
    rows = []
    for task, views, off in (("20 views", 20, 0.002), ("60 views", 60, 0.0)):
        for method, share in (("tv", 0.004), ("ms-flow", off)):
            key = kept_lesions.key_of(protocol, protocol.method_tables()[method], PRIOR * (method != "tv"))
            measured = {"views": views, "main": method == "ms-flow", "key": key if views == 20 else "other"}
            rows.append({"task": task, "method": method, **measured})
            rows.append({"task": task, "method": method, "above_100": share})
            for diameter, recovery in ((8.0, 0.24), (12.0, 0.37)):
                kind = {"diameter_mm": diameter, "contrast_hu": 60.0}
                rows.append(
                    {"task": task, "method": method, **kind, "recovery": recovery, "false_signal_hu": 19.6}
                )
    monkeypatch.setattr(kept_lesions, "_measured", lambda: rows)
    return protocol


def test_a_sentence_says_what_the_bench_found(protocol):
    found = kept_lesions.sentences(protocol, PRIOR)
    assert set(found) == {"tv", "ms-flow"}
    assert "of 8 mm to 24 %, of 12 mm to 37 %" in found["ms-flow"]
    assert "off by 20 HU (standard deviation), and 0.2 % of them" in found["ms-flow"]


@pytest.mark.parametrize(
    "changed", [["method.states=9"], ["noise.photons=2e4"], ["geometry.angles=19"]], ids=lambda c: c[0]
)
def test_another_number_has_no_sentence(protocol, changed):
    assert "ms-flow" not in kept_lesions.sentences(protocol.override(changed), PRIOR)
    assert "ms-flow" not in kept_lesions.sentences(protocol, "cd" * 32)


def test_fewer_views_than_are_safe_are_warned_of(protocol):
    assert kept_lesions.warnings(protocol, 20) == []
    (warning,) = kept_lesions.warnings(protocol, 19)
    assert "fewer than the 20" in warning
    assert "ms-flow" in warning
    classical = Protocol.parse(
        "tv",
        'geometry = { name = "parallel-beam", angles = 9 }\n'
        'noise = { name = "poisson", photons = 1e5 }\nmethod = { name = "tv" }\nreference = { name = "fbp" }',
    )
    assert kept_lesions.warnings(classical, 9) == []


def test_where_it_invents_more_than_tv_twenty_views_are_too_few(protocol):
    for row in kept_lesions._measured():
        if row["task"] == "20 views" and row["method"] == "ms-flow" and "above_100" in row:
            row["above_100"] = 0.005
    assert kept_lesions.warnings(protocol, 60) == []
    assert "fewer than the 60" in kept_lesions.warnings(protocol, 59)[0]


def test_the_bench_that_ships_knows_its_own_protocols():
    """Its rows are of the protocols and the prior that ship: run the bench again where they change."""
    from ctflow.priors import FlowPrior

    prior = FlowPrior.load("ct-256").sha256
    for name in ("sparse-view-20", "sparse-view-60", "sparse-view-60-fast"):
        protocol = Protocol.load(name)
        assert set(kept_lesions.sentences(protocol, prior)) == set(protocol.methods())
        assert kept_lesions.warnings(protocol, 20) == []


@pytest.mark.parametrize(("spacing", "named"), [(1.4, {"fbp", "ms-flow-refinement"}), (0.9, {"fbp"})])
def test_nothing_is_said_of_what_began_in_coarser_pixels(spacing, named):
    """The bench has measured none: its slices have pixels of more than 1 mm."""
    small = Volume(toy_volume(1, 64).data, VolumeGeometry((1, 64, 64), (spacing,) * 3), "HU")
    assert set(run(Protocol.load("sparse-view-60-fast"), small).figures["lesions"]) == named
