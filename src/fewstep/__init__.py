"""fewstep: deploy few-step diffusion models. A sampler is a table; see fewstep.sampling.plan.

What is listed in __all__ is public: its names and their meaning stay, or CHANGELOG.md says so. Each is imported when it is
asked for, so that `import fewstep` costs nothing, and a device that generates needs no torch.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "fewstep.api": ("build", "calibrate", "compare", "distill", "export", "import_pipeline", "train"),
    "fewstep.artifact.bundle": ("Bundle",),
    "fewstep.artifact.signature": (
        "ArrayInput",
        "ArrayOutput",
        "Axis",
        "Column",
        "ImageOutput",
        "LabelInput",
        "Signature",
        "State",
    ),
    "fewstep.runtime.generator": ("Generator",),
    "fewstep.sampling": ("solvers",),
    "fewstep.sampling.guidance": ("Guidance",),
    "fewstep.sampling.parametrisation": ("Edm", "Eps", "Flow", "Velocity"),
    "fewstep.sampling.plan": ("Plan",),
}
TYPE_CHECKING = False  # to type checkers it is true; typing itself takes longer to import than all of this
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from fewstep.api import build, calibrate, compare, distill, export, import_pipeline, train
    from fewstep.artifact.bundle import Bundle
    from fewstep.artifact.signature import (
        ArrayInput,
        ArrayOutput,
        Axis,
        Column,
        ImageOutput,
        LabelInput,
        Signature,
        State,
    )
    from fewstep.runtime.generator import Generator
    from fewstep.sampling import solvers
    from fewstep.sampling.guidance import Guidance
    from fewstep.sampling.parametrisation import Edm, Eps, Flow, Velocity
    from fewstep.sampling.plan import Plan

__all__ = [
    "ArrayInput",
    "ArrayOutput",
    "Axis",
    "Bundle",
    "Column",
    "Edm",
    "Eps",
    "Flow",
    "Generator",
    "Guidance",
    "ImageOutput",
    "LabelInput",
    "Plan",
    "Signature",
    "State",
    "Velocity",
    "build",
    "calibrate",
    "compare",
    "distill",
    "export",
    "import_pipeline",
    "solvers",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    try:
        found: object = getattr(importlib.import_module(_HOME[name]), name)
        return found
    except AttributeError:
        return importlib.import_module(f"{_HOME[name]}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
