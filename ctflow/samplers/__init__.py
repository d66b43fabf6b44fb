"""Reconstruction with flow priors: one method per file."""

from ctflow.samplers.conjugate import ConjugateIntegrator
from ctflow.samplers.ms_flow import MSFlow

__all__ = ["ConjugateIntegrator", "MSFlow"]
