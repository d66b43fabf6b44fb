"""The peers, or the reason why they are not here."""

import importlib.util

import pytest
import torch

# Everything else in a peer that warns is its own affair.
PEERS = ("deepinv", "pylops", "odl")


def peer(name: str):
    """The library, or a skip that says what to install."""
    return pytest.importorskip(name, reason=f'{name} is not here; pip install "ctflow[conformance]"')


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


_declared: list[object] = []  # the library unregisters its operators when it is collected


def _declare_torchvision_operators() -> None:
    """torchvision registers kernels for operators that only its compiled half declares.

    That half does not load beside a CPU build of torch; the names are enough for deepinv, which uses none.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _declared:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    plain = ["nms", "qnms", "deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"]
    for name in plain + [f"_{name}_backward" for name in plain[2:]]:
        try:
            library.define(f"{name}(Tensor x) -> Tensor")
        except RuntimeError:  # the compiled half is there after all
            return
