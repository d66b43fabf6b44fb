"""deepinv's own tests of linear physics, run on every operator of ours; and its physics as our operators."""

import copy

import pytest
import torch

from ctflow.errors import UsageError
from ctflow.operators import wrap
from ctflow.testing import check_operator
from tests.discovery import OPERATORS

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def peer_tests(deepinv):
    """deepinv ships its tests."""
    return pytest.importorskip("deepinv.tests.test_physics", reason="this deepinv ships without its tests")


@pytest.fixture(params=OPERATORS)
def ours(request, peer_tests, monkeypatch):
    """An operator of ours, in the place where deepinv's tests look for theirs."""
    A = OPERATORS[request.param].example()

    def find_operator(name, device, get_physics_param=False):
        found = (A.to_deepinv(), A.domain_shape, A.norm() ** 2, torch.float32)
        return (*found, []) if get_physics_param else found

    monkeypatch.setattr(peer_tests, "find_operator", find_operator)
    monkeypatch.setattr(peer_tests, "OPERATORS", ["ctflow"])
    return A


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_adjointness(ours, peer_tests, rng):
    peer_tests.test_operators_adjointness("ctflow", "cpu", rng)


@pytest.mark.parametrize("samples", [1, 3])
def test_adjointness_of_several_samples(ours, peer_tests, rng, samples):
    peer_tests.test_adjointness_test("ctflow", samples, "cpu", rng)


def test_norm(ours, peer_tests, rng, monkeypatch):
    # Their bound, 0.01, is absolute and meant for operators of norm one.
    scaled = (1 / ours.norm()) * ours
    found = (scaled.to_deepinv(), scaled.domain_shape, 1.0, torch.float32)
    monkeypatch.setattr(peer_tests, "find_operator", lambda name, device: found)
    peer_tests.test_operators_norm("ctflow", True, "cpu", rng)


@pytest.mark.parametrize("implicit", [True, False])
def test_pseudo_inverse(ours, peer_tests, rng, implicit):
    peer_tests.test_pseudo_inverse("ctflow", "cpu", rng, implicit)


def test_differentiability(ours, peer_tests):
    peer_tests.test_operators_differentiability("ctflow", "cpu")


def test_adjoint_by_autograd(ours, peer_tests):
    peer_tests.test_adjoint_autograd("ctflow", "cpu")


@pytest.mark.parametrize("ours", ["Radon"], indirect=True)  # the one that holds most; a clone takes seconds
def test_clone(ours, peer_tests):
    peer_tests.test_clone("ctflow", "cpu")


def test_device(ours, peer_tests):
    peer_tests.test_device_consistency("ctflow")


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 30.0])
def test_prox_is_the_one_that_deepinv_computes(ours, deepinv, rng, gamma):
    physics = ours.to_deepinv()
    z = torch.randn(2, *ours.domain_shape, generator=rng)
    y = torch.randn(2, *ours.range_shape, generator=rng)
    gamma = gamma / ours.norm() ** 2
    theirs = deepinv.physics.LinearPhysics.prox_l2(physics, z, y, gamma, max_iter=500, tol=1e-7)
    own = physics.prox_l2(z, y, gamma)
    # Two solvers in float32; the larger gamma, the worse the condition (31 here).
    assert float((own - theirs).norm() / theirs.norm()) < 1e-4


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1, 1, 1)])
def test_prox_takes_a_gamma_per_sample_and_its_gradient(ours, rng, shape):
    physics, y = ours.to_deepinv(), torch.randn(2, *ours.range_shape, generator=rng)
    z = torch.randn(2, *ours.domain_shape, generator=rng)
    gamma = (torch.linspace(1, 2, 2)[: int(torch.tensor(shape).prod())] / ours.norm() ** 2).reshape(shape)
    each = gamma.flatten().expand(2).tolist() if gamma.numel() == 1 else gamma.flatten().tolist()
    found = physics.prox_l2(z, y, gamma.requires_grad_())
    apart = [ours.prox(z[k], y[k], torch.ones(()), each[k], 100) for k in (0, 1)]
    torch.testing.assert_close(found.detach(), torch.stack(apart), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.square().sum(), gamma)
    assert gradient.shape == gamma.shape
    # Central differences in float64 where the operator computes in it; a step of 1e-4 leaves 1e-6.
    step = 1e-4 * gamma.detach().double()
    ahead, behind = (
        physics.prox_l2(z.double(), y.double(), gamma.detach().double() + way * step, max_iter=400, tol=1e-12)
        for way in (1, -1)
    )
    slope = (ahead.square().sum() - behind.square().sum()) / 2
    assert float((gradient.double() * step).sum()) == pytest.approx(float(slope), rel=1e-2)


