"""A bundle being written: its files, its manifest, and what goes because it was made with something else than is there now."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from fewstep.artifact.digests import component_digest, made_of
from fewstep.artifact.golden import GOLDEN, read_golden, write_golden
from fewstep.artifact.manifest import FileEntry, Manifest, check_name
from fewstep.artifact.signature import Signature, State
from fewstep.artifact.staging import check_place, recover, staged
from fewstep.system.places import MANIFEST

__all__ = ["Draft", "blobs", "check_new", "digest", "inside", "reason"]

MAX_NAME_BYTES = 255  # file systems take no more


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blobs(root: Path) -> Path | None:
    """Where the files of a bundle in a Hugging Face cache (models--NAME/snapshots/REVISION) lie; None for one elsewhere."""
    for above in (root, *root.parents):
        folder = above.parent.parent / "blobs"
        if above.parent.name == "snapshots" and folder.is_dir():
            return folder.resolve()
    return None


def inside(root: Path, name: str) -> Path:
    """The path of a file of the bundle.

    Args:
        root: the bundle's directory.
        name: with / between its parts, as a manifest has it.

    Raises:
        ValueError: for a name that leaves the directory, and for links other than a cache's to its blobs.
    """
    parts = name.split("/")  # the first one of an absolute path is empty
    plain = name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES and not {"", ".", ".."} & {*parts}
    if not plain or "\\" in name or ":" in name:
        raise ValueError(
            f"{root.name} names the file {name[:100]!r}, which is not a plain path inside it; do not use this bundle"
        )
    path = root.joinpath(*parts)
    links = [p for p in (path, *path.parents) if p != root and p.is_relative_to(root) and p.is_symlink()]
    if links and not (links == [path] and (kept := blobs(root)) and path.resolve().parent == kept):
        raise ValueError(f"{root.name}/{name} is a link; a bundle holds plain files only, do not use this bundle")
    return path


def reason(error: ValidationError) -> str:
    """The first complaint about data, in one line."""
    # errors() makes a dictionary for each; a forged manifest has millions.
    text = error.json(include_url=False, include_context=False, include_input=False)
    first = json.JSONDecoder().raw_decode(text, 1)[0]
    where = ".".join(str(p)[:100] for p in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"[:1000]


def check_new(path: Path) -> None:
    """Whether a bundle can be made there, to be asked before the work that goes into it.

    Raises FileExistsError when something is there already, ValueError for a name that no bundle can have, and what check_place
    raises.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it first")
    check_name(path.name.removesuffix(".bundle"))
    check_place(path)


