"""The study file: what it may say, who is on which side, which trials are drawn and which one wins."""

import json
import math

import pytest
import torch

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series
from ctflow.dicom import patient_key
from ctflow.errors import StudyError
from ctflow.experiments import Study
from ctflow.experiments.cases import cases
from ctflow.experiments.plan import Planner
from ctflow.experiments.split import sides
from ctflow.experiments.study import texts
from ctflow.experiments.tuning import choose
from ctflow.noise import Poisson
from ctflow.priors.network import save
from ctflow.recon.fbp import FBP
from ctflow.search_space import Range, trials
from ctflow.system import version

PROTOCOL = """# Twelve views.
geometry = { name = "parallel-beam", angles = 12 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "fbp" }
reference = { name = "fbp" }
"""
STUDY = """# Small.
protocols = ["tiny.toml"]
cases = [{ phantoms = [0, 1, 2, 3], size = 32, slices = 1 }]
split = { validation = ["phantom-0"], test = ["phantom-1", "phantom-2", "phantom-3"] }
tuning = { trials = 3 }
[methods.fbp]
[methods.sirt]
iterations = 3
tune = { iterations = { low = 1, high = 9 } }
"""


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "tiny.toml").write_text(PROTOCOL)
    return lambda text: Study.parse("small", text, tmp_path)


def test_packaged_studies_are_whole():
    assert "phantoms" in texts()
    for name in texts():
        study = Study.load(name)
        planner = Planner(study, cases(study, {}))
        tuned = [method for method in study.methods.values() if method.tune]
        validation = sum(case.split == "validation" for case in planner.cases)
        assert (
            len(planner.tuning()) == validation * len(study.protocols) * len(tuned) * study.tuning["trials"]
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("tuning = {", "tunning = {"), "unknown key 'tunning'; did you mean 'tuning'"),
        (("trials = 3", "trails = 3"), "unknown key 'trails'; did you mean 'trials'"),
        (("size = 32", "sise = 32"), "unknown key 'sise'; did you mean 'size'"),
        (("iterations = 3", "iteration = 3"), "no keyword 'iteration'"),
        (("tune = { iterations", "tune = { steps"), "no keyword 'steps'"),
        (("low = 1", "low = 10"), "needs finite low < high"),
        (("{ low = 1, high = 9 }", "5"), "sirt.tune.iterations must be a list of choices"),
        (("low = 1, ", ""), "sirt.tune.iterations must be a list of choices"),
        (("[methods.fbp]", "[methods.fpb]"), "did you mean 'fbp'"),
        (("validation = [", "valid = ["), "unknown key 'valid'"),
        (
            ('validation = ["phantom-0"]', "validation = 'phantom-0'"),
            "split.validation is 'phantom-0' and must be a list",
        ),
        (("protocols =", "seeds = ['a']\nprotocols ="), "seeds\\[0\\] is 'a' and must be a whole number"),
        (("[methods.fbp]", "[statistics]\nreference = 'tv'\n[methods.fbp]"), "names no method 'tv'"),
    ],
)
def test_what_a_study_file_cannot_say_is_named(parse, change, said):
    assert change[0] in STUDY
    with pytest.raises(StudyError, match=said):
        cases(parse(STUDY.replace(*change)), {})


