"""A static page that makes a bundle's samples in the browser with onnxruntime-web; no build step, no server code.

The folder page/ holds it. index.html is the only file with blanks: the Content-Security-Policy, and ONNX Runtime's module
with its hash, which a <link rel="modulepreload"> checks because an import cannot. The WebAssembly is fetched with its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry
from fewstep.artifact.signature import Input, Output, Signature, TensorSpec
from fewstep.exporter.edge.probe import probe
from fewstep.exporter.edge.sizes import PackagePart, Report, graph_parts, zipped
from fewstep.system.extras import install

__all__ = ["PINNED", "OrtWeb", "RuntimeFile", "ort_web", "write_page"]

MODULE = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
MAX_BYTES = 1 << 30  # of a graph: a protobuf ends at 2 GB, and a tab does earlier
BESIDE = "ort/"  # the folder of the page that holds copies of the runtime's files


@dataclass(frozen=True)
class RuntimeFile:
    """A file of onnxruntime-web.

    Args:
        name: in the folder dist of the npm package.
        bytes: of the file.
        gzip_bytes: what a web server sends when it compresses.
        integrity: as browsers take it: sha384- and base64.
    """

    name: str
    bytes: int
    gzip_bytes: int
    integrity: str


@dataclass(frozen=True)
class OrtWeb:
    """Where the page finds onnxruntime-web.

    Args:
        version: of the npm package.
        base: a folder beside the page or an address, with a slash at the end.
        module, wasm: its two files.
    """

    version: str
    base: str
    module: RuntimeFile
    wasm: RuntimeFile


# What the npm package of this version holds; tests compare it with the package where that is at hand.
PINNED = OrtWeb(
    "1.30.0",
    "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/",
    RuntimeFile(MODULE, 73_054, 24_579, "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    RuntimeFile(WASM, 14_239_897, 3_652_765, "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
)


def ort_web(package: Path) -> OrtWeb:
    """The npm package onnxruntime-web in a directory, to be copied beside the page. Raises ValueError when it is not that."""
    try:
        about = json.loads((package / "package.json").read_text("utf-8"))
        if about["name"] != "onnxruntime-web":
            raise KeyError(about["name"])
        module, wasm = (_runtime_file(package / "dist" / name) for name in (MODULE, WASM))
        return OrtWeb(str(about["version"]), BESIDE, module, wasm)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{package} is not the npm package onnxruntime-web with dist/{MODULE} and dist/{WASM}; "
            f"get it with: npm install onnxruntime-web@{PINNED.version}, then name node_modules/onnxruntime-web"
        ) from None


def _runtime_file(path: Path) -> RuntimeFile:
    content = path.read_bytes()
    integrity = "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
    return RuntimeFile(path.name, len(content), zipped(content), integrity)


def write_page(
    bundle: Bundle, graphs: Sequence[str], directory: Path, *, runtime: OrtWeb = PINNED, package: Path | None = None
) -> Report:
    """Write the page for these graphs.

    Args:
        bundle: with the graphs.
        graphs: by name, of whole plans.
        directory: of the target.
        runtime: what the page is to load.
        package: the npm package whose files `runtime` describes, copied beside the page.

    Raises:
        ValueError: for a graph that a page cannot run.
    """
    described = [_copy_graph(bundle, name, directory) for name in graphs]
    if package:
        for file in (runtime.module, runtime.wasm):
            (directory / BESIDE).mkdir(exist_ok=True)
            shutil.copyfile(package / "dist" / file.name, directory / BESIDE / file.name)
    facts = {
        "name": bundle.manifest.name,
        "inputs": _inputs(bundle.manifest.signature),
        "output": _output(bundle.manifest.output),
        "graphs": described,
        "ort": asdict(runtime),
    }
    (directory / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    page = [_write(directory, file.name, _fill(file.read_text("utf-8"), runtime)) for file in _page() if file.is_file()]
    page.append((directory / "facts.json").read_bytes())
    parts = [part for name in graphs for part in graph_parts("web", name, directory / f"{name}.onnx", sent=True)]
    parts.append(PackagePart("web", "page", sum(map(len, page)), sum(map(zipped, page))))
    for title, file in (("module", runtime.module), ("WebAssembly", runtime.wasm)):
        name = f"onnxruntime-web {runtime.version} {title}"
        parts.append(PackagePart("web", name, file.bytes, file.gzip_bytes, shipped=package is not None))
    return Report(parts)


def _page() -> list[Path]:
    style = Path(str(resources.files("fewstep") / "style.css"))  # the playground of `fewstep serve` looks the same
    return [*sorted(Path(str(resources.files("fewstep.exporter.edge") / "page")).iterdir()), style]


def _fill(text: str, runtime: OrtWeb) -> str:
    """index.html with its blanks filled; the other files have none, JavaScript's own ${} stay."""
    if not text.startswith("<!doctype html>"):
        return text
    module = runtime.base + runtime.module.name
    return Template(text).substitute(policy=_policy(runtime), module=module, integrity=runtime.module.integrity)


