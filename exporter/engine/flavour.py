"""The three TensorRTs that build engines, as one kind of object: TensorRT-RTX, TensorRT 11 and TensorRT 10 (Jetson).

All are driven through Polygraphy and all compute strictly in the types of the graph. They differ in what this table says.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.artifact.engines import LARGEST_BATCH, load_tensorrt
from fewstep.system.extras import install
from fewstep.system.machine import Machine

__all__ = ["FLAVOURS", "Flavour", "choose", "installed"]

FlavourName = Literal["tensorrt_rtx", "tensorrt"]
FLAVOURS: tuple[FlavourName, ...] = ("tensorrt_rtx", "tensorrt")
_RTX_TARGETS = ("75", "80", "86", "89", "120", "121")  # of TensorRT-RTX 1.7, for when it is not installed


@dataclass(frozen=True)
class Flavour:
    """A TensorRT.

    Args:
        name: of its module.
        version: None where it is not installed here.
        targets: architectures (SM) it compiles for without their GPU.
    """

    name: FlavourName
    version: str | None
    targets: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {self.version or '(not installed)'}"

    @property
    def rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    @property
    def extra(self) -> str:
        """The extra of fewstep that installs it, and the ending of its engines' names."""
        return "rtx" if self.rtx else "tensorrt"

    @property
    def major(self) -> int | None:
        return int(self.version.split(".")[0]) if self.version else None

    @property
    def asks_for_strong_typing(self) -> bool:
        """TensorRT 10 chooses types itself unless the network is made with STRONGLY_TYPED; the others know nothing else."""
        return not self.rtx and self.major == 10

    @property
    def batch(self) -> tuple[int, ...]:
        """The batches to tune for unless the user says: up to the largest that the runtime makes unless told otherwise.

        Native kernels are chosen for a profile's tuned batch, so 1 gets its own; TensorRT-RTX makes kernels for the batch it
        meets at run time, and a second profile doubles its engine.
        """
        return (LARGEST_BATCH,) if self.rtx else (1, LARGEST_BATCH)

    @property
    def newest_opset(self) -> int:
        """The newest opset its parser reads: as documented for 11, taken for RTX of that age; for 10 the one we write."""
        return 20 if self.asks_for_strong_typing else 25


def installed(name: FlavourName) -> Flavour:
    """A flavour as it is installed here."""
    module: Any = load_tensorrt(name) if importlib.util.find_spec("polygraphy") else None
    if module is None:
        return Flavour(name, None, _RTX_TARGETS if name == "tensorrt_rtx" else ())
    members = module.ComputeCapability.__members__ if name == "tensorrt_rtx" else ()
    return Flavour(name, module.__version__, tuple(m.removeprefix("SM") for m in members if m.startswith("SM")))


def choose(name: FlavourName | None, machine: Machine) -> tuple[Flavour, str]:
    """The flavour to build with and the reason in words.

    With a GPU at hand, native TensorRT comes first because it times its kernels on that GPU; else TensorRT-RTX, which needs
    none.

    Args:
        name: the one the user asked for.
        machine: this one.

    Raises:
        ValueError: for an unknown name, and when neither is installed.
    """
    if name is not None:
        if name not in FLAVOURS:
            raise ValueError(f"flavour is {' or '.join(FLAVOURS)}, got {name!r}")
        return installed(name), "you asked for it"
    rtx, native = (installed(n) for n in FLAVOURS)
    if native.version and (machine.sm or not rtx.version):
        return native, "it is installed and times its kernels on this GPU" if machine.sm else "it is the one installed"
    if rtx.version:
        return rtx, "it is installed and needs no GPU" if not machine.sm else "it is the one installed"
    raise ValueError(
        f"building engines needs TensorRT; {install('rtx')} (or tensorrt in place of rtx for data-centre GPUs and Jetson)"
    )
