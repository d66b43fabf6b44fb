"""A search on training patients finds what is best there, at one budget for every method, and keeps a log."""

import json
from itertools import product

import numpy as np
import pytest

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import UsageError
from ctflow.experiments.protocol_tuning import best_changes, read_log, tune
from ctflow.experiments.slices import cases
from ctflow.recon import CGLS
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
    logged = read_log(folder / "log.jsonl")
    own = {"tv": {"strength": 3000.0}, "cgls": {"iterations": CGLS().iterations}}  # comes first
    for name, numbers in own.items():
        lines = [line for line in logged if line["label"] == name]
        assert [(line["trial"], line["patient"]) for line in lines] == list(product(range(5), range(2)))
        assert lines[0]["method"] == {"name": name, **numbers}
        assert lines[0]["changes"] == numbers  # stated, since the protocol's table may change later
        pairs = zip(lines[::2], lines[1::2], strict=True)
        least = min(pairs, key=lambda pair: pair[0]["rmse_hu"] + pair[1]["rmse_hu"])
        assert best[name] == least[0]["method"]
    assert best.keys() == own.keys()
    assert best["tv"]["strength"] < 3000  # which smooths everything away


def test_a_search_goes_on_where_its_log_ends(folder):
    protocol, log = Protocol.parse("blur", TEXT), folder / "log.jsonl"
    first = tune(protocol, log, methods=["tv"], number=4, patients=1, data=folder)
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:2]))  # as an interruption leaves it
    assert tune(protocol, log, methods=["tv"], number=4, patients=1, data=folder) == first
    assert [line["rmse_hu"] for line in read_log(log)] == [
        json.loads(line)["rmse_hu"] for line in whole.splitlines()
    ]
    tune(protocol, log, methods=["tv"], number=4, patients=1, data=folder)
    assert len(read_log(log)) == 4


def test_the_best_for_some_patients_is_chosen_by_them_alone():
    lines = [
        {
            "protocol": "p",
            "label": "tv",
            "patient": patient,
            "changes": {"strength": strength},
            "rmse_hu": loss,
        }
        for strength, losses in ((1, (10, 30, 20)), (2, (30, 10, 20)), (3, (25, 25, 1)))
        for patient, loss in enumerate(losses)
    ]
    lines += [{"protocol": "p", "label": "tv", "patient": 0, "changes": {"strength": 4}, "rmse_hu": 0.0}]
    lines += [{**lines[-1], "patient": 1, "rmse_hu": None, "reason": "it failed"}]
    assert best_changes(lines, "p", "tv", [0, 2]) == {"strength": 3}
    assert best_changes(lines, "p", "tv", [1]) == {"strength": 2}
    assert best_changes(lines, "p", "tv", [0, 1]) == {"strength": 1}  # the last has failed for one
    assert best_changes(lines, "q", "tv", [0]) == {}


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
    for protocol, label in ((refined, "conjugate + refinement"), (plain, "conjugate")):
        log = folder / protocol.name
        tune(protocol, log, methods=[label], number=3, patients=1, data=folder)
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