def test_prox_refuses_another_number_of_gammas(ours):
    y = torch.zeros(2, *ours.range_shape)
    with pytest.raises(UsageError, match="3 values for 2 samples; give one, or one each"):
        ours.to_deepinv().prox_l2(None, y, torch.ones(3))


def test_physics_are_copied(ours, rng):
    # deepinv's noise models hold lambdas: no physics of its has a pickle. Operators have one.
    physics, x = ours.to_deepinv(), torch.randn(2, *ours.domain_shape, generator=rng)
    for remade in (copy.copy(physics), copy.deepcopy(physics), physics.clone()):
        assert type(remade) is type(physics)
        assert torch.equal(remade(x), physics(x))


def test_data_fidelity_and_vjp(ours, deepinv, rng):
    physics = ours.to_deepinv()
    x = torch.randn(2, *ours.domain_shape, generator=rng)
    y = torch.randn(2, *ours.range_shape, generator=rng)
    gradient = deepinv.optim.data_fidelity.L2().grad(x, y, physics)
    torch.testing.assert_close(gradient, ours.T(ours(x) - y))
    torch.testing.assert_close(physics.A_vjp(x, y), ours.T(y))


def market(deepinv):
    """Physics of deepinv, with the shape of their images."""
    physics = deepinv.physics
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return {
        "blur": (physics.Blur(kernel, padding="reflect"), (1, 8, 10)),
        "circular blur": (physics.BlurFFT((1, 8, 10), kernel), (1, 8, 10)),
        "downsampling": (physics.Downsampling(img_size=(1, 8, 8), factor=2, filter="bilinear"), (1, 8, 8)),
        "inpainting": (physics.Inpainting((1, 8, 10), mask=0.5), (1, 8, 10)),
        "compressed sensing": (physics.CompressedSensing(m=30, img_size=(1, 8, 8)), (1, 8, 8)),
        "tomography": (physics.Tomography(angles=10, img_width=16, normalize=False), (1, 16, 16)),
        "normalised tomography": (physics.Tomography(angles=10, img_width=16, normalize=True), (1, 16, 16)),
        "ours and back": (
            OPERATORS["Radon"].example().to_deepinv(),
            OPERATORS["Radon"].example().domain_shape,
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "blur",
        "circular blur",
        "downsampling",
        "inpainting",
        "compressed sensing",
        "tomography",
        "normalised tomography",
        "ours and back",
    ],
)
def test_their_physics_become_our_operators(deepinv, name):
    physics, shape = market(deepinv)[name]
    A = wrap(physics, domain_shape=shape)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A(x), physics.A(x))
    check_operator(A)


def test_an_unmatched_adjoint_is_refused_with_its_figure(deepinv):
    physics = deepinv.physics.Tomography(angles=10, img_width=16, normalize=False, adjoint_via_backprop=False)
    with pytest.raises(UsageError, match=r"misses its transpose by \d.* %"):
        wrap(physics, (1, 16, 16))


def test_nonlinear_physics_are_refused(deepinv):
    with pytest.raises(UsageError, match="not linear"):
        wrap(deepinv.physics.Haze())
