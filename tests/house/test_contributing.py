"""The examples in CONTRIBUTING.md are put into their folders, found by name, and held against mathematics.

Once they are laid over a copy of the whole tree too, and every law runs there that discovers them.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module, invalidate_caches
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.errors import ProtocolError, UnreadableError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.linalg import cg
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.priors import GaussianPrior
from ctflow.problem import simulate
from ctflow.registry import build, find_class, names
from ctflow.runs.protocol import Protocol
from ctflow.solving import solve
from ctflow.testing import check_operator, check_sampler

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^`([\w/.-]+)`:\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
HOMES = {
    "ctflow.operators": "operators",
    "ctflow.samplers": "ctflow/samplers",
    "ctflow.priors": "ctflow/priors",
    "ctflow.datasets": "datasets",
}


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    """A second tree that holds the examples, read after the real one."""
    for path, body in BLOCKS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(body, encoding="utf-8")
    known = set(sys.modules)
    for package, folder in HOMES.items():
        module = import_module(package)
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path / folder)])
    monkeypatch.setenv("CTFLOW_PROTOCOLS", str(tmp_path / "protocols"))
    invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - known:
        if any(name == f"{package}.{Path(path).stem}" for package in HOMES for path in BLOCKS):
            del sys.modules[name]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the tree with the examples in their places and what is generated from the code."""
    target = tmp_path_factory.mktemp("tree")
    for name in ("ctflow", "operators", "datasets", "protocols", "tests", "docs", ".ci"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("_build"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    for place, body in BLOCKS.items():
        (target / place).write_text(body, encoding="utf-8")
    assert done(target, ".ci/generate.py")[0] == 0
    return target


def done(folder: Path, *words: str) -> tuple[int, str]:
    """Exit status and output of Python in a tree of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    return ran.returncode, ran.stdout + ran.stderr


LAWS = {
    "tests/samplers/test_laws.py": "plug-and-play",
    "tests/testing/test_testing.py": "plug-and-play or Motion or npz-slices",
    "tests/operators/test_interop.py": "Motion",
    "tests/runs/test_protocol.py": "build and motion",
    "tests/house/test_docstrings.py": "whole",
    "tests/house/test_examples.py": "PlugAndPlay or Motion or TissuePrior",
    "tests/house/test_docs.py": "tables",
    "tests/cli/test_cli.py": "lists",
    "tests/samplers/test_baselines.py": "impossible",
    "tests/benchmarks/test_bench.py": "gap",
}
"""Test files that find parts by themselves, and what of them concerns the examples."""


def test_every_law_that_discovers_an_example_holds(copy):
    chosen = " or ".join(f"({names})" for names in LAWS.values())
    pytest_here = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
    status, said = done(copy, *pytest_here, *LAWS, "-k", chosen)
    assert status == 0, said
    assert int(re.search(r"(\d+) passed", said)[1]) > 20


def test_the_examples_are_clean_and_offered_at_the_door(copy):
    status, said = done(copy, "-m", "ruff", "check", ".")
    assert status == 0, said  # it may be a line of the tree's own, which the message names
    assert done(copy, ".ci/generate.py", "--check") == (0, "")
    status, said = done(copy, "-c", "import ctflow as ct; print(ct.PlugAndPlay(), ct.Motion, ct.TissuePrior)")
    assert status == 0, said


def test_one_example_of_each_kind_below_fifty_lines():
    folders = sorted(str(Path(path).parent) for path in BLOCKS)
    assert folders == sorted([*HOMES.values(), "protocols"])
    assert {path: body.count("\n") for path, body in BLOCKS.items() if body.count("\n") >= 50} == {}


def test_operator_obeys_the_laws():
    check_operator(find_class("operator", "motion").example())
    with pytest.raises(ProtocolError, match="at least 1"):
        build("operator", {"name": "motion", "shape": (1, 4, 4), "pixels": 0})


def test_method_comes_near_the_exact_posterior_mean():
    prior = GaussianPrior(torch.logspace(1, -3, 64))
    white = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(1))
    truth = prior.covariance_product(white, "sqrt")
    A = Radon(VolumeGeometry((1, 32, 32), (4.0, 4.0, 4.0)), ParallelBeam(12))
    problem = simulate(A, prior.scale * truth + prior.shift, Gaussian(0.05))
    exact = posterior_mean(problem.rescaled(prior.scale, prior.shift), prior)
    method = build("method", {"name": "plug-and-play", "steps": 20})
    one, sixteen = (solve(problem, method, prior, samples=n).mean for n in (1, 16))
    misses = [float(((x - prior.shift) / prior.scale - exact).norm() / exact.norm()) for x in (one, sixteen)]
    # Samples scatter around the posterior mean, so their mean comes nearer as 1 / sqrt(16), down to a bias.
    assert misses[1] < 0.4 * misses[0]
    assert misses[1] < 0.15


def test_method_obeys_the_laws_of_samplers():
    check_sampler(find_class("method", "plug-and-play")())


def posterior_mean(inside, prior):
    """C½ (I + C½ AᵀWA C½)⁻¹ C½ AᵀWy, for a prior of mean zero and covariance C."""
    half = partial(prior.covariance_product, function="sqrt")
    right = half(inside.A.T(inside.W * inside.y))
    return half(cg(lambda v: v + half(inside.normal(half(v))), right, inside.dims, 300, 1e-5))


def test_prior_denoises_as_bayes_says():
    prior = find_class("prior", "tissue")()
    u = torch.linspace(-6, 8, 40001, dtype=torch.float64)
    density = sum(
        w * torch.exp(-((u - m) ** 2) / (2 * prior.variance))
        for w, m in zip(prior.weights.tolist(), prior.centres.tolist(), strict=True)
    )
    for t in (0.3, 0.7, 0.95):
        for x in (-1.2, 0.1, 0.6):
            posterior = density * torch.exp(-((x - t * u) ** 2) / (2 * (1 - t) ** 2))
            expected = float((posterior * u).sum() / posterior.sum())
            got = float(prior.denoise(torch.full((1, 1, 1), x), t))
            assert got == pytest.approx(expected, abs=1e-4)  # float32 against quadrature in float64


def test_prior_knows_a_bound_of_its_error_and_serves_ms_flow():
    prior = find_class("prior", "tissue")()
    generator = torch.Generator().manual_seed(0)
    tissue = torch.multinomial(prior.weights, 4096, replacement=True, generator=generator)
    noise = torch.randn(2, 4096, generator=generator)
    u = (prior.centres[tissue] + prior.variance**0.5 * noise[0]).reshape(1, 64, 64)
    for t in (0.2, 0.5, 0.8):
        error = prior.denoise(t * u + (1 - t) * noise[1].reshape(u.shape), t) - u
        assert float((error**2).mean()) < 1.1 * prior.residual_variance(t)  # 4096 pixels scatter by 3 %
    A = find_class("operator", "motion")((1, 64, 64), 5)
    problem = simulate(A, prior.scale * u + prior.shift, Gaussian(1e-4))
    blurred = problem.y - (prior.scale * u + prior.shift)
    solved = solve(problem, build("method", {"name": "ms-flow"}), prior).mean - (
        prior.scale * u + prior.shift
    )
    assert float(solved.norm()) < 0.5 * float(blurred.norm())


def test_dataset_yields_volumes_and_names_no_file(tmp_path):
    hu = np.arange(-60, 60, dtype=np.int16).reshape(2, 6, 10)
    np.savez(tmp_path / "a.npz", hu=hu, spacing_mm=[5.0, 0.8, 0.8])
    (volume,) = find_class("dataset", "npz-slices")(tmp_path)
    assert (volume.unit, volume.geometry.spacing) == ("HU", (5.0, 0.8, 0.8))
    assert torch.equal(volume.data, torch.from_numpy(hu).float())
    np.savez(tmp_path / "b-name.npz", hu=hu)
    with pytest.raises(UnreadableError, match="#2 lacks") as caught:
        list(find_class("dataset", "npz-slices")(tmp_path))
    assert "name.npz" not in str(caught.value)


def test_protocol_loads_by_name_and_validates():
    assert {"motion", "plug-and-play"} <= names("operator").keys() | names("method").keys()
    protocol = Protocol.load("motion").validate()
    assert protocol.summary.startswith("Slices blurred by a motion")
    assert protocol.methods()["plug-and-play"].steps == 15
    A = protocol.operator(VolumeGeometry((1, 16, 16), (1.0, 1.0, 1.0)))
    assert A.pixels == 5
