"""Devices that are there and those that are not; seeds that are some and those that are none."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from ctflow.cli import main
from ctflow.datasets.phantoms import thorax
from ctflow.errors import BackendError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Blur
from ctflow.problem import simulate
from ctflow.recon import CGLS
from ctflow.registry import find_class, names
from ctflow.solving import solve
from ctflow.system import devices
from ctflow.system.randomness import normal, seeded

ABSENT = ["gpu", "cuda:99", "mps:7", "CPU", "", " cpu", "cpu:3", "meta", "hpu", "cuda:a", "cuda:-1", "vulkan"]


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    says = rf"device '{name}' is not on this machine, which has cpu\b.*; give one of these"
    priors = [find_class("prior", prior).example() for prior in names("prior")]
    for move in (devices.available_device, Blur.example().to, *(prior.to for prior in priors)):
        with pytest.raises(BackendError, match=says):
            move(name)


@pytest.mark.parametrize(
    ("capabilities", "units"),
    [
        ({"avx512_bf16": True}, True),
        ({"avx2": True, "amx_bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_a_cpu_multiplies_bfloat16_where_it_has_units(monkeypatch, capabilities, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices.multiplies_bfloat16(torch.device("cpu")) is units
    assert devices.multiplies_bfloat16(torch.device("cuda"))


def test_an_older_torch_does_not_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not devices.multiplies_bfloat16(torch.device("cpu"))


def test_devices_that_are_there_are_taken_by_either_name(monkeypatch):
    monkeypatch.setattr(devices, "_there", lambda: ["cpu", "cuda:0", "cuda:1"])
    for name in ("cpu", "cuda", "cuda:1", torch.device("cuda:0")):
        assert devices.available_device(name) == torch.device(name)
    with pytest.raises(BackendError, match="'cuda:2' is not on this machine, which has cpu, cuda:0, cuda:1;"):
        devices.available_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "meta"])
@pytest.mark.parametrize(
    "command",
    [
        ["run", "sparse-view-60", "{here}", "-o", "{here}/out"],
        ["run", "sparse-view-60", "{here}", "-o", "{here}/out", "--dry-run"],
        [
            "train",
            str(files("ctflow.priors") / "ct-256.toml"),
            "--data",
            "{here}",
            "-o",
            "{here}/o.safetensors",
        ],
    ],
    ids=["run", "dry run", "train"],
)
def test_commands_refuse_it_with_status_7(command, name, tmp_path, capsys):
    assert main([*(word.format(here=tmp_path) for word in command), "--device", name]) == 7
    assert f"device '{name}' is not on this machine, which has cpu" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80, True, 1.5, "3", None, np.bool_(True)])
def test_what_is_no_seed_is_refused(seed):
    A = Blur.example()
    problem = simulate(A, torch.ones(A.domain_shape), Gaussian(0.1))
    for ask in (
        lambda: solve(problem, CGLS(), seed=seed),
        lambda: simulate(A, torch.ones(A.domain_shape), Gaussian(0.1), seed=seed),
        lambda: find_class("operator", "mask")((1, 4, 4), seed=seed),
        lambda: find_class("prior", "gaussian").example().sample((1, 16, 16), seed=seed),
        lambda: thorax(seed),
    ):
        with pytest.raises(UsageError, match=r"a seed must be a whole number from 0 to 2\^63 - 1 and is"):
            ask()


def test_numpys_whole_numbers_are_seeds():
    A, x = Blur.example(), torch.ones(Blur.example().domain_shape)
    for seed in (np.int64(5), np.uint8(5), torch.tensor(5)):
        assert torch.equal(simulate(A, x, Poisson(10.0), seed).y, simulate(A, x, Poisson(10.0), 5).y)


def test_draws_do_not_depend_on_the_default_type():
    volume, expected = VolumeGeometry((1, 16, 16), (3.0, 20.0, 20.0)), normal((5,), seeded(1))
    chest = thorax(3).rasterise(volume).data
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(normal((5,), seeded(1)), expected)
        torch.testing.assert_close(thorax(3).rasterise(volume).data, chest, check_dtype=False)
    finally:
        torch.set_default_dtype(torch.float32)