class Draft:
    """A bundle being written. `root` is its directory, `manifest` may be changed freely; files go where `new` says."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    @contextmanager
    def create(cls, path: str | os.PathLike[str], signature: Signature, *, state: State | None = None) -> Iterator[Draft]:
        """A new bundle at path, which is there when the block ends well.

        Args:
            path: where nothing is yet.
            signature: what the model is told and what it gives.
            state: what its samplers walk on, where that is not the output itself.

        Yields:
            The draft, to be filled.

        Raises:
            FileExistsError: where something is there.
            ValueError: for a name or place that no bundle can have, or a draft that is no valid bundle at the end.
            OSError: where it cannot be written.
        """
        root = Path(os.path.realpath(path))
        recover(root)
        check_new(root)
        with staged(root) as staging:
            check_new(root)  # another process may have made it meanwhile
            name, own = root.name.removesuffix(".bundle"), signature.output.state
            draft = cls(staging, Manifest.model_construct(name=name, signature=signature, state=state or own))
            yield draft
            draft.seal()

    def new(self, name: str) -> Path:
        """Where to write the file `name`; nothing exists there when this returns."""
        path = inside(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def remove(self, name: str) -> None:
        """Remove a file or directory of the draft, if it is there."""
        path = inside(self.root, name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def drop_graph(self, name: str) -> None:
        """Remove a graph, where it is there, and the files that no other graph reads."""
        if (graph := self.manifest.graphs.pop(name, None)) is None:
            return
        others = {path for other in self.manifest.graphs.values() for path in other.paths}
        for path in graph.paths:
            if path not in others:
                self.remove(path)

    def seal(self, before: Manifest | None = None) -> None:
        """Record every file and write the manifest. Raises ValueError when it would be invalid.

        before: of the bundle that is changed; what was made with something that is another one now is removed.
        """
        self._record({})
        if before:
            _remember_digests(self.manifest, before)
            _Stale(self, before).remove()
            self._record(self.manifest.files)
        try:
            manifest = Manifest.model_validate(self.manifest.model_dump(mode="json", by_alias=True))
        except ValidationError as error:
            raise ValueError(f"this bundle cannot be saved: {reason(error)}") from None
        (self.root / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n", "utf-8")

    def _record(self, known: Mapping[str, FileEntry]) -> None:
        """Size and hash of every file that has none in known."""
        paths = {p.relative_to(self.root).as_posix(): p for p in self.root.rglob("*") if p.is_file()}
        self.manifest.files = {
            name: known.get(name) or FileEntry(sha256=digest(paths[name]), bytes=paths[name].stat().st_size)
            for name in sorted(paths)
        }


def _remember_digests(now: Manifest, before: Manifest) -> None:
    """Of components that the bundle is shipped without from now on."""
    for name, entry in now.components.items():
        if entry.directory is None and name in before.components and before.components[name].directory:
            entry.digest = component_digest(before, name)


class _Stale:
    """What a change makes stale: whatever was made with a component, plan or signature that is another one now.

    What is itself another one now is taken to be made anew.
    """

    def __init__(self, draft: Draft, before: Manifest) -> None:
        self.draft, self.now, self.before = draft, draft.manifest, before

    def remove(self) -> None:
        """Graphs with their engines, ranges, references, and the records of plans."""
        now, before, paths = self.now, self.before, list[str]()
        for name, graph in list(now.graphs.items()):
            stale = self._stale(graph.denoiser, graph.plan) or (graph.plan is not None and self._stale_plan(graph.plan))
            if before.graphs.get(name) == graph and stale and self._same(graph.paths):
                engines = {engine: entry for engine, entry in now.engines.items() if entry.graph == name}
                paths += [path for entry in engines.values() for path in entry.paths]
                now.engines = {engine: entry for engine, entry in now.engines.items() if engine not in engines}
                self.draft.drop_graph(name)
        for plan, ranges in list(now.ranges.items()):
            if before.ranges.get(plan) == ranges and self._stale_plan(plan) and self._same([ranges.file]):
                paths.append(ranges.file)
                del now.ranges[plan]
        for path in paths:
            self.draft.remove(path)
        others = {plan for plan in before.plans if self._stale_plan(plan)}
        if others and GOLDEN in before.files and self._same([GOLDEN]):
            self._remove_references(others)
        self._records()

    def _remove_references(self, plans: Collection[str]) -> None:
        try:
            references = read_golden(self.draft.root / GOLDEN, self.before)
        except Exception:  # nobody can read it, and so it proves nothing of other plans either
            references = {}
        path = self.draft.new(GOLDEN)
        del self.now.files[GOLDEN]
        if kept := {plan: arrays for plan, arrays in references.items() if plan not in plans}:
            write_golden(path, kept)

    def _records(self) -> None:
        """Records go with what they speak of; a plan's also when other numbers take its place without one of their own."""
        now, before = self.now.records, self.before.records
        now.components = {name: record for name, record in now.components.items() if name in self.now.components}
        kept = {name for name in self.now.plans if now.plans.get(name) != before.plans.get(name) or not self._renumbered(name)}
        now.plans = {name: record for name, record in now.plans.items() if name in kept}

    def _renumbered(self, plan: str) -> bool:
        entry, was = self.now.plans[plan], self.before.plans.get(plan)
        words = {"denoiser", "solver"}
        return was is None or entry.model_dump(exclude=words) != was.model_dump(exclude=words)

    def _stale_plan(self, plan: str) -> bool:
        was, entry = self.before.plans.get(plan), self.now.plans.get(plan)
        return was is None or entry is None or entry.denoiser != was.denoiser or self._stale(was.denoiser, plan)

    def _stale(self, denoiser: str, plan: str | None) -> bool:
        known = [denoiser in m.components and (plan is None or plan in m.plans) for m in (self.now, self.before)]
        return not all(known) or made_of(self.now, denoiser, plan) != made_of(self.before, denoiser, plan)

    def _same(self, paths: Iterable[str]) -> bool:
        now, before = self.now.files, self.before.files
        return all(path in now and now[path] == before.get(path) for path in paths)
