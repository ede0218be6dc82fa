"""The bundle: one directory that holds everything a sampler needs to ship. Data only, never code.

    digits.bundle/
      bundle.json      the manifest (fewstep.manifest), with the size and sha256 of every other file
      networks/NAME/   diffusers layout: config.json + *.safetensors
      decoder/         the autoencoder of a latent model, in the same layout
      graphs/*.onnx    one file per plan and precision
      engines/*        built from graphs; always rebuildable
      golden.npz       inputs and reference outputs, the parity check that also runs where torch does not
      card.md          model card

Reading trusts nothing: unknown keys, a newer schema, a path out of the directory, a link, a wrong size or hash are refused.
Writing happens in a copy beside the bundle that is renamed into place when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.manifest import Condition, FileEntry, ImageSpec, Manifest, NetworkEntry, PlanEntry, check_name
from fewstep.plan import Plan
from fewstep.ranges import Ranges
from fewstep.staging import recover, staged

__all__ = ["MANIFEST", "SCHEMA", "Bundle", "Draft", "check_new", "check_writable"]

MANIFEST = "bundle.json"
SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
MAX_NAME_BYTES = 255  # file systems take no more


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blobs(root: Path) -> Path | None:
    """Where the files of a bundle in a Hugging Face cache (models--NAME/snapshots/REVISION) lie; None for one elsewhere."""
    for above in (root, *root.parents):
        blobs = above.parent.parent / "blobs"
        if above.parent.name == "snapshots" and blobs.is_dir():
            return blobs.resolve()
    return None


def _inside(root: Path, name: str) -> Path:
    """The path of a file of the bundle; refuses names that leave the directory, and links other than a cache's to its blobs."""
    parts = name.split("/")  # the first one of an absolute path is empty
    plain = name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES and not {"", ".", ".."} & {*parts}
    if not plain or "\\" in name or ":" in name:
        raise ValueError(
            f"{root.name} names the file {name[:100]!r}, which is not a plain path inside it; do not use this bundle"
        )
    path = root.joinpath(*parts)
    links = [p for p in (path, *path.parents) if p != root and p.is_relative_to(root) and p.is_symlink()]
    if links and not (links == [path] and (blobs := _blobs(root)) and path.resolve().parent == blobs):
        raise ValueError(f"{root.name}/{name} is a link; a bundle holds plain files only, do not use this bundle")
    return path


