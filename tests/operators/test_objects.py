"""Operators as objects: copied, pickled, sent to other processes and threads, inside autocast and vmap."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from functools import partial

import astra
import pytest
import scipy.sparse
import torch

from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Poisson
from ctflow.operators import Blur, Convolution, Radon, wrap
from ctflow.operators._astra import AstraSliceProjector
from ctflow.problem import InverseProblem, simulate
from ctflow.recon import CGLS
from ctflow.registry import find_class, names
from ctflow.solving import solve
from ctflow.testing._gaussian import gaussian_case
from ctflow.volume import Volume
from tests.discovery import OPERATORS

VOLUME = VolumeGeometry((2, 12, 10), (3.0, 2.0, 2.0))
RADONS = {
    f"{backend} {type(beam).__name__}": partial(Radon, VOLUME, beam, backend)
    for backend, beam in [
        ("joseph", ParallelBeam(7)),
        ("joseph", ConeBeam(7)),
        ("matrix", FanBeam(7)),
        ("astra", ParallelBeam(7)),
        ("astra", FanBeam(7)),
        ("torch", ConeBeam(7)),
        ("auto", ParallelBeam(7)),
    ]
}
MAKERS = {name: kind.example for name, kind in OPERATORS.items()} | RADONS
MAKERS["multiple of a product"] = lambda: 2.0 * (Radon.example().T @ Radon.example())
MAKERS["sum"] = lambda: Radon(VOLUME, ParallelBeam(7), "astra") + Radon(VOLUME, ParallelBeam(7))
MAKERS["wrapped matrix"] = lambda: wrap(scipy.sparse.random(7, 12, 0.5, random_state=0).tocsr())


def saved(thing):
    """Through torch.save and torch.load."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": saved,
}


def random(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def used(A):
    """An operator that holds whatever it keeps, and what it makes of random images and data."""
    x, y = random((1, *A.domain_shape)), random((1, *A.range_shape), 1)
    A.pinv(A(x), iterations=2)
    A.spectrum(torch.ones(()), dense=True)
    return x, y, A(x), A.T(y)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_outlives_its_original(name, way):
    A = MAKERS[name]()
    x, y, data, back = used(A)
    B = COPIES[way](A)
    del A
    gc.collect()
    # What ASTRA calls by the number of a projector that is gone is the next one that is made.
    others = [
        Radon(VOLUME, ParallelBeam(7, pitch=1.0 + k), "astra")(torch.ones(VOLUME.shape)) for k in (1, 2)
    ]
    assert len(others) == 2
    assert torch.equal(B(x), data)
    assert torch.equal(B.T(y), back)
    assert B.T.T is B


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "copy"])
def test_astras_projector_itself_is_made_anew(way):
    beam = ParallelBeam(7).fitted(VOLUME)
    first = AstraSliceProjector(VOLUME, beam)
    x = random((2, 12, 10))
    data, other = first.forward(x), COPIES[way](first)
    assert other.projector != first.projector
    del first
    assert torch.equal(other.forward(x), data)


def test_what_is_kept_is_no_part_of_a_pickle():
    fresh = {name: len(pickle.dumps(make())) for name, make in RADONS.items()}
    for name, make in RADONS.items():
        A = make()
        used(A)
        assert len(pickle.dumps(A)) == fresh[name] < 10_000, name


def test_a_pickle_of_before_loses_its_handles():
    A = RADONS["astra FanBeam"]()
    x, _, data, _ = used(A)
    B = Radon.__new__(Radon)
    B.__setstate__(vars(A) | {"_projectors": {("astra", None): "a projector of another process"}})
    assert torch.equal(B(x), data)


def test_the_geometry_of_projections_is_fixed():
    A = RADONS["auto ParallelBeam"]()
    for name, other in (("beam", FanBeam(7)), ("volume", VOLUME)):
        with pytest.raises(AttributeError, match=f"property '{name}' of 'Radon' object has no setter"):
            setattr(A, name, other)


