"""The command line: `ctflow.cli.app` lists the commands, one file for each topic."""

from ctflow.cli.app import main

__all__ = ["main"]