def test_an_unknown_key_on_the_command_line_has_status_2(tmp_path, capsys):
    (tmp_path / "s.toml").write_text("wrong = 1\n" + STUDY)
    assert main(["study", "run", str(tmp_path / "s.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "unknown key 'wrong'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_patient_on_both_sides_is_refused():
    listed = {"validation": ["A"], "test": ["A", "B"]}
    with pytest.raises(StudyError, match="case 'one' is in test and in validation"):
        sides(listed, [("one", "A", ""), ("two", "B", "")])
    with pytest.raises(StudyError, match="case 'one' is in test and in train"):
        sides({}, [("one", "A", "train"), ("other", "A", "test")])
    with pytest.raises(StudyError, match="1 patients are on no side"):
        sides({"test": ["A"]}, [("one", "A", ""), ("two", "B", "")])


def test_refusals_quote_no_patient():
    with pytest.raises(StudyError) as caught:
        sides({"validation": ["Doe"], "test": ["Doe"]}, [("one", "Doe", "")])
    assert "Doe" not in str(caught.value)
    with pytest.raises(StudyError) as caught:
        sides({"test": ["Doe"]}, [("one", "A", "")])
    assert "Doe" not in str(caught.value)


def test_shares_are_of_patients_and_keep_a_patient_whole():
    some = [(f"case-{k}", f"patient-{k // 3}", "") for k in range(30)]
    chosen = sides({"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 4}, some)
    assert [list(chosen.values()).count(side) for side in ("train", "validation", "test")] == [5, 2, 3]
    assert set(chosen) == {patient for _, patient, _ in some}


def test_folders_of_one_patient_without_labels_are_one_patient(parse, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_toy_series(tmp_path / name, slices=3, size=32, seed=seed)
    one = patient_key(tmp_path / "a")
    text = STUDY.replace(
        "{ phantoms = [0, 1, 2, 3], size = 32, slices = 1 }", "{ folder = 'a' }, { folder = 'b' }"
    )
    text = text.replace(
        'validation = ["phantom-0"], test = ["phantom-1", "phantom-2", "phantom-3"]', "test = 1.0"
    )
    found = cases(parse(text), {})
    same = patient_key(tmp_path / "b") == one
    assert len({case.patient for case in found}) == (1 if same else 2)
    assert all(case.label.startswith("case-") for case in found)


def test_a_csv_gives_cases_and_a_copy_is_refused(parse, tmp_path):
    write_toy_series(tmp_path / "Doe^John", slices=3, size=32, seed=0)
    write_toy_series(tmp_path / "b", slices=3, size=32, seed=1)
    (tmp_path / "cases.csv").write_text(
        "folder,name,patient,slices,split\nDoe^John,x,1,0:2,test\nb,y,2,,test\n"
    )
    text = STUDY.replace("{ phantoms = [0, 1, 2, 3], size = 32, slices = 1 }", "{ csv = 'cases.csv' }")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("split"))
    remembered: dict[str, str] = {}
    found = cases(parse(text), remembered)
    assert [(case.label, case.slices, case.split) for case in found] == [
        ("x", (0, 2), "test"),
        ("y", None, "test"),
    ]
    assert found == cases(parse(text), remembered)  # from the remembered hashes
    assert "Doe" not in json.dumps(remembered)
    (tmp_path / "cases.csv").write_text("folder,name,patient\nb,x,1\nb,y,2\n")
    with pytest.raises(StudyError, match="'x' and 'y' have the same content"):
        cases(parse(text), {})


def test_a_hash_hangs_on_content_and_nothing_else(parse):
    before = hashes(parse(STUDY))
    assert len(before) == 6
    assert hashes(parse(STUDY.replace("trials = 3", "trials = 4"))) == before
    said = STUDY.replace("[methods.fbp]", "[methods.fbp]\nfilter = 'ramp'")
    assert hashes(parse(said)) == before  # it is the default
    assert len(hashes(parse(said.replace("ramp", "hann"))) & before) == 3
    assert not hashes(parse("seeds = [1]\n" + STUDY)) & before
    assert not hashes(parse(STUDY.replace("size = 32", "size = 36"))) & before


def hashes(study):
    return {unit.hash for unit in Planner(study, cases(study, {})).test({})}


def test_a_hash_hangs_on_code_libraries_and_device(parse, monkeypatch):
    before = hashes(parse(STUDY))
    assert not hashes(parse("device = 'cuda'\n" + STUDY)) & before
    with monkeypatch.context() as patch:
        patch.setattr(version, "source_sha256", lambda *folders: "0" * 64)
        assert not hashes(parse(STUDY)) & before
    with monkeypatch.context() as patch:
        patch.setattr(version, "_libraries", lambda: {"torch": "1.0"})
        assert not hashes(parse(STUDY)) & before
    with monkeypatch.context() as patch:  # as if FBP were a file of the user's
        patch.setattr("ctflow.experiments.unit.outside_sha256", lambda part: "1" if part is FBP else "")
        assert len(hashes(parse(STUDY)) & before) == 3  # those of SIRT
    with monkeypatch.context() as patch:
        patch.setattr("ctflow.experiments.unit.outside_sha256", lambda part: "1" if part is Poisson else "")
        assert not hashes(parse(STUDY)) & before
    assert hashes(parse(STUDY)) == before


def test_a_hash_hangs_on_the_priors_weights(parse, tmp_path):
    text = "prior = 'own.safetensors'\n" + STUDY + "[methods.conjugate]\n"
    found = []
    for value in (1.0, 1.0, 1.25):
        spectrum = torch.full((8,), value)
        about = {"kind": "gaussian", "name": "own", "mean": 0.0, "hu_centre": 0.0, "hu_width": 500.0}
        save(tmp_path / "own.safetensors", {"spectrum": spectrum}, about)
        found.append(hashes(parse(text)))
    assert found[0] == found[1]
    assert len(found[0]) == 9
    assert len(found[0] & found[2]) == 6  # those of the methods without a prior


def test_ranges_are_even_in_the_number_or_in_its_logarithm():
    assert [Range.parse("x", {"low": 1.0, "high": 9.0}).at(u) for u in (0.0, 0.5, 1.0)] == [1, 5, 9]
    logarithmic = Range.parse("x", {"low": 1.0, "high": 9.0, "log": True})
    assert [logarithmic.at(u) for u in (0.0, 0.5, 1.0)] == pytest.approx([1, 3, 9])
    assert [Range.parse("x", ["a", "b"]).at(u) for u in (0.0, 0.49, 0.5, 1.0)] == ["a", "a", "b", "b"]


def test_trials_are_a_latin_hypercube_after_the_methods_own_values():
    tune = {"a": Range((0.0, 1.0)), "b": Range((1.0, 1e4), log=True), "c": Range(("x", "y"), choices=True)}
    drawn = trials(tune, 9, seed=3, label="tv")
    assert drawn[0] == {}
    assert sorted(int(8 * trial["a"]) for trial in drawn[1:]) == list(range(8))  # one in every eighth
    # In powers of ten: one in every half decade.
    assert sorted(int(2 * math.log10(trial["b"])) for trial in drawn[1:]) == list(range(8))
    assert sum(trial["c"] == "x" for trial in drawn[1:]) == 4
    assert drawn == trials(tune, 9, seed=3, label="tv") != trials(tune, 9, seed=4, label="tv")


def test_the_best_mean_wins_and_a_failing_trial_cannot(parse):
    text = STUDY.replace('"phantom-0"], test = ["phantom-1",', '"phantom-0", "phantom-1"], test = [')
    study = parse(text)
    units = Planner(study, cases(study, {})).tuning()
    assert len(units) == 6
    rmse = {("phantom-0", 0): 5, ("phantom-1", 0): 5, ("phantom-0", 1): 1, ("phantom-1", 1): None}
    rmse |= {("phantom-0", 2): 9, ("phantom-1", 2): 0.5}

    def record(unit):
        value = rmse[unit.case.label, unit.trial]
        return {"figures": None if value is None else {"rmse_hu": value, "psnr": value}, "reason": "diverged"}

    records = {unit.hash: record(unit) for unit in units}
    found = choose(units, records, "rmse_hu")["tiny"]["sirt"]
    # Means 5, none (it failed once) and 4.75.
    assert (found["trial"], found["score"]) == (2, 4.75)
    assert [trial["score"] for trial in found["trials"]] == [5, None, 4.75]
    assert choose(units, records, "psnr")["tiny"]["sirt"]["trial"] == 0  # the most decibels
    failed = {unit.hash: {"figures": None, "reason": "refused"} for unit in units}
    assert (
        "every tuning trial of 'sirt' failed" in choose(units, failed, "rmse_hu")["tiny"]["sirt"]["refusal"]
    )