def test_a_deep_copy_shares_the_stored_weights():
    A = RADONS["matrix FanBeam"]()
    x, _, data, _ = used(A)
    B = copy.deepcopy(A)
    assert torch.equal(B(x), data)
    assert B._projectors.popitem()[1] is A._projectors.popitem()[1]


def test_equal_parts_of_a_pickle_stay_one_object():
    A = Radon.example()
    B, C, transpose = pickle.loads(pickle.dumps((A, A, A.T)))
    assert B is C
    assert transpose.T is B
    assert (A == B, len({A, B, C})) == (False, 2)


def _digest(jobs):
    return [(A(x), A.T(y)) for A, x, y in jobs]


@pytest.mark.filterwarnings("default")
def test_a_spawned_process_computes_the_same():
    made = {name: make() for name, make in MAKERS.items()}
    results = {name: used(A) for name, A in made.items()}
    jobs = [(made[name], *results[name][:2]) for name in made]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_digest, (jobs,))
    for name, (data, back) in zip(made, found, strict=True):
        assert torch.equal(data, results[name][2]), name
        assert torch.equal(back, results[name][3]), name


FORK = """
import os, torch
from tests.operators.test_objects import RADONS
for name in ("joseph ParallelBeam", "matrix FanBeam", "astra FanBeam"):
    A = RADONS[name]()
    x, y = torch.rand(A.domain_shape), torch.rand(A.range_shape)
    data, back = A(x), A.T(y)
    torch.randn(1000, 1000).sum()  # its threads are started
    if not (child := os.fork()):
        good = torch.allclose(A(x), data) and torch.allclose(A.T(y), back, atol=1e-4)
        torch.randn(1000, 1000).sum()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0, name
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_computes_after_first_use():
    # A process of its own, with threads; the limit ends what would wait for ever.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.stdout.strip() == "done", found.stderr


@pytest.mark.parametrize("name", RADONS)
def test_threads_share_an_operator(name):
    A = RADONS[name]()
    x, y = random((3, *A.domain_shape)), random((3, *A.range_shape), 1)
    data, back = RADONS[name]()(x), RADONS[name]().T(y)
    wrong = []

    def work():
        for _ in range(5):
            wrong.extend([not torch.equal(A(x), data), not torch.equal(A.T(y), back)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 40
    assert not any(wrong)


def test_astras_numbers_are_freed(capfd):
    x = torch.ones(1, 8, 8)
    gc.collect()
    astra.projector.info()
    before = capfd.readouterr().out
    for k in range(1000):
        Radon(VolumeGeometry((1, 8, 8), (1.0, 1.0, 1.0)), ParallelBeam(3, pitch=1 + k / 1e4), "astra")(x)
    astra.projector.info()
    assert capfd.readouterr().out == before


@pytest.mark.parametrize("way", COPIES)
def test_problems_solutions_and_volumes_are_copied_after_use(way):
    A = Radon.example()
    x = random(A.domain_shape).abs() / 50
    problem = simulate(A, x, Poisson(1e4))
    problem.functions_of_normal(x, [torch.sqrt])  # its spectrum is kept, with closures
    solution = solve(problem, CGLS(iterations=3))
    remade = COPIES[way](problem)
    assert torch.equal(remade.prox(x, 1.0), problem.prox(x, 1.0))
    assert torch.equal(COPIES[way](problem.rescaled(0.5, 0.1)).y, problem.rescaled(0.5, 0.1).y)
    assert torch.equal(COPIES[way](solution).mean, solution.mean)
    volume = Volume(x, VOLUME, "1/mm")
    assert torch.equal(COPIES[way](volume).to_hu().data, volume.to_hu().data)
    # Tensors have no one answer to whether they are equal: these objects are equal to themselves.
    for thing in (problem, solution, volume):
        assert thing == thing  # noqa: PLR0124
        assert thing != COPIES[way](thing)
        assert len({thing, thing}) == 1


@pytest.mark.parametrize("way", COPIES)
def test_priors_and_methods_are_copied_after_use(way):
    for name in names("prior"):
        prior = find_class("prior", name).example()
        x = random(prior.latent_shape((1, 1, 16, 16)))
        assert torch.equal(COPIES[way](prior).denoise(x, 0.5), prior.denoise(x, 0.5)), name
    for name in names("method"):
        assert COPIES[way](find_class("method", name)()) == find_class("method", name)(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKERS)
def test_autocast_changes_nothing(name, dtype):
    A = MAKERS[name]()
    x, y = random((2, *A.domain_shape)), random((2, *A.range_shape), 1)
    with torch.autocast("cpu", dtype):
        B, z = MAKERS[name](), x.clone().requires_grad_()
        data = B(z)
        (gradient,) = torch.autograd.grad((data * y).sum(), z)
        found = B.prox(x, y, torch.ones(()), 1.0, 3), B.pinv(y, iterations=3), torch.tensor(B.norm(3))
    expected = A.prox(x, y, torch.ones(()), 1.0, 3), A.pinv(y, iterations=3), torch.tensor(A.norm(3))
    torch.testing.assert_close((data.detach(), gradient, *found), (A(x), A.T(y), *expected), rtol=0, atol=0)


def test_autocast_hands_half_precision_over_as_float32():
    A, x = Blur.example(), random(Blur.example().domain_shape)
    half = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        data = A(half)
    assert (data.dtype, torch.equal(data, A(x.bfloat16().float()))) == (torch.float32, True)
    (gradient,) = torch.autograd.grad(data.sum(), half)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["conjugate", "ddrm", "ms-flow", "cgls"])
def test_solve_is_the_same_under_autocast_and_in_inference_mode(name):
    case, method = gaussian_case(), find_class("method", name)()
    problem = InverseProblem(case.problem.A, case.problem.y.clone().requires_grad_(), case.problem.noise)
    plain = solve(case.problem, method, case.prior, seed=3).x
    with torch.autocast("cpu", torch.bfloat16):
        cast = solve(case.problem, method, case.prior, seed=3).x
    with torch.inference_mode():
        inferred = solve(case.problem, method, case.prior, seed=3).x
    traced = solve(problem, method, case.prior, seed=3).x
    torch.testing.assert_close((cast, inferred, traced), (plain,) * 3, rtol=0, atol=0)
    assert not traced.requires_grad


@pytest.mark.parametrize("name", MAKERS)
def test_minus_signs_of_views_empty_and_expanded_batches(name):
    A = MAKERS[name]()
    x = random(A.domain_shape)
    turned = torch.complex(torch.zeros_like(x), x).conj().imag  # -x, by a flag of the view
    assert turned.is_neg()
    assert torch.equal(A(turned), A(-x))
    assert torch.equal(A(x.expand(3, *x.shape)), A(torch.stack([x] * 3)))
    empty = torch.empty(2, 0, *A.domain_shape, requires_grad=True)
    assert A(empty).shape == (2, 0, *A.range_shape)
    assert torch.autograd.grad(A(empty).sum(), empty)[0].shape == empty.shape


@pytest.mark.parametrize("name", MAKERS)
def test_the_users_default_type_changes_nothing(name):
    A = MAKERS[name]()
    x, y, data, back = used(A)
    expected = data, back, A.prox(x, y, torch.ones(()), 1.0, 3), torch.tensor(A.norm(3))
    torch.set_default_dtype(torch.float64)
    try:
        B = MAKERS[name]()
        one = torch.ones((), dtype=torch.float32)
        found = B(x), B.T(y), B.prox(x, y, one, 1.0, 3), torch.tensor(B.norm(3), dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_kernel_is_the_operators_own():
    kernel = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    A = Convolution((1, 6, 6), kernel)
    kernel.zero_()
    torch.testing.assert_close(A(torch.ones(1, 6, 6)), torch.ones(1, 6, 6))
    torch.testing.assert_close(A.pinv(torch.ones(1, 6, 6)), torch.ones(1, 6, 6))
