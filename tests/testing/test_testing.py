"""Everything that ctflow ships passes its own checks, and each check catches what it is there for."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from ctflow.errors import BackendError, CTFlowError
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, ParallelBeam, ParallelBeam3D, VolumeGeometry
from ctflow.linalg import cg
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Blur, Downsample, LinearOperator, Radon, radon
from ctflow.priors import GaussianPrior, MixturePrior, Prior
from ctflow.registry import find_class, names
from ctflow.testing import CheckError, check_dataset, check_noise, check_operator, check_prior, check_sampler
from tests.discovery import DATASETS, OPERATORS, with_example

RADON = Radon.example()
COMPOSITES = {
    "scaled": -2.0 * RADON,
    "sum": RADON + 0.5 * RADON,
    "projected blur": RADON @ Blur(RADON.domain_shape, sigma=1.0),
    "low resolution of a backprojection": Downsample(RADON.domain_shape, factor=2) @ RADON.T,
    "moved": RADON.to("cpu"),
}
PRIORS = with_example("prior", Prior)
BEAMS = {
    "parallel": ParallelBeam(7, axis_offset=1.0),
    "flat fan": FanBeam(7, source_axis=300.0, source_detector=500.0),
    "curved fan": FanBeam(7, source_axis=300.0, source_detector=500.0, curved=True),
    "3D parallel": ParallelBeam3D(5),
    "cone": ConeBeam(5, source_axis=300.0, source_detector=500.0),
    "helix": HelicalBeam(5, source_axis=300.0, source_detector=500.0, rows=4, feed=6.0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name):
    check_operator(OPERATORS[name].example())


@pytest.mark.parametrize("name", COMPOSITES)
def test_composition(name):
    check_operator(COMPOSITES[name])


@pytest.mark.parametrize("backend", radon._BACKENDS)
@pytest.mark.parametrize("beam", BEAMS)
def test_projections_of_every_backend(beam, backend):
    try:
        A = Radon(VolumeGeometry((3, 10, 8), (3.0, 2.0, 2.0)), BEAMS[beam], backend)
        A(torch.zeros(A.domain_shape))
    except BackendError as error:
        pytest.skip(str(error))
    check_operator(A)


@pytest.mark.parametrize("name", DATASETS)
def test_dataset(name, tmp_path):
    check_dataset(DATASETS[name](tmp_path))


@pytest.mark.parametrize("name", PRIORS)
def test_prior(name):
    check_prior(PRIORS[name].example())


@pytest.mark.parametrize("name", sorted(names("noise")))
def test_noise(name):
    check_noise(find_class("noise", name).example())


@pytest.mark.parametrize("name", sorted(n for n, home in names("method").items() if "samplers" in home))
def test_sampler(name):
    check_sampler(find_class("method", name)())


def broken_laws(check, subject) -> str:
    """Names of the laws that a check finds broken."""
    with pytest.raises(CheckError) as caught:
        check(subject)
    assert isinstance(caught.value, CTFlowError)
    assert isinstance(caught.value, AssertionError)
    assert all(finding.law in str(caught.value) for finding in caught.value.findings if not finding.holds)
    return "; ".join(finding.law for finding in caught.value.findings if not finding.holds)


class Weighted(LinearOperator):
    """Pixels times fixed weights; what a test overrides is what is wrong with it."""

    domain_shape = range_shape = (2, 4, 5)
    weights = torch.linspace(1, 2, 40).reshape(2, 4, 5)

    def _forward(self, x):
        return self.weights.to(x) * x

    def _adjoint(self, y):
        return self.weights.to(y) * y


def changed(**methods) -> LinearOperator:
    return type("Changed", (Weighted,), methods)()


def overwrite(self, x):
    return x.mul_(self.weights.to(x))


def doubled() -> LinearOperator:
    return 2.0 * Weighted()


BROKEN_OPERATORS = {
    "adjoint gap": {"_adjoint": lambda self, y: 1.01 * self.weights.to(y) * y},
    "forward: linear": {"_forward": lambda self, x: self.weights.to(x) * x + 1e-3},
    "forward: batch is loop": {
        "_forward": lambda self, x: (
            self.weights.to(x) * (x + 0.001 * (x - x.flatten(0, -4).mean(0)))
            if x.ndim > 3
            else self.weights.to(x) * x
        )
    },
    "forward: input unchanged": {"_forward": overwrite},
    "forward: repeatable": {"_forward": lambda self, x: self.weights.to(x) * x * (1 + 1e-4 * torch.rand(()))},
    "forward: shape, type and device": {"_forward": lambda self, x: self.weights.double() * x},
    "forward: strided input": {
        "_forward": lambda self, x: self.weights.to(x) * x * (1 if x.is_contiguous() else 2)
    },
    "forward: finite differences": {"_adjoint": lambda self, y: 1.01 * self.weights.to(y) * y},
    "prox: gradient left": {"prox": lambda self, center, y, weights, variance, **_: center},
    "pinv: image not recovered": {"pinv": lambda self, y: 1.1 * y / self.weights.to(y)},
    "norm": {"norm": lambda self, **_: 2.1},
    "forward: copied": {"__copy__": lambda self: doubled()},
    "forward: copied deeply": {"__deepcopy__": lambda self, memo: doubled()},
    "adjoint: pickled": {"__reduce__": lambda self: (doubled, ())},
}


def test_the_unbroken_operator_passes():
    findings = {finding.law: finding for finding in check_operator(Weighted())}
    assert "forward: finite differences" in findings  # it computes in float64, so they were taken
    assert str(findings["adjoint gap"]).endswith("(at most 1e-06)")


@pytest.mark.parametrize("law", BROKEN_OPERATORS)
def test_a_broken_operator_is_caught(law):
    assert law in broken_laws(check_operator, changed(**BROKEN_OPERATORS[law]))


def test_an_operator_that_raises_is_reported_with_its_error():
    def _forward(self, x):
        raise RuntimeError("no device of that kind")

    with pytest.raises(CheckError, match="RuntimeError: no device of that kind"):
        check_operator(changed(_forward=_forward))


def altered(**methods) -> Prior:
    parent = GaussianPrior.example()
    return type("Altered", (GaussianPrior,), methods)(parent.spectrum, parent.mean)


TRUE = GaussianPrior.example()
BROKEN_PRIORS = {
    "velocity": {"velocity": lambda self, x, t: (x - self.denoise(x, t)) / (1 - t)},
    "t = 0": {"denoise": lambda self, x, t: Prior.denoise(self, x, t) + 0.1 * (t == 0)},
    "near t = 1": {"_denoise": lambda self, x, t: 1.05 * TRUE._denoise(x, t)},
    "batch is loop": {"_denoise": lambda self, x, t: TRUE._denoise(x, t) + 0.1 * x.mean()},
    "input changed": {"_denoise": lambda self, x, t: TRUE._denoise(x.add_(1e-3), t)},
    "counted": {"denoise": lambda self, x, t: self._denoise(x, t) if t > 0 else x * 0 + self.mean},
    "vjp": {
        "denoise_vjp": lambda self, x, t, cotangent: tuple(
            factor * part
            for factor, part in zip((1, 1.05), Prior.denoise_vjp(self, x, t, cotangent), strict=True)
        )
    },
    "stated error grows": {"residual_variance": lambda self, t: 1 + t},
    "doing nothing": {"residual_variance": lambda self, t: 3 * TRUE.residual_variance(0) * (1 - 0.5 * t)},
    "stated and measured": {"residual_variance": lambda self, t: 0.5 * TRUE.residual_variance(t)},
}


@pytest.mark.parametrize("law", BROKEN_PRIORS)
def test_a_broken_prior_is_caught(law):
    assert law in broken_laws(check_prior, altered(**BROKEN_PRIORS[law]))


def test_a_prior_is_held_against_other_images():
    prior = MixturePrior.example()
    generator = torch.Generator().manual_seed(1)
    component = torch.multinomial(prior.weights, 32, replacement=True, generator=generator)
    spread = prior.variances[component].sqrt()[:, None, None, None]
    images = prior.means[component] + spread * torch.randn(32, 1, 16, 16, generator=generator)
    check_prior(prior, images=images)
    with pytest.raises(CheckError, match="stated and measured"):
        check_prior(prior, images=3 * images)


def test_asymmetry_of_the_jacobian_is_reported():
    class Shifting(GaussianPrior):
        def _denoise(self, x, t):
            return super()._denoise(x.roll(1, -1), t)

    for prior, low, high in ((TRUE, 0, 1e-6), (Shifting(TRUE.spectrum, TRUE.mean), 0.01, 1)):
        findings = _findings(prior)
        assert low <= findings["asymmetry of the Jacobian"] <= high


def _findings(prior: Prior) -> dict[str, float]:
    try:
        findings = check_prior(prior)
    except CheckError as error:
        findings = error.findings
    return {finding.law: finding.value for finding in findings}


@dataclass(frozen=True)
class Doubted(Gaussian):
    """Gaussian noise that states another variance than it has, has a bias, or neighbours that agree."""

    stated: float = 1.0
    bias: float = 0.0
    width: int = 1

    def precision(self, y):
        return super().precision(y) * self.stated

    def sample(self, clean, generator):
        noise = torch.randn(clean.shape, generator=generator)
        blurred = sum(noise.roll(k, -1) for k in range(self.width)) / self.width**0.5
        return clean + self.sigma * (blurred + self.bias)


def test_the_undoubted_noise_passes():
    check_noise(Doubted(0.1))


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (Doubted(0.1, stated=1.1), "variance of all data"),
        (Doubted(0.1, stated=0.9), "variance of all data"),
        (Doubted(0.1, stated=-1.0), "precision not positive"),
        (Doubted(0.1, bias=0.05), "bias of all data"),
        (Doubted(0.1, width=2), "correlation of neighbours"),
        (Poisson(photons=20.0), "variance of all data"),  # the expansion does not hold for so few photons
    ],
)
def test_broken_noise_is_caught(noise, law):
    assert law in broken_laws(check_noise, noise)


@dataclass(frozen=True)
class PosteriorMean:
    """The exact posterior mean of a Gaussian prior, a deterministic method; the flags break it."""

    needs_prior = True
    paper = ""
    ignores_data: bool = False
    forgets_range: bool = False
    mixes: bool = False
    returns_nan: bool = False
    keeps_quiet: bool = False
    unseeded: bool = False

    def __call__(self, problem, prior, generator, callback):
        inside = problem.rescaled(prior.scale, prior.shift)
        shape = (*inside.batch_shape, *inside.A.domain_shape)
        mean = torch.full(shape, float(prior.mean), dtype=inside.y.dtype)
        x = mean if self.ignores_data else mean + self.step(inside, prior, mean)
        if self.mixes:
            x = x + 0.1 * (x.mean(-4, keepdim=True) - x)
        if self.returns_nan:
            x[..., 0] = float("nan")
        if self.unseeded:
            x = x + 1e-3 * torch.randn(x.shape, dtype=x.dtype)
        if not self.keeps_quiet:
            callback(1, 1)
        return x if self.forgets_range else prior.scale * x + prior.shift

    @staticmethod
    def step(inside, prior, mean):
        """C½ (I + C½ AᵀWA C½)⁻¹ C½ AᵀW (y - A m)."""
        half = partial(prior.covariance_product, function="sqrt")
        solved = cg(
            lambda v: v + half(inside.normal(half(v))), half(-inside.gradient(mean)), inside.dims, 200, 1e-9
        )
        return half(solved)


def test_a_plain_deterministic_method_passes():
    findings = {finding.law: finding.value for finding in check_sampler(PosteriorMean())}
    assert findings["distance to the posterior mean"] < 1e-6  # rounding of CG in float64
    assert "batch is loop" in findings  # it draws nothing, so it was compared


@pytest.mark.parametrize(
    ("flag", "law"),
    [
        ("ignores_data", "distance to the posterior mean"),
        ("forgets_range", "distance to the posterior mean"),
        ("mixes", "disturb each other"),
        ("mixes", "batch is loop"),
        ("returns_nan", "preparation"),  # the problem itself refuses to project it
        ("keeps_quiet", "steps not reported"),
        ("unseeded", "same seed"),
        ("unseeded", "spread other than stated"),
    ],
)
def test_a_broken_method_is_caught(flag, law):
    assert law in broken_laws(check_sampler, replace(PosteriorMean(), **{flag: True}))


def test_a_sampler_whose_evaluations_bypass_the_count_is_caught():
    class Hidden(PosteriorMean):
        def __call__(self, problem, prior, generator, callback):
            prior._denoise(torch.zeros(1, 8, 8, dtype=problem.y.dtype), 0.5)
            return super().__call__(problem, prior, generator, callback)

    assert "miscounted" in broken_laws(check_sampler, Hidden())
