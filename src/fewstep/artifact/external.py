"""Which files a graph reads weights from, found in its bytes without the onnx package, so that none is read unchecked."""

from __future__ import annotations

from pathlib import PurePosixPath

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry
from fewstep.artifact.onnx_bytes import PAIR, messages, raw

__all__ = ["check_files", "locations"]


def check_files(bundle: Bundle, graph: GraphEntry) -> None:
    """Check every file of a graph, and that it reads weights from no other.

    Args:
        bundle: with the files.
        graph: of its manifest.

    Raises:
        ValueError: for a file that is not what was saved, weights the manifest has no hash for, or what is no ONNX file.
    """
    for path in graph.paths:
        bundle.file(path)
    allowed = {_beside(bundle, graph.file, data) for data in graph.data}
    for path in [path for path in (graph.file, graph.postprocess) if path]:
        try:
            found = locations(bundle.file(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{bundle.root.name}/{path} {error}") from None
        for location in found - allowed:
            raise ValueError(
                f"{bundle.root.name}/{path} reads weights from {location!r}, which the bundle has no hash for; export it again"
            )


def _beside(bundle: Bundle, file: str, data: str) -> str:
    """How a graph calls its weights: by their path from its own folder."""
    folder = PurePosixPath(file).parent
    if not PurePosixPath(data).is_relative_to(folder):
        raise ValueError(f"{bundle.root.name} keeps the weights of {file!r} in {data!r}, not beside it; export it again")
    return str(PurePosixPath(data).relative_to(folder))


def locations(model: bytes) -> set[str]:
    """The files an ONNX file reads weights from. Raises ValueError for bytes that are no ONNX file."""
    pairs = (dict(found) for kind, found in messages(model) if kind == PAIR)
    try:
        return {raw(pair.get(2)).decode() for pair in pairs if raw(pair.get(1)) == b"location"}
    except UnicodeDecodeError:
        raise ValueError("is not a readable ONNX file; export it again") from None