def _policy(runtime: OrtWeb) -> str:
    """What the page may load: its own folder's server and the runtime's folder. Workers (threads) start from blobs."""
    elsewhere = f" {runtime.base}" if "://" in runtime.base else ""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self'{elsewhere} 'wasm-unsafe-eval'",
            f"connect-src 'self'{elsewhere}",
            "worker-src 'self' blob:",
            "style-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _write(directory: Path, name: str, text: str) -> bytes:
    content = text.encode()
    (directory / name).write_bytes(content)
    return content


def _inputs(signature: Signature) -> list[dict[str, Any]]:
    """A field for each: how many values it has, null for numbers without end; their names; what "none" is, null for nothing."""
    found = [_tensor(each.tensor) | _values(each) for each in signature.inputs]
    nulls = [(each.null_tensor, each.name) for each in signature.inputs if each.null_tensor]
    return found + [
        _tensor(tensor) | {"meaning": f"what means none in place of {name}", "choices": None, "names": [], "none": None}
        for tensor, name in nulls
    ]


def _values(each: Input) -> dict[str, Any]:
    none = None if each.null_constant is None else float(each.null_constant.flat[0])  # the same everywhere
    names = each.called(np.arange(each.choices)) if each.choices else []
    return {"meaning": each.meaning, "choices": each.choices, "names": names, "none": none}


def _output(output: Output) -> dict[str, Any]:
    """What is shown: pictures, or tables with these heads."""
    axes, columns = output.heads
    shown = {"about": output.about, "pictures": output.pictures, "axes": axes, "columns": columns}
    return _tensor(output.tensor) | shown


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": spec.shape, "dtype": spec.dtype}


def _copy_graph(bundle: Bundle, name: str, directory: Path) -> dict[str, Any]:
    graph: GraphEntry = bundle.manifest.graphs[name]
    size = sum(bundle.manifest.files[path].bytes for path in graph.paths)
    if size > MAX_BYTES:
        raise ValueError(
            f"a page loads a graph as one file of up to 1 GB, {name!r} has {size / 1e9:.1f} GB; package fp16 or int8"
        )
    expected, target = probe(bundle, name), directory / f"{name}.onnx"
    _copy_whole(bundle.file(graph.file), target, beside=bool(graph.data))
    return {
        "name": name,
        "file": target.name,
        "bytes": target.stat().st_size,
        "plan": graph.plan,
        "nfe": bundle.plan(str(graph.plan)).nfe,
        "precision": graph.precision,
        "noise": list(expected.feeds["noise"].shape[1:]),
        "takes": [tensor for tensor in expected.feeds if tensor != "noise"],
    }


def _copy_whole(source: Path, target: Path, *, beside: bool) -> None:
    """A graph as one file. beside: weights of it lie in other files, which a page does not load."""
    if not beside:
        shutil.copyfile(source, target)
        return
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"a graph whose weights lie beside it needs {error.name}; {install('export')}") from None
    onnx.save(onnx.load(source), target)
