"""What a server serves: bundles by name, each in versions, of which one is current and the one before it stays loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import NAME
from fewstep.runtime.batcher import Batcher
from fewstep.runtime.buckets import buckets_to
from fewstep.runtime.generator import Generator
from fewstep.runtime.selection import graphs_of
from fewstep.runtime.trial import try_out

__all__ = ["BusyError", "LoadingError", "Model", "Options", "Repository", "UnknownError", "Version"]

log = logging.getLogger("fewstep.server")


class UnknownError(LookupError):
    """There is no such model, version or plan."""


class LoadingError(RuntimeError):
    """The model has not been warmed up yet."""


class BusyError(RuntimeError):
    """A model is being loaded; one at a time."""


class Options(NamedTuple):
    """How every bundle is opened. plans: those to serve, all that were exported when empty."""

    plans: tuple[str, ...] = ()
    precision: str | None = None
    backend: str | None = None
    threads: int | None = None
    max_batch: int = 32
    max_request: int = 64
    wait_ms: float = 0.0
    max_waiting: int = 256


@dataclass(frozen=True, eq=False)
class Version:
    """A bundle as it was when it was loaded: a batcher for every plan, warmed up.

    Args:
        number: from 1 on.
        bundle: as it was on disk.
        batchers: by plan.
        first_call_ms: of the slowest bucket, by plan.
    """

    number: int
    bundle: Bundle
    batchers: dict[str, Batcher]
    first_call_ms: dict[str, float]

    @property
    def default(self) -> str:
        """The plan for requests that name none."""
        default = self.bundle.manifest.default
        return default if default in self.batchers else next(iter(self.batchers))

    def batcher(self, plan: str | None) -> Batcher:
        """The batcher of a plan. Raises UnknownError."""
        if plan is None:
            return self.batchers[self.default]
        if plan not in self.batchers:
            raise UnknownError(f"there is no plan {plan[:100]!r}; there is: {', '.join(self.batchers)}")
        return self.batchers[plan]

    def close(self) -> None:
        """Finish what waits."""
        for batcher in self.batchers.values():
            batcher.close()


@dataclass(eq=False)
class Model:
    """Versions of one bundle; the current one answers where none is named.

    Args:
        name: in URLs.
        path: of the bundle.
        versions: those that are loaded, by number.
        current: number of the one that answers; 0 before the first is ready.
    """

    name: str
    path: Path
    versions: dict[int, Version] = field(default_factory=dict)
    current: int = 0

    def version(self, number: str | None = None) -> Version:
        """A version by number, the current one for None. Raises UnknownError, or LoadingError before the first is ready."""
        current = self.current  # read before the versions: a switch in between leaves it among them
        if not current:
            raise LoadingError(f"{self.name} is still loading")
        if number is None:
            return self.versions[current]
        versions = {str(n): version for n, version in self.versions.items()}
        if number not in versions:
            raise UnknownError(f"{self.name} has no version {number[:20]!r} loaded; there is: {', '.join(versions)}")
        return versions[number]


class Repository:
    """Models by name. Loading is slow and happens beside serving; switching is one assignment."""

    def __init__(self, paths: Sequence[tuple[str, Path]], options: Options) -> None:
        """paths: models by name. Nothing is loaded yet."""
        names = [name for name, _ in paths]
        if not names or len(set(names)) != len(names):
            got = ", ".join(names) or "none"
            raise ValueError(f"a server needs one or more bundles of different names (NAME=PATH gives one), got: {got}")
        if wrong := [name for name in names if not re.fullmatch(NAME, name)]:
            raise ValueError(f"{wrong[0]!r} cannot stand in a URL; name it with letters, digits, . _ + -, as NAME=PATH")
        self.models = {name: Model(name, path) for name, path in paths}
        self.options, self._loading, self._switching = options, Lock(), Lock()

    @property
    def ready(self) -> bool:
        """Every model has a version that was warmed up."""
        return all(model.current for model in self.models.values())

    @property
    def loading(self) -> bool:
        """Whether a version is being opened."""
        return self._loading.locked()

    def model(self, name: str) -> Model:
        """A model by name. Raises UnknownError."""
        if name not in self.models:
            raise UnknownError(f"there is no model {name[:100]!r}; there is: {', '.join(self.models)}")
        return self.models[name]

    def load(self, name: str) -> Version:
        """Open a model's bundle as it is on disk now, warm it up, and make it current; the version before stays loaded.

        Raises ValueError or OSError where the bundle cannot be served, BusyError while another is loaded; then nothing has
        changed.
        """
        model = self.model(name)
        if not self._loading.acquire(blocking=False):
            raise BusyError("a model is being loaded; ask again when that has ended")
        try:
            return self._load(model)
        finally:
            self._loading.release()

    def load_all(self) -> Iterator[Version]:
        """Load every model, in turn. Raises ValueError or OSError where one cannot be served."""
        with self._loading:
            for model in self.models.values():
                yield self._load(model)

    def roll_back(self, name: str) -> Version:
        """Make the version before the current one current again; the other stays loaded. Raises UnknownError for none."""
        model = self.model(name)
        with self._switching:
            others = [number for number in model.versions if number != model.current]
            if not others:
                raise UnknownError(f"{name} has no other version loaded to go back to")
            before, model.current = model.current, others[-1]
            log.info("%s: rolled back from version %d to %d", name, before, model.current)
            return model.versions[model.current]

    def close(self) -> None:
        """Finish what waits in every version."""
        for model in self.models.values():
            for version in model.versions.values():
                version.close()

    def _load(self, model: Model) -> Version:
        """Open a new version and make it current."""
        number = max(model.versions, default=0) + 1
        try:
            version = self._open(model, number)
        except Exception as error:
            log.warning("%s: version %d was not loaded: %s", model.name, number, error)
            raise
        with self._switching:
            kept = {number: old for number, old in model.versions.items() if number == model.current}
            dropped = [old for number, old in model.versions.items() if number not in kept]
            before = model.current
            # Requests read while this writes: a new dictionary, and never a current version that is not in it.
            model.versions = kept | {version.number: version}
            model.current = version.number
        log.info("%s: version %d loaded from %s, after version %d", model.name, number, model.path, before)
        for old in dropped:
            old.close()
        return version

    def _open(self, model: Model, number: int) -> Version:
        options = self.options
        bundle = Bundle.load(model.path)
        plans = options.plans or tuple(plan for plan in bundle.manifest.plans if graphs_of(bundle, plan))
        if not plans:
            raise ValueError(f"{model.path} has no graphs to serve; write them with: fewstep export {model.path}")
        choices: dict[str, Any] = {
            "precision": options.precision,
            "backend": options.backend,
            "threads": options.threads,
            "buckets": buckets_to(options.max_batch),
        }
        if model.current:  # others are served meanwhile: what may never end must not begin in this process
            try_out(model.path, plans, choices)
        batchers, first = {}, {}
        for plan in plans:
            generator = Generator(bundle, plan=plan, **choices)
            first[plan] = max(generator.warm_up().values()) * 1e3
            batchers[plan] = Batcher(
                generator, max_request=options.max_request, wait_ms=options.wait_ms, max_waiting=options.max_waiting
            )
        return Version(number, bundle, batchers, first)
