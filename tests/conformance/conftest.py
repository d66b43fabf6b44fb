"""The peers, or the reason why they are not here."""

import importlib

import pytest
import torch


def peer(name: str, install: str = '"ctflow[conformance]"'):
    """The library, or a skip that says what to install."""
    return pytest.importorskip(name, reason=f"{name} is not here; pip install {install}")


@pytest.fixture(scope="session")
def pylops():
    return peer("pylops")


@pytest.fixture(scope="session")
def odl():
    return peer("odl")


@pytest.fixture(scope="session")
def deepinv():
    _declare_torchvision_operators()
    return peer("deepinv")


@pytest.fixture(scope="session")
def diffusers():
    _declare_torchvision_operators()
    return peer("diffusers")


@pytest.fixture(scope="session")
def monai():
    return peer("monai")


@pytest.fixture(scope="session")
def torchcfm():
    return peer("torchcfm", "--no-deps torchcfm pot")  # its own list of packages replaces torch


_declared: list[object] = []  # a library takes its operators with it when it is collected


def _declare_torchvision_operators() -> None:
    """Make torchvision importable where its compiled half is for another torch.

    It registers kernels for operators that only that half declares; the names are enough for deepinv, which
    uses none of them.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # deepinv will say so
    except RuntimeError:  # "operator torchvision::nms does not exist"
        library = torch.library.Library("torchvision", "DEF")
        _declared.append(library)
        plain = ["nms", "qnms", "deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
        for name in plain + [f"_{name}_backward" for name in plain[2:]]:
            library.define(f"{name}(Tensor x) -> Tensor")
