"""A study's folder as tests write it, and what they read from its page."""

import json
import re
from pathlib import Path

import numpy as np
import torch

from ctflow import metrics
from ctflow.datasets.synthetic import toy_volume
from ctflow.runs.protocol import Protocol

PARSED = Protocol.load("sparse-view-60")
PROTOCOL = PARSED.dump()
METHODS = {"fbp": {"name": "fbp"}, "tv": {"name": "tv"}, "conjugate": {"name": "conjugate"}}


def unit(case, method, seed=0, **more):
    return {
        "unit": f"{case:02d}-{method}",
        "case": f"phantom-{case}",
        "case_hash": f"hash-{case}",
        "truth": f"hash-{case}",
        "patient": f"patient-{case}",
        "split": "test",
        "protocol": "sparse-view-60",
        "method": method,
        "parameters": {},
        "seed": seed,
        "trial": None,
        **more,
    }


def write_study(out: Path, cases: int, size: int = 64, slices: int = 3, sd: bool = True) -> None:
    """A study's folder: truth plus white errors that differ by method; the samples' spread is half."""
    noise = np.random.default_rng(0)
    planned = []
    for case in range(cases):
        truth = toy_volume(slices, size, seed=case)
        folder = out / "cases" / f"hash-{case}"
        folder.mkdir(parents=True)
        arrays = {"hu": truth.data.numpy(), "mask": truth.mask.numpy()}
        np.savez(folder / "truth.npz", **arrays, spacing_mm=np.array(truth.geometry.spacing))
        fov = metrics.fov_mask(truth)
        body = metrics.body_mask(truth.data, fov)
        for method, sigma in (("fbp", 40.0), ("tv", 25.0 + case), ("conjugate", 20.0 + 3 * case)):
            planned.append(unit(case, method))
            place = out / "units" / f"{case:02d}-{method}"
            place.mkdir(parents=True)
            hu = truth.data.numpy() + sigma * noise.standard_normal(truth.data.shape).astype(np.float32)
            spread = {"sd": np.full(hu.shape, sigma / 2, np.float32)} if sd and method == "conjugate" else {}
            np.savez(place / "image.npz", hu=hu, **spread)
            figures = metrics.evaluate(torch.from_numpy(hu), truth.data, fov, body)
            figures |= {"residual": 1.0, "seconds": 0.5, "network": 0}
            record = {
                "status": "done",
                "reason": "",
                "figures": figures,
                "samples": 8,
                "prior_sha256": "ab" * 32,
            }
            record = {
                **planned[-1],
                **record,
                "protocol_text": PROTOCOL,
                "ctflow": "0.1.0",
                "machine": "CPU, 1 threads",
                "seconds": 0.6,
            }
            (place / "unit.json").write_text(json.dumps(record))
    plan = {
        "study": "toy",
        "summary": "<b>synthetic</b>",
        "ctflow": "0.1.0",
        "protocols": {"sparse-view-60": PROTOCOL},
        "methods": METHODS,
        "tuning": {"trials": 8, "objective": "rmse_hu", "seed": 0},
        "statistics": {"reference": "fbp", "margin_hu": 30.0},
        "trials": [],
        "units": planned,
    }
    (out / "plan.json").write_text(json.dumps(plan))


def viewed(page):
    return json.loads(re.search(r"const CASES = (\[.*\]);", page.read_text()).group(1))


def characters(cases):
    return sum(len(picture) for case in cases for picture in case["held"].values())
