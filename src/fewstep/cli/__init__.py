"""The fewstep command: one function per verb, each importing what it needs when it runs."""

import sys

try:
    import typer as _typer  # noqa: F401
except ImportError:
    sys.exit("fewstep: the command line needs typer, rich and Pillow; install them with: pip install 'fewstep[cli]'")

from fewstep.cli import decide, deploy, fit, make, run, ship, use  # noqa: F401  (each registers its verbs)
from fewstep.cli.app import main

__all__ = ["main"]
