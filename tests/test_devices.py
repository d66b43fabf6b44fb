"""On a GPU that is not there, all lies where the data lie, and the figures are those of the CPU."""

from dataclasses import fields, replace

import pytest
import torch

from ctflow.datasets.phantoms import disc
from ctflow.errors import BackendError
from ctflow.geometry import ConeBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Poisson
from ctflow.operators import Radon
from ctflow.priors import ForeignPrior, GaussianPrior, MixturePrior
from ctflow.problem import InverseProblem, simulate
from ctflow.registry import find_class, names
from ctflow.solving import solve
from ctflow.testing._finding import white_noise
from ctflow.training.processes import processes
from tests.pretended import There, pretended

DEVICE = torch.device("cuda:1")
FEW = {"steps": 3, "iterations": 3, "segments": 2, "states": 3}  # of whatever a method counts
GRID = VolumeGeometry((1, 12, 12), (1.0, 10.0, 10.0))


def measured(beam=None, slices=1):
    """Two discs, or two volumes of them, by few views."""
    grid = replace(GRID, shape=(slices, 12, 12))
    x = disc(40.0, 0.02).rasterise(grid).data
    return simulate(Radon(grid, beam or ParallelBeam(5), "torch"), x.expand(2, slices, 12, 12), Poisson(1e5))


def moved(problem):
    return InverseProblem(problem.A, problem.y.to(DEVICE), problem.noise, problem.W.to(DEVICE))


def method(name):
    """A method of the registry, short."""
    kind = find_class("method", name)
    return kind(**{field.name: FEW[field.name] for field in fields(kind) if field.name in FEW})


@pytest.mark.parametrize("name", names("method"))
def test_every_method_computes_there_what_it_computes_here(name):
    problem = measured(ConeBeam(5), 4) if name in ("fdk", "wfbp") else measured()
    prior = GaussianPrior(torch.logspace(0, -2, 32), mean=-0.3)
    here = solve(problem, method(name), prior, samples=2, seed=3)
    with pretended(DEVICE) as asked:
        there = solve(moved(problem), method(name), prior, samples=2, seed=3)
        assert isinstance(there.x, There)
        assert there.x.device == DEVICE
        # Noise too, which is drawn on the CPU. Backprojection is compiled here only: other sums.
        rounding = 1e-5 * float(here.x.abs().max()) if name in ("fbp", "fdk", "wfbp") else 0.0
        torch.testing.assert_close(there.x.cpu(), here.x, rtol=0, atol=rounding)
    assert there.stats["forward"] == here.stats["forward"]
    assert {where for _, where in asked} == {DEVICE}


def applied(A, x, y):
    """Everything that an operator computes, on the device of its arguments."""
    weights = torch.ones_like(y)
    return {
        "forward": A(x),
        "adjoint": A.T(y),
        "normal": A.normal(x, weights),
        "pinv": A.pinv(y, 0.01, 5),
        "prox": A.prox(x, y, weights, 0.3, 5),
        "root": InverseProblem(A, y, Poisson(), weights).functions_of_normal(x, [torch.sqrt], 5)[0],
        "norm": torch.tensor(A.norm(5, like=y)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", names("operator"))
def test_every_operator_computes_there_bit_for_bit_what_it_computes_here(name, dtype):
    A = find_class("operator", name).example()
    if isinstance(A, Radon):
        A = Radon(A.volume, A.beam, "torch")
    x, y = white_noise(A.domain_shape, 1, dtype=dtype), white_noise(A.range_shape, 1, dtype=dtype)
    here = applied(A, x, y)
    with pretended(DEVICE):
        for what, found in applied(A.to(DEVICE), x.to(DEVICE), y.to(DEVICE)).items():
            assert what == "norm" or found.device == DEVICE
            assert found.dtype == here[what].dtype
            assert torch.equal(found.cpu(), here[what]), what


class Smoother(torch.nn.Module):
    """Somebody's network: weights of its own, noise level as a tensor."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x, sigma):
        return self.weight * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("kind", ["foreign", "mixture"])
def test_priors_are_moved_and_denoise_there_as_here(kind):
    u = white_noise((1, 16, 16), 2)
    with torch.no_grad():
        prior = ForeignPrior(Smoother(), "edm", 0.0, 1000.0) if kind == "foreign" else MixturePrior.example()
        here = prior.denoise(u, 0.4)
        with pretended(DEVICE):
            found = prior.to(DEVICE).denoise(u.to(DEVICE), 0.4)
            assert found.device == DEVICE
            assert torch.equal(found.cpu(), here)


def test_data_and_image_on_two_gpus_are_refused():
    problem = measured()
    with (
        pretended(DEVICE),
        pytest.raises(BackendError, match=r"data are on cuda:1 and the image on cpu.*\.to"),
    ):
        moved(problem).gradient(torch.zeros(2, 1, 12, 12))


def test_processes_that_train_together_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refusal = pytest.raises(BackendError, match=r"a GPU of its own.*cuda:1; give cuda")
    with pretended(DEVICE), refusal, processes("cuda:1"):
        pass


def test_what_is_not_plain_torch_is_found():
    """The checks can fail: NumPy, a second device, a generator of another device."""
    with pretended(DEVICE):
        x = torch.zeros(3).to(DEVICE)
        for wrong in (
            x.numpy,
            lambda: x + torch.ones(3),
            lambda: x + torch.ones(3, device="cuda:0"),
            lambda: torch.randn(3, generator=torch.Generator(), device=DEVICE),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        assert float(x.sum()) == 0
    with pytest.raises(BackendError, match="not on this machine"), pretended(DEVICE):
        Radon(GRID, ParallelBeam(5)).to("cuda:2")
