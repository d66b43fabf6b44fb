"""Effects of a scanner are built as they are named, and no image is judged where the metal is."""

import torch

from ctflow.benchmarks.reality import EFFECTS, _errors
from ctflow.datasets.synthetic import toy_volume
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol

TEXT = """# Small.
geometry = { name = "parallel-beam", angles = 30 }
noise = { name = "poisson", photons = 1e6 }
method = { name = "sirt", iterations = 20 }
reference = { name = "fbp" }
"""


def test_every_effect_is_a_scanner_of_its_own():
    built = [
        Protocol.parse("small", TEXT).override([f"scanner={{ {text} }}"]).validate().scanner()
        for text in EFFECTS.values()
    ]
    assert len(set(built)) == len(EFFECTS)


def test_metal_is_not_judged():
    volume, protocol = toy_volume(1, 96), Protocol.parse("small", TEXT)
    rod = protocol.override(["scanner={ metal = 10.0, metal_at = [20.0, 10.0] }"])
    plain, metal = (
        {n: len(e) for n, e, _ in _errors(m, m.problem(0))}
        for m in (prepare(protocol, volume), prepare(rod, volume))
    )
    pixel = volume.geometry.spacing[1] * volume.geometry.spacing[2]
    expected = torch.pi * (10 / 2 + 6) ** 2 / pixel
    assert plain.keys() == metal.keys() == {"fbp", "sirt"}
    assert expected <= plain["fbp"] - metal["fbp"] < 1.6 * expected  # its edge crosses pixels
