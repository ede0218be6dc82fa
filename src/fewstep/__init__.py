"""fewstep: deploy few-step diffusion models. A sampler is a table; see fewstep.sampling.plan.

What is listed in __all__ is public: its names and their meaning stay, or CHANGELOG.md says so. Each is imported when it is
asked for, so that `import fewstep` costs nothing, and a device that generates needs no torch.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "fewstep.api": ("build", "calibrate", "compare", "distill", "export", "import_pipeline", "train"),
    "fewstep.artifact.bundle": ("Bundle", "Draft"),
    "fewstep.artifact.manifest": ("PlanEntry",),
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
    "fewstep.models.decoder": ("save_decoder",),
    "fewstep.models.denoiser": ("Denoiser", "save_network"),
    "fewstep.models.families.base": ("Asked", "Family", "Pipeline"),
    "fewstep.runtime.generator": ("Generator",),
    "fewstep.sampling": ("solvers",),
    "fewstep.sampling.guidance": ("Guidance",),
    "fewstep.sampling.parametrisation": ("Betas", "Edm", "Eps", "Flow", "Velocity"),
    "fewstep.sampling.plan": ("Plan", "sample"),
    "fewstep.sampling.schedule": ("Grid",),
}
TYPE_CHECKING = False  # to type checkers it is true; typing itself takes longer to import than all of this
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from fewstep.api import build, calibrate, compare, distill, export, import_pipeline, train
    from fewstep.artifact.bundle import Bundle, Draft
    from fewstep.artifact.manifest import PlanEntry
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
    from fewstep.models.decoder import save_decoder
    from fewstep.models.denoiser import Denoiser, save_network
    from fewstep.models.families.base import Asked, Family, Pipeline
    from fewstep.runtime.generator import Generator
    from fewstep.sampling import solvers
    from fewstep.sampling.guidance import Guidance
    from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity
    from fewstep.sampling.plan import Plan, sample
    from fewstep.sampling.schedule import Grid

__all__ = [
    "ArrayInput",
    "ArrayOutput",
    "Asked",
    "Axis",
    "Betas",
    "Bundle",
    "Column",
    "Denoiser",
    "Draft",
    "Edm",
    "Eps",
    "Family",
    "Flow",
    "Generator",
    "Grid",
    "Guidance",
    "ImageOutput",
    "LabelInput",
    "Pipeline",
    "Plan",
    "PlanEntry",
    "Signature",
    "State",
    "Velocity",
    "build",
    "calibrate",
    "compare",
    "distill",
    "export",
    "import_pipeline",
    "sample",
    "save_decoder",
    "save_network",
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
