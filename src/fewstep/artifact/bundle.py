"""The bundle: one directory that holds everything a sampler needs to ship. Data only, never code.

    digits.bundle/
      bundle.json      the manifest (fewstep.artifact.manifest), with the size and sha256 of every other file
      components/NAME/ diffusers layout: config.json + *.safetensors
      graphs/*.onnx    one file per plan and precision
      engines/*        built from graphs; always rebuildable
      golden.npz       inputs and reference outputs, the parity check that also runs where torch does not
      card.md          model card; whoever changes it, or removes it, is taken at his word

Reading trusts nothing: unknown keys, a newer schema, a path out of the directory, a link, a wrong size or hash are refused.
Writing happens in a copy beside the bundle that is renamed into place when it is complete (draft.py, staging.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from fewstep.artifact.components import Component
from fewstep.artifact.digests import component_digest, model_digest
from fewstep.artifact.draft import Draft, blobs, check_new, digest, inside, reason
from fewstep.artifact.golden import GOLDEN, Arrays, read_golden
from fewstep.artifact.manifest import Manifest, PlanEntry
from fewstep.artifact.ranges import Ranges
from fewstep.artifact.staging import recover, staged
from fewstep.sampling.plan import Plan
from fewstep.system.places import MANIFEST
from fewstep.system.readable import readable

__all__ = ["CARD", "MANIFEST", "SCHEMA", "Bundle", "Draft", "check_new"]

CARD = "card.md"
SCHEMA = 2
MAX_JSON_BYTES = 16 << 20
Data = TypeVar("Data", bound=BaseModel)


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
        root = Path(os.path.realpath(path))
        recover(root)
        manifest_path = inside(root, MANIFEST)
        if not manifest_path.is_file():
            recover(root)  # another process was between its renames
        if not manifest_path.is_file():
            raise FileNotFoundError(f"{path} is not a bundle: it has no {MANIFEST}; make one with: fewstep train")
        if manifest_path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{manifest_path} is over {MAX_JSON_BYTES >> 20} MiB, which no bundle needs")
        try:
            raw = json.loads(manifest_path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{manifest_path} is not JSON ({error}); copy the bundle again from its source") from None
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if not isinstance(schema, int):
            raise ValueError(f"{manifest_path} does not say which schema it has, so it is no bundle's; name another directory")
        if schema > SCHEMA:
            raise ValueError(f"{path} has bundle schema {schema}, this fewstep reads up to {SCHEMA}; get a newer fewstep")
        try:
            manifest = Manifest.model_validate(raw)
        except ValidationError as error:
            raise ValueError(f"{manifest_path} is not a valid manifest: {reason(error)}") from None
        except ArithmeticError as error:  # numbers that are too much for what the validators compute
            raise ValueError(f"{manifest_path} is not a valid manifest: {error}") from None
        for name in manifest.files:
            inside(root, name)
        return cls(root, manifest)

    def file(self, name: str) -> Path:
        """The path of a file after its size and sha256 were checked. Raises ValueError when it is not what was saved."""
        if name not in self.manifest.files:
            raise ValueError(f"{self.root.name} has no file {name!r} in its manifest")
        path, entry = inside(self.root, name), self.manifest.files[name]
        if name not in self._checked:
            if not path.is_file():
                self._refuse(name, "is missing")
            if path.stat().st_size != entry.bytes:
                found = f"has {path.stat().st_size} bytes, the manifest says {entry.bytes}: it is truncated or altered"
                self._refuse(name, found)
            if digest(path) != entry.sha256:
                self._refuse(name, "does not match its sha256: it was altered")
            self._checked.add(name)
        return path

    def _refuse(self, name: str, found: str) -> NoReturn:
        """Raise ValueError for a file that is not what the manifest says, unless the manifest is another one by now."""
        with suppress(ValueError, OSError):
            if Bundle.load(self.root).manifest.files.get(name) != self.manifest.files[name]:
                found = ""
        if not found:
            raise ValueError(f"{self.root.name} was changed meanwhile by another process; repeat the command")
        way_out = "copy the bundle again from its source"
        if any(name.startswith(f"{entry.directory}/") for entry in self.manifest.components.values()):
            way_out += ", or make one without its training networks there with: fewstep package --target device"
        raise ValueError(f"{self.root.name}/{name} {found}; {way_out}")

    @property
    def card(self) -> Path | None:
        """card.md as it lies there, whoever wrote it; None where there is none. Raises ValueError for a link."""
        path = inside(self.root, CARD)
        return path if path.is_file() else None

    def card_is_changed(self) -> bool:
        """Whether card.md is another one than was saved."""
        entry = self.manifest.files.get(CARD)
        return (digest(self.card) if self.card else None) != (entry.sha256 if entry else None)

    def verify(self) -> None:
        """Check every file but the card. Raises ValueError on the first that is missing, altered or not in the manifest."""
        for name in self.manifest.files:
            if name != CARD:
                self.file(name)
        self._refuse_strangers(self.root)

    def _refuse_strangers(self, folder: Path) -> None:
        found = {p.relative_to(self.root).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
        if extra := found - set(self.manifest.files) - {MANIFEST, CARD}:
            raise ValueError(
                f"{self.root.name} holds files its manifest does not know: {', '.join(sorted(extra))}; move them elsewhere"
            )

    def component(self, name: str) -> Path:
        """The directory of a component, every file in it checked."""
        entry: Component = self.pick("component", name, self.manifest.components)
        if entry.directory is None:
            raise ValueError(f"{self.root.name} was shipped without the {entry.role} {name!r}; only its graphs can be used")
        return self.directory(entry.directory)

    def model_digest(self, denoiser: str) -> str:
        """One hash for what makes a denoiser's samples: its files, how it is used, and the decoder behind it."""
        self.pick("network", denoiser, self.manifest.denoisers)
        return model_digest(self.manifest, denoiser)

    def directory(self, name: str) -> Path:
        """The path of a directory, every file in it checked."""
        path = inside(self.root, name)
        for file in self.manifest.files:
            if file.startswith(name + "/"):
                self.file(file)
        self._refuse_strangers(path)
        return path

    def plan(self, name: str) -> Plan:
        """The numbers of a plan. Raises ValueError for a name there is not."""
        entry: PlanEntry = self.pick("plan", name, self.manifest.plans)
        return entry.plan()

    def ranges(self, plan: str) -> Ranges | None:
        """What calibration found out about the layers of a plan; None where it was not asked."""
        entry = self.manifest.ranges.get(plan)
        if entry is None:
            return None
        way_out = f"collect them again with: fewstep quantize {self.root.name} --plan {plan}"
        return self.parsed(entry.file, Ranges, "ranges", way_out)

    def references(self, *plans: str) -> dict[str, Arrays]:
        """Inputs and what torch made of them, by plan, of those that are named, else all; see fewstep.artifact.golden."""
        if GOLDEN not in self.manifest.files:
            return {}
        path = self.file(GOLDEN)
        with readable(f"{self.root.name}/{GOLDEN}", f"export the plans again with: fewstep export {self.root.name}"):
            return read_golden(path, self.manifest, plans)

    def parsed(self, name: str, kind: type[Data], what: str, way_out: str) -> Data:
        """A JSON file of the bundle as data.

        Args:
            name: of the file in the manifest.
            kind: what it is read as.
            what: the same in words, for the sentence.
            way_out: how to get the file again, as the end of that sentence.

        Raises:
            ValueError: for a file that is not what was saved, is too large, or does not hold `what`.
        """
        path = self.file(name)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{self.root.name}/{name} is over {MAX_JSON_BYTES >> 20} MiB, too much for {what}; {way_out}")
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{self.root.name}/{name} does not hold {what}: {reason(error)}; {way_out}") from None

    def pick(self, kind: str, name: str, known: dict[str, Any]) -> Any:
        """known[name], or a ValueError that lists what there is.

        Args:
            kind: what is asked for, in words.
            name: of what is asked for.
            known: a part of the manifest.
        """
        if name not in known:
            raise ValueError(f"{self.root.name} has no {kind} {name!r}; it has: {', '.join(sorted(known)) or 'none'}")
        return known[name]

    @contextmanager
    def edit(self) -> Iterator[Draft]:
        """Change the bundle: a draft that replaces it when the block ends well, and vanishes when it does not.

        One process at a time does so. What others added since this bundle was loaded stays.

        Raises ValueError where files lie in it that the manifest does not know, for they would be lost, and where a network, a
        plan or the images are others than when it was loaded; and what `staged` raises.
        """
        if blobs(self.root):
            raise ValueError(f"{self.root} lies in a cache, which holds what others have; copy it first: cp -rL {self.root} .")
        with staged(self.root) as staging:
            now = self._now()
            now._refuse_strangers(self.root)
            signed = digest(self.root / MANIFEST)
            for name in now.manifest.files:
                if name != CARD:
                    _link(now.file(name), staging / name)
            if now.card:
                _link(now.card, staging / CARD)
            draft = Draft(staging, now.manifest.model_copy(deep=True))
            yield draft
            draft.seal(now.manifest)
            if (self.root / MANIFEST).is_file() and digest(self.root / MANIFEST) != signed:
                raise ValueError(f"{self.root.name} was replaced meanwhile; repeat the command")

    def _now(self) -> Bundle:
        """The bundle as it lies there now; what was checked and is the same counts as checked."""
        now = Bundle.load(self.root)
        was, files = self.manifest, now.manifest.files
        now._checked = {name for name in self._checked if files.get(name) == was.files.get(name)}
        then, today = self._facts(), now._facts()
        for what, fact in then.items():
            if today.get(what) != fact:
                raise ValueError(f"{what} of {self.root.name} was changed meanwhile by another process; repeat the command")
        return now

    def _facts(self) -> dict[str, Any]:
        """What an edit must not find changed, by what it is called."""
        manifest = self.manifest
        facts: dict[str, Any] = {
            f"the {entry.role} {name!r}": component_digest(manifest, name) for name, entry in manifest.components.items()
        }
        facts |= {f"the plan {name!r}": entry for name, entry in manifest.plans.items()}
        return facts | {"the signature": (manifest.signature, manifest.state)}


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy. Drafts never write into an existing file, so both are safe."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
