"""A search on training patients finds what is best there, at one budget for every method, and keeps a log."""

import json

import numpy as np
import pytest

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import UsageError
from ctflow.experiments.protocol_tuning import tune
from ctflow.experiments.slices import cases
from ctflow.registry import build, find_class, names
from ctflow.runs.protocol import Protocol

TEXT = """# Blur of small slices.
operator = { name = "blur", sigma = 1.0 }
noise = { name = "gaussian", sigma = 4e-4 }
method = { name = "tv", strength = 3000.0 }
reference = { name = "cgls" }
tuned = [{ name = "tv", strength = 1.0 }]
"""


@pytest.fixture
def folder(tmp_path):
    """Two training patients: a series of five slices, and a file of single slices without a spacing."""
    series, singles = toy_volume(5, 48, seed=0), toy_volume(1, 48, seed=1)
    np.savez(tmp_path / "a.npz", hu=series.data.numpy().astype(np.int16))
    np.savez(tmp_path / "b.npz", hu=singles.data.numpy().astype(np.int16))
    entry = {"split": "train", "kind": "256", "collection": "none"}
    index = [
        entry | {"file": "a.npz", "pixel_spacing_mm": 8.0},
        entry | {"file": "b.npz", "pixel_spacing_mm": float("nan")},
    ]
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


def test_the_best_of_the_log_is_returned_and_each_method_is_searched_once(folder):
    protocol = Protocol.parse("blur", TEXT)
    best = tune(protocol, folder / "log.jsonl", number=5, patients=2, data=folder)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    own = {"tv": {"strength": 3000.0}, "cgls": {}}  # the protocol's comes first
    for name, numbers in own.items():
        lines = [line for line in logged if line["method"]["name"] == name]
        assert [line["trial"] for line in lines] == [0, 1, 2, 3, 4]
        assert lines[0]["method"] == {"name": name, **numbers}
        assert best[name] == min(lines, key=lambda line: line["rmse_hu"])["method"]
    assert best.keys() == own.keys()
    assert best["tv"]["strength"] < 3000  # which smooths everything away


def test_the_same_seed_tries_the_same(folder):
    protocol = Protocol.parse("blur", TEXT)
    for name in ("one", "two"):
        tune(protocol, folder / name, methods=["tv"], number=3, patients=1, data=folder, seed=4)
    tried = [
        [json.loads(line)["method"] for line in (folder / name).read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert tried[0] == tried[1]
    assert len({json.dumps(method) for method in tried[0]}) == 3


def test_cases_are_the_middle_of_a_series_and_every_single_slice(folder):
    found = cases("train", 5, folder)
    assert [volume.geometry.spacing[2] for volume in found] == [8.0, 1.5]
    np.testing.assert_allclose(found[0].data[0], toy_volume(5, 48, seed=0).data[2], atol=0.5)  # whole HU


@pytest.mark.filterwarnings("ignore::ctflow.priors.PriorWarning")  # pixels of 8 mm
def test_a_search_reaches_into_a_refinement_and_adds_none(folder):
    tables = "".join(
        f"{key} = {{ name = 'conjugate', steps = 1, guidance = {value}{refine} }}\n"
        for key, value, refine in (("method", 0.9, ""), ("reference", 1.0, ", refine = { steps = 2 }"))
    )
    text = "# Blur.\noperator = { name = 'blur' }\nnoise = { name = 'gaussian', sigma = 4e-4 }\n" + tables
    refined = Protocol.parse("refined", text)
    plain = Protocol.parse("plain", text.replace(", refine = { steps = 2 }", ""))
    tried = {}
    for protocol in (refined, plain):
        log = folder / protocol.name
        tune(protocol, log, methods=["conjugate"], number=3, patients=1, data=folder)
        tried[protocol.name] = [json.loads(line)["method"] for line in log.read_text().splitlines()]
    assert [table["refine"]["steps"] for table in tried["refined"]] == [2, 2, 2]
    assert len({table["refine"].get("noise") for table in tried["refined"]}) == 3
    assert not any("refine" in key for table in tried["plain"] for key in table)


def test_what_the_protocol_has_not_is_refused(folder):
    with pytest.raises(UsageError, match="there are cgls, tv"):
        tune(Protocol.parse("blur", TEXT), folder / "log", methods=["sirt"], data=folder)


def test_every_method_has_a_space_that_names_its_keywords():
    for name in names("method"):
        assert find_class("method", name).search
        for key, values in find_class("method", name).search.items():
            for share in (0.0, 1.0):
                build("method", {"name": name, key: values.at(share)})
