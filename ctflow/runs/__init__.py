"""Runs: measure a series, reconstruct it with every method, compare, export."""