def _reason(error: ValidationError) -> str:
    # errors() makes a dictionary for each; a forged manifest has millions.
    text = error.json(include_url=False, include_context=False, include_input=False)
    first = json.JSONDecoder().raw_decode(text, 1)[0]
    where = ".".join(str(p)[:100] for p in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"[:1000]


class Bundle:
    """A bundle on disk, read-only. Files are handed out by `file`, which checks size and hash first."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"Bundle({str(self.root)!r})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle directory. Reads the manifest only; see `file` and `verify`.

        Raises FileNotFoundError where there is no bundle, ValueError where the manifest cannot be trusted.
        """
        root = Path(path).resolve()
        recover(root)
        manifest_path = _inside(root, MANIFEST)
        if not manifest_path.is_file():
            recover(root)  # another process was between its renames
        if not manifest_path.is_file():
            raise FileNotFoundError(f"{path} is not a bundle: it has no {MANIFEST}; make one with: fewstep train")
        if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"{manifest_path} is over {MAX_MANIFEST_BYTES >> 20} MiB, which no bundle needs")
        try:
            raw = json.loads(manifest_path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{manifest_path} is not JSON ({error}); copy the bundle again from its source") from None
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if not isinstance(schema, int) or schema > SCHEMA:
            raise ValueError(
                f"{path} has bundle schema {schema}, this fewstep reads up to {SCHEMA}; upgrade with: pip install -U fewstep"
            )
        try:
            manifest = Manifest.model_validate(raw)
        except ValidationError as error:
            raise ValueError(f"{manifest_path} is not a valid manifest: {_reason(error)}") from None
        for name in manifest.files:
            _inside(root, name)
        return cls(root, manifest)

    def file(self, name: str) -> Path:
        """The path of a file after its size and sha256 were checked. Raises ValueError when it is not what was saved."""
        if name not in self.manifest.files:
            raise ValueError(f"{self.root.name} has no file {name!r} in its manifest")
        path, entry = _inside(self.root, name), self.manifest.files[name]
        if name not in self._checked:
            if not path.is_file():
                raise ValueError(f"{self.root.name}/{name} is missing; copy the bundle again from its source")
            if path.stat().st_size != entry.bytes:
                raise ValueError(
                    f"{self.root.name}/{name} has {path.stat().st_size} bytes, the manifest says {entry.bytes}: "
                    "it is truncated or altered; copy the bundle again from its source"
                )
            if _digest(path) != entry.sha256:
                raise ValueError(
                    f"{self.root.name}/{name} does not match its sha256: it was altered; copy the bundle again from its source"
                )
            self._checked.add(name)
        return path

    def verify(self) -> None:
        """Check every file. Raises ValueError on the first that is missing, altered or not in the manifest."""
        for name in self.manifest.files:
            self.file(name)
        self._refuse_strangers(self.root)

    def _refuse_strangers(self, folder: Path) -> None:
        found = {p.relative_to(self.root).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
        if extra := found - set(self.manifest.files) - {MANIFEST}:
            raise ValueError(
                f"{self.root.name} holds files its manifest does not know: {', '.join(sorted(extra))}; move them elsewhere"
            )

    def network(self, name: str) -> Path:
        """The directory of a network, every file in it checked."""
        entry: NetworkEntry = self.pick("network", name, self.manifest.networks)
        if entry.directory is None:
            raise ValueError(f"{self.root.name} was shipped without the network {name!r}; only its graphs can be used")
        return self.directory(entry.directory)

    def network_digest(self, name: str) -> str:
        """One hash for a network's files and for how it is used, as the manifest has them: equal for equal networks."""
        entry: NetworkEntry = self.pick("network", name, self.manifest.networks)
        prefix = f"{entry.directory}/"
        files = {path.removeprefix(prefix): f.sha256 for path, f in self.manifest.files.items() if path.startswith(prefix)}
        about = entry.model_dump_json(exclude={"directory"})
        return hashlib.sha256((about + json.dumps(files, sort_keys=True)).encode()).hexdigest()

    def directory(self, name: str) -> Path:
        """The path of a directory, every file in it checked."""
        path = _inside(self.root, name)
        for file in self.manifest.files:
            if file.startswith(name + "/"):
                self.file(file)
        self._refuse_strangers(path)
        return path

    def plan(self, name: str) -> Plan:
        entry: PlanEntry = self.pick("plan", name, self.manifest.plans)
        return entry.plan()

    def ranges(self, plan: str) -> Ranges | None:
        """What calibration found out about the layers of a plan; None where it was not asked."""
        entry = self.manifest.ranges.get(plan)
        if entry is None:
            return None
        path = self.file(entry.file)
        try:
            return Ranges.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{self.root.name}/{entry.file} does not hold ranges: {_reason(error)}") from None

    def pick(self, kind: str, name: str, known: dict[str, Any]) -> Any:
        """known[name], or a ValueError that lists what there is."""
        if name not in known:
            raise ValueError(f"{self.root.name} has no {kind} {name!r}; it has: {', '.join(sorted(known)) or 'none'}")
        return known[name]

    @contextmanager
    def edit(self) -> Iterator[Draft]:
        """Change the bundle: a draft that replaces it when the block ends well, and vanishes when it does not.

        One process at a time does so. What others added since this bundle was loaded stays.

        Raises ValueError where files lie in it that the manifest does not know, for they would be lost, and where a network or
        plan is another one than when it was loaded.
        """
        if _blobs(self.root):
            raise ValueError(f"{self.root} lies in a cache, which holds what others have; copy it first: cp -rL {self.root} .")
        with staged(self.root) as staging:
            now = self._now()
            now._refuse_strangers(self.root)
            for name in now.manifest.files:
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(now.file(name), target)
            draft = Draft(staging, now.manifest.model_copy(deep=True))
            yield draft
            draft.seal(now.manifest)

    def _now(self) -> Bundle:
        """The bundle as it lies there now; what was checked and is the same counts as checked."""
        now = Bundle.load(self.root)
        was, files = self.manifest, now.manifest.files
        now._checked = {name for name in self._checked if files.get(name) == was.files.get(name)}
        for kind, before, after in (
            ("network", was.networks, now.manifest.networks),
            ("plan", was.plans, now.manifest.plans),
        ):
            for name, entry in before.items():
                same = after.get(name) == entry and (kind == "plan" or self.network_digest(name) == now.network_digest(name))
                if not same:
                    raise ValueError(
                        f"the {kind} {name!r} of {self.root.name} was changed meanwhile by another process; repeat the command"
                    )
        return now


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy. Drafts never write into an existing file, so both are safe."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_new(path: Path) -> None:
    """Whether a bundle can be made there, to be asked before the work that goes into it.

    Raises FileExistsError when something is there already, ValueError for a name that no bundle can have, PermissionError where
    none may be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it first")
    check_name(path.name.removesuffix(".bundle"))
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raises PermissionError where a bundle cannot be written: one is written beside, so its directory's must let it."""
    above = next(parent for parent in path.resolve().parents if parent.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "Permission denied", str(above))


class Draft:
    """A bundle being written. `root` is its directory, `manifest` may be changed freely; files go where `new` says."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    @contextmanager
    def create(cls, path: str | os.PathLike[str], *, image: ImageSpec, condition: Condition) -> Iterator[Draft]:
        """A new bundle at path. Raises FileExistsError or ValueError as `check_new` does."""
        root = Path(path).resolve()
        recover(root)
        check_new(root)
        with staged(root) as staging:
            check_new(root)  # another process may have made it meanwhile
            draft = cls(staging, Manifest(name=root.name.removesuffix(".bundle"), image=image, condition=condition))
            yield draft
            draft.seal()

    def new(self, name: str) -> Path:
        """Where to write the file `name`; nothing exists there when this returns."""
        path = _inside(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def remove(self, name: str) -> None:
        """Remove a file or directory of the draft, if it is there."""
        path = _inside(self.root, name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _drop_stale(self, before: Manifest, files: dict[str, FileEntry]) -> None:
        """Remove graphs, their engines, and ranges, that were made of a plan or network that is another one now.

        Those that are themselves other ones now are taken to be made anew.
        """
        manifest = self.manifest

        def same(paths: Iterable[str]) -> bool:
            return all(path in files and files[path] == before.files.get(path) for path in paths)

        def changed(network: str) -> bool:
            """Whether the network has other weights; one that is shipped without them keeps its graphs."""
            entry, was = manifest.networks.get(network), before.networks.get(network)
            if entry is None or was is None or entry.directory is None or was.directory is None:
                return entry is None or was is None
            known, now = ({p for p in of if p.startswith(f"{entry.directory}/")} for of in (before.files, files))
            return entry != was or known != now or not same(now)

        def replaced(plan: str) -> bool:
            """Whether the plan has other numbers; what its solver is called does not count."""
            entry, was = manifest.plans.get(plan), before.plans.get(plan)
            return entry is None or was is None or entry.model_dump(exclude={"solver"}) != was.model_dump(exclude={"solver"})

        stale: list[str] = []
        for name, graph in list(manifest.graphs.items()):
            other = changed(graph.network) or (graph.plan is not None and replaced(graph.plan))
            if other and before.graphs.get(name) == graph and same(graph.paths):
                of_it = {engine: entry for engine, entry in manifest.engines.items() if entry.graph == name}
                stale += [*graph.paths, *(path for entry in of_it.values() for path in entry.paths)]
                manifest.engines = {engine: entry for engine, entry in manifest.engines.items() if engine not in of_it}
                del manifest.graphs[name]
        for plan, ranges in list(manifest.ranges.items()):
            other = plan not in manifest.plans or replaced(plan) or changed(manifest.plans[plan].network)
            if other and before.ranges.get(plan) == ranges and same([ranges.file]):
                stale.append(ranges.file)
                del manifest.ranges[plan]
        for path in stale:
            self.remove(path)
            files.pop(path, None)

    def seal(self, before: Manifest | None = None) -> None:
        """Record every file and write the manifest. Raises ValueError when it would be invalid.

        before: of the bundle that is changed; what belongs to plans and networks that it had otherwise is removed.
        """
        names = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())
        entries = {n: FileEntry(sha256=_digest(self.root / n), bytes=(self.root / n).stat().st_size) for n in names}
        if before:
            self._drop_stale(before, entries)
        dump = self.manifest.model_dump(mode="json", by_alias=True) | {"files": entries}
        try:
            manifest = Manifest.model_validate(dump)
        except ValidationError as error:
            raise ValueError(f"this bundle cannot be saved: {_reason(error)}") from None
        (self.root / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n", "utf-8")
