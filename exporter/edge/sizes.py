"""What a package weighs, part by part, and how far its graphs are from the ones they were made from."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from fewstep.exporter.engine.facts import graphs_in
from fewstep.system.extras import install

__all__ = ["Deviation", "PackagePart", "Report", "graph_parts", "installed", "zipped"]


@dataclass(frozen=True)
class PackagePart:
    """Some bytes of a target.

    Args:
        target: one of TARGETS.
        part: what they are, in words.
        bytes: on the device.
        gzip_bytes: what a web server sends when it compresses; None where nothing is sent.
        shipped: False where it is not in the package, but must be on the device.
    """

    target: str
    part: str
    bytes: int
    gzip_bytes: int | None = None
    shipped: bool = True


@dataclass(frozen=True)
class Deviation:
    """A converted graph against the bundle's ONNX graph in ONNX Runtime.

    Args:
        target: one of TARGETS.
        graph: by name.
        setting: what the target was told to compute in.
        max_error: largest |difference| of samples, in what a signature's output counts them in.
        output_error: the same of the output, in levels of 255 for images, in the data's units for arrays.
    """

    target: str
    graph: str
    setting: str
    max_error: float
    output_error: float

    def within(self, limit: float) -> Deviation:
        """Itself, or a ValueError when it is over the limit; NaN is."""
        if not self.max_error <= limit:
            raise ValueError(
                f"{self.graph} as {self.target} is off by {self.max_error:.2g}, the bundle allows {limit:.2g}; "
                "nothing was written, package another precision"
            )
        return self


@dataclass(frozen=True)
class Report:
    """The parts and deviations of every target of a package.

    Args:
        parts: of all targets.
        deviations: of all graphs.
    """

    parts: list[PackagePart] = field(default_factory=list)
    deviations: list[Deviation] = field(default_factory=list)

    def __add__(self, other: Report) -> Report:
        return Report([*self.parts, *other.parts], [*self.deviations, *other.deviations])

    def size_rows(self) -> list[tuple[str, ...]]:
        """part, bytes, gzipped bytes, remark"""
        return [
            (
                f"{part.target}  {part.part}",
                f"{part.bytes:,}",
                f"{part.gzip_bytes:,}" if part.gzip_bytes else "",
                "" if part.shipped else "to install",
            )
            for part in self.parts
        ]

    def error_rows(self) -> list[tuple[str, ...]]:
        """graph, setting, largest error of the sample and of the output"""
        return [(f"{d.target}  {d.graph}", d.setting, f"{d.max_error:.1e}", f"{d.output_error:.3g}") for d in self.deviations]

    def dump(self) -> dict[str, Any]:
        totals: dict[str, int] = {}
        for part in self.parts:
            totals[part.target] = totals.get(part.target, 0) + (part.bytes if part.shipped else 0)
        return {
            "parts": [asdict(part) for part in self.parts],
            "shipped_bytes": totals,
            "deviations": [asdict(deviation) for deviation in self.deviations],
        }


def zipped(content: bytes) -> int:
    """Bytes after gzip, level 9."""
    return len(gzip.compress(content, 9, mtime=0))


def graph_parts(target: str, name: str, path: Path, *, sent: bool = False) -> list[PackagePart]:
    """An ONNX file as two parts, its weights and the rest.

    Args:
        target: one of TARGETS.
        name: of the graph.
        path: of the file; weights beside it do not count.
        sent: measure it gzipped as well.

    Raises:
        ValueError: when it is not ONNX or onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ValueError(f"measuring a graph needs {error.name}; {install('export')}") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ValueError(f"{path.name} is not an ONNX graph; export it again") from None
    weights = [t.SerializeToString() for graph in graphs_in(model.graph) for t in graph.initializer]
    count, total = sum(map(len, weights)), path.stat().st_size
    count_sent, total_sent = (zipped(b"".join(weights)), zipped(path.read_bytes())) if sent else (None, None)
    rest_sent = None if count_sent is None or total_sent is None else max(total_sent - count_sent, 0)
    return [
        PackagePart(target, f"{name}: graph", total - count, rest_sent),
        PackagePart(target, f"{name}: weights", count, count_sent),
    ]


def installed(target: str, prefixes: Sequence[str]) -> list[PackagePart]:
    """The installed size of each Python package of this environment whose name starts so, without its dependencies.

    Args:
        target: one of TARGETS.
        prefixes: in small letters, with - for _.
    """
    found = {d.name.lower().replace("_", "-"): d for d in distributions()}
    return [
        PackagePart(target, f"{d.name} {d.version}, installed", _bytes(d), shipped=False)
        for name, d in sorted(found.items())
        if name.startswith(tuple(prefixes))
    ]


def _bytes(distribution: Distribution) -> int:
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())
