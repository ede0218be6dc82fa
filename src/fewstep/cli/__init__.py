"""The fewstep command: one function per verb, each importing what it needs when it runs."""

import sys

from fewstep.system.extras import install

try:
    import typer as _typer  # noqa: F401
except ImportError:
    sys.exit(f"fewstep: the command line needs typer, rich and Pillow; {install('cli')}")

# isort: off
# Each registers its verbs, and --help shows them in this order.
from fewstep.cli import make  # noqa: F401
from fewstep.cli import fit  # noqa: F401
from fewstep.cli import decide  # noqa: F401
from fewstep.cli import ship  # noqa: F401
from fewstep.cli import use  # noqa: F401
from fewstep.cli import run  # noqa: F401
from fewstep.cli import deploy  # noqa: F401
from fewstep.cli.app import main
# isort: on

__all__ = ["main"]
