"""What the kernels of tutorials run first: commands print without colours, and all at once."""

import os
import subprocess

from IPython import get_ipython

os.environ.pop("FORCE_COLOR", None)  # ipykernel asks programs for colours


def bash(line: str, cell: str) -> None:
    """Take the place of IPython's own `%%bash -e`, which passes on pieces of lines as they come."""
    command = ["bash", *line.split(), "-c", cell]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, end="")
    done.check_returncode()


get_ipython().register_magic_function(bash, "cell")
