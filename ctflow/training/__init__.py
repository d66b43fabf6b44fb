"""Train a flow prior: `ctflow train ct-256.toml --data DIR -o prior.safetensors`."""

from ctflow.training.batches import Batches
from ctflow.training.export import calibrate, export, fit_gaussian
from ctflow.training.recipe import Schedule, read_recipe
from ctflow.training.run import train
from ctflow.training.slices import Slices, to_network
from ctflow.training.validation import draw_sheet

__all__ = [
    "Batches",
    "Schedule",
    "Slices",
    "calibrate",
    "draw_sheet",
    "export",
    "fit_gaussian",
    "read_recipe",
    "to_network",
    "train",
]
