"""Train a flow prior: `ctflow train ct-256.toml --data DIR -o prior.safetensors`."""

from ctflow.training.export import calibrate, export, fit_gaussian
from ctflow.training.run import read_recipe, train
from ctflow.training.slices import Schedule, Slices, to_network

__all__ = [
    "Schedule",
    "Slices",
    "calibrate",
    "export",
    "fit_gaussian",
    "read_recipe",
    "to_network",
    "train",
]
