"""Projections on CUDA: Warp's kernels, run on the CPU, and what ASTRA and Warp are given on a GPU."""

import math
import sys

import pytest
import torch

from ctflow.errors import BackendError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Radon, _astra, radon
from ctflow.testing import check_operator
from ctflow.testing._finding import white_noise
from tests.pretended import There, pretended

GANTRY = {"source_axis": 300.0, "source_detector": 500.0}
FLAT = {
    "parallel": ParallelBeam(11),
    "parallel, axis and detector off": ParallelBeam(11, axis_offset=2.3, shift_bins=0.25),
    "fan": FanBeam(11, **GANTRY),
    "curved fan": FanBeam(11, curved=True, **GANTRY),
}
CONE = ConeBeam(5, **GANTRY)
STACK = VolumeGeometry((3, 24, 20), (3.0, 1.7, 1.7))
DEVICES = ["cuda:0", "cuda:1"]


@pytest.fixture
def warp():
    return pytest.importorskip("warp", reason="warp-lang is not installed")


# Warp's kernels, on the CPU; for volumes see test_volume_projector.py


@pytest.mark.parametrize("beam", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_josephs_method(beam, dtype, warp):
    A, B = Radon(STACK, beam, "warp"), Radon(STACK, beam, "joseph")
    x, y = white_noise(A.domain_shape, 2, dtype=dtype), white_noise(A.range_shape, 2, dtype=dtype)
    # The same weights, summed in another order: rounding of values near 100.
    bound = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(A(x), B(x), rtol=0, atol=bound)
    torch.testing.assert_close(A.T(y), B.T(y), rtol=0, atol=bound)


@pytest.mark.parametrize("beam", [*FLAT.values(), CONE], ids=[*FLAT, "cone"])
def test_every_weight_is_the_same_number_both_ways(beam, warp):
    A = Radon(VolumeGeometry((2, 5, 4), (3.0, 2.0, 2.0)), beam, "warp")
    columns = A(torch.eye(40, dtype=torch.float64).reshape(40, *A.domain_shape)).flatten(1)
    size = columns.shape[1]
    rows = A.T(torch.eye(size, dtype=torch.float64).reshape(size, *A.range_shape)).flatten(1)
    assert columns.max() > 1
    # One unit in the last place of mm where the compiler fuses a product and a sum in one direction only.
    torch.testing.assert_close(rows, columns.T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("beam", [FLAT["curved fan"], CONE], ids=["curved fan", "cone"])
def test_operator_obeys_every_law(beam, warp):
    check_operator(Radon(VolumeGeometry((2, 6, 5), (3.0, 2.0, 2.0)), beam, "warp"))


def test_what_is_not_a_number_stays_in_its_slice(warp):
    A = Radon(STACK, FLAT["fan"], "warp")
    projector = A._projector(torch.ones(()))
    x = white_noise(STACK.shape)
    whole, x[1] = projector.forward(x), math.nan
    seen = projector.forward(x)
    assert torch.equal(seen[[0, 2]], whole[[0, 2]])
    assert seen[1].isnan().any()


def test_the_kernel_compiles_for_cuda_with_atomic_sums_of_both_types(tmp_path, warp):
    from ctflow.operators import _warp_kernels

    module = warp.get_module(_warp_kernels.__name__)
    # Turing, the oldest that current drivers serve, and Hopper; NVRTC needs no GPU.
    warp.compile_aot_module(module, arch=[75, 90], module_dir=tmp_path, use_ptx=True)
    codes = [file.read_bytes() for file in tmp_path.glob("*.ptx")]
    assert len(codes) == 2
    for code in codes:
        assert b"add.f32" in code
        assert b"atom" in code
        assert b"add.f64" in code


@pytest.mark.parametrize("what", [torch.zeros(1, 24, 20).half(), torch.zeros(1, 24, 20, device="meta")])
def test_other_types_and_devices_are_refused(what, warp):
    from ctflow.operators._warp import WarpProjector

    with pytest.raises(BackendError, match=r"float32 and float64 on CUDA or the CPU and was given"):
        WarpProjector(STACK, FLAT["fan"].fitted(STACK)).forward(what)


def test_without_warp_its_backend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctflow.operators._warp", None)
    monkeypatch.delattr("ctflow.operators._warp", raising=False)
    with pytest.raises(
        BackendError, match=r"warp-lang is needed.*pip install 'ctflow\[gpu\]'.*backend='torch'"
    ):
        Radon(STACK, FLAT["fan"], "warp")(torch.zeros(STACK.shape))


# What is chosen on CUDA


@pytest.mark.parametrize("beam", [FLAT["parallel"], CONE], ids=["flat", "cone"])
def test_auto_takes_an_exact_transpose_on_cuda(beam, monkeypatch):
    A = Radon(STACK, beam)
    monkeypatch.setattr(radon, "installed", lambda module: True)
    assert A._backend_for(torch.device("cuda:1"), 1) == "warp"
    torch.use_deterministic_algorithms(True)
    try:
        assert A._backend_for(torch.device("cuda:1"), 1) == "torch"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(radon, "installed", lambda module: False)
    assert A._backend_for(torch.device("cuda"), 1) == "torch"
    assert Radon(STACK, beam, "astra")._backend_for(torch.device("cuda"), 1) == "astra"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("backend", "beam"),
    [("torch", CONE), *((name, beam) for name in ("torch", "matrix") for beam in FLAT.values())],
)
def test_tensor_operations_stay_on_the_device(backend, beam, device):
    A = Radon(STACK, beam, backend)
    x, y = white_noise(A.domain_shape, 2), white_noise(A.range_shape, 2)
    Ax, back = A(x), A.T(y)
    with pretended(device):
        there, home = A(x.to(device)), A.T(y.to(device))
        assert there.device == home.device == torch.device(device)
        assert torch.equal(there.cpu(), Ax)
        assert torch.equal(home.cpu(), back)


# Stand-ins that check what they are given


class WarpThere:
    """Warp on the pretended GPU: computes on the CPU what it is given there, and notes device and stream."""

    def __init__(self, warp):
        self.warp, self.launches = warp, []
        self.vec3d, self.float64 = warp.vec3d, warp.float64

    def from_torch(self, x, dtype=None):
        assert isinstance(x, There)
        assert x.is_contiguous()
        made = self.warp.from_torch(x.held, dtype)
        made.where = x.device
        return made

    def device_from_torch(self, device):
        return device

    def stream_from_torch(self, device):
        return f"torch's stream on {device}"

    def launch(self, kernel, dim, inputs, device, stream):
        assert all(array.where == device for array in inputs[:5])
        self.launches.append((str(device), stream))
        self.warp.launch(kernel, dim, inputs, device="cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beam", [FLAT["fan"], CONE], ids=["fan", "cone"])
def test_warp_is_launched_where_the_tensor_is_on_torchs_stream(beam, dtype, device, warp, monkeypatch):
    from ctflow.operators import _warp

    A = Radon(STACK, beam)
    x, y = white_noise(A.domain_shape, 2, dtype=dtype), white_noise(A.range_shape, 2, dtype=dtype)
    B = Radon(STACK, beam, "warp")
    Ax, back = B(x), B.T(y)
    monkeypatch.setattr(_warp, "wp", stand_in := WarpThere(warp))
    with pretended(device):
        # Not contiguous: the memory must be laid out before Warp reads it.
        given = x.to(device).mT.contiguous().mT
        assert torch.equal(A(given).cpu(), Ax)
        assert torch.equal(A.T(y.to(device)).cpu(), back)
    assert set(stand_in.launches) == {(device, f"torch's stream on {device}")}
    # All slices in one launch, volumes one by one.
    assert len(stand_in.launches) == (2 if beam.flat else 4)


class AstraThere:
    """ASTRA on the pretended GPU: computes on the CPU where it can, and checks memory, device and order."""

    def __init__(self, real, asked):
        self.real, self.asked, self.gpus = real, asked, {}
        self.projector = self.projector3d = self

    def __getattr__(self, name):
        return getattr(self.real, name)

    def use_cuda(self):
        return True

    def create_projector(self, kind, geometry, volume, options):
        assert kind in ("cuda", "cuda3d")
        made = len(self.gpus) + 10**6
        if kind == "cuda":
            made = self.real.create_projector("linear", geometry, volume)
        self.gpus[made] = options["GPUindex"]
        return made

    def delete(self, made):
        del self.gpus[made]

    def _checked(self, made, read, written):
        for tensor in (read, written):
            assert tensor.device == torch.device("cuda", self.gpus[made])
            assert tensor.is_contiguous()
            assert tensor.dtype == torch.float32
        assert self.asked[-1] == ("synchronize", read.device)

    def direct_FP(self, made, x, out):
        self._checked(made, x, out)
        self.real.projector.direct_FP(made, x.held, out=out.held) if made < 10**6 else out.held.fill_(1)

    def direct_BP(self, made, y, out):
        self._checked(made, y, out)
        self.real.projector.direct_BP(made, y.held, out=out.held) if made < 10**6 else out.held.fill_(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beam", [FLAT["parallel"], ConeBeam(5, curved=True, **GANTRY)], ids=["flat", "cone"])
def test_astra_is_given_the_gpus_number_plain_memory_and_finished_work(beam, device, monkeypatch):
    A = Radon(STACK, beam, "astra")
    x, y = white_noise(A.domain_shape, 2), white_noise(A.range_shape, 2)
    Ax, back = (A(x), A.T(y)) if beam.flat else (torch.ones(y.shape), torch.ones(x.shape))
    with pretended(device) as asked:
        monkeypatch.setattr(_astra, "astra", AstraThere(_astra.astra, asked))
        assert torch.equal(A(x.to(device).mT.contiguous().mT).cpu(), Ax)
        before = len(asked)
        assert torch.equal(A.T(y.to(device)).cpu(), back)
        # Once before ASTRA begins, once after it has ended.
        assert asked[before:] == [("synchronize", torch.device(device))] * 2
        with pytest.raises(BackendError, match="float32"):
            A(x.double().to(device))
    monkeypatch.undo()


def test_every_gpu_has_a_projector_of_its_own(monkeypatch):
    A = Radon(STACK, FLAT["parallel"], "astra")
    x = white_noise(A.domain_shape)
    with pretended("cuda:0") as asked:
        monkeypatch.setattr(_astra, "astra", stand_in := AstraThere(_astra.astra, asked))
        for device in DEVICES:
            assert A(x.to(device)).device == torch.device(device)
        assert sorted(stand_in.gpus.values()) == [0, 1]
    monkeypatch.undo()
