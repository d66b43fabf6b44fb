"""A scanner in place of a matrix: what simulated data have that the model of a reconstruction has not."""

from ctflow.scanner.scanner import Scanner

__all__ = ["Scanner"]
