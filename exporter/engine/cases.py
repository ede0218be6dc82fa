"""What a build is given: settings, and with a flavour, a graph and a machine the case that `explain` evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fewstep.artifact.manifest import EngineFlag
from fewstep.exporter.engine.facts import GraphFacts
from fewstep.exporter.engine.flavour import Flavour
from fewstep.system.machine import Machine

MAX_BATCH = 1 << 16

__all__ = ["EngineCase", "EngineFinding", "EngineSettings", "Row"]

Severity = Literal["stops", "note"]


@dataclass(frozen=True)
class EngineSettings:
    """How to build.

    Each batch gets an optimisation profile of its own, from one above the batch before (1 for the first) up to itself, tuned at
    its upper end. (1, 16) therefore gives exactly 1 for latency and 2 to 16 for throughput; (16,) gives one profile for
    everything. See Flavour.batch for which to choose.

    Args:
        targets: GPU architectures (SM) such as "89".
        batch: the batches to tune for, increasing.
        workspace_bytes: scratch memory the engine may use; None is all of the GPU.
        level: 0 (fast build) to 5 (fast engine), native only.
        timing_cache: file of measured kernels, native only.
        flags: of the builder.

    Raises:
        ValueError: for batches that do not increase from 1 on, a workspace of nothing, or another level.
    """

    targets: tuple[str, ...] = ()
    batch: tuple[int, ...] = (16,)
    workspace_bytes: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    flags: tuple[EngineFlag, ...] = ()

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.batch), self.batch, strict=False))
        if not self.batch or not rising or self.batch[-1] > MAX_BATCH:
            raise ValueError(
                f"batches are whole numbers from 1 that increase, up to {MAX_BATCH}, such as 1,4,16, got {list(self.batch)}"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError(f"a workspace has at least 1 byte, got {self.workspace_bytes}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise ValueError(f"optimisation levels are 0 to 5, got {self.level}")

    @property
    def profiles(self) -> list[tuple[int, int, int]]:
        """Smallest, tuned and largest batch of each profile."""
        return [(low + 1, high, high) for low, high in zip((0, *self.batch), self.batch, strict=False)]


@dataclass(frozen=True)
class EngineCase:
    """One graph to be built one way on one machine.

    Args:
        flavour: that builds it.
        settings: how.
        graph: what it says about itself.
        machine: where it is built; by default one of which nothing is known.
    """

    flavour: Flavour
    settings: EngineSettings
    graph: GraphFacts
    machine: Machine = field(default_factory=Machine)

    @property
    def architectures(self) -> tuple[str, ...]:
        """The SM that the engine is surely meant for."""
        if self.flavour.rtx:
            return self.settings.targets
        return (self.machine.sm,) if self.machine.sm else ()

    @property
    def memory_bytes(self) -> int:
        """What the build takes: the parsed weights and two copies for each profile (TensorRT-RTX 1.7, 400 MB of weights)."""
        return (1 + 2 * len(self.settings.batch)) * (self.graph.graph_bytes + self.graph.data_bytes)

    def below(self, sm: int) -> list[str]:
        return [f"SM {t}" for t in self.architectures if t.isdecimal() and int(t) < sm]


@dataclass(frozen=True)
class EngineFinding:
    """What the table says about a case.

    Args:
        rule: its name in the table.
        severity: stops, where TensorRT would fail or do something else than asked, or note.
        reason: in words.
        instead: what to do, in words.
    """

    rule: str
    severity: Severity
    reason: str
    instead: str

    @property
    def sentence(self) -> str:
        return f"{self.reason}; {self.instead}"


@dataclass(frozen=True)
class Row:
    """A rule of the table.

    Args:
        rule: its name.
        severity: stops or note.
        when: something true where it holds, which is {found} in the texts.
        reason, instead: texts, which may also name {graph} and {flavour}.
    """

    rule: str
    severity: Severity
    when: Callable[[EngineCase], object]
    reason: str
    instead: str
