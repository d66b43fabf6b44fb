"""A scanner in place of a matrix: what simulated data have that the model of a reconstruction has not."""

from ctflow.scanner.scanner import Scanner
from ctflow.scanner.scatter import correct_scatter, scatter_share

__all__ = ["Scanner", "correct_scatter", "scatter_share"]
