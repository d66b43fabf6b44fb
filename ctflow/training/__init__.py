"""Train a flow prior: `ctflow train ct-256.toml --data DIR -o prior.safetensors`."""

from ctflow.training.batches import Batches
from ctflow.training.export import export_prior, fit_gaussian, measure_errors
from ctflow.training.recipe import Schedule, read_recipe
from ctflow.training.run import train
from ctflow.training.slices import Slices, to_network
from ctflow.training.validation import draw_sheet

__all__ = [
    "Batches",
    "Schedule",
    "Slices",
    "draw_sheet",
    "export_prior",
    "fit_gaussian",
    "measure_errors",
    "read_recipe",
    "to_network",
    "train",
]
