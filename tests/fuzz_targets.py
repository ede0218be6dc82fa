"""What reads bytes that nobody vouches for, as functions of these bytes, for fuzzers.

Whatever the bytes, a target ends in time with nothing, ValueError or FileNotFoundError, opens no file outside of its bundle
and runs nothing. A look at the open files comes from Python's audit hooks; ONNX Runtime's own are seen by test_external.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError, Message
from safetensors.torch import save
from small_sampler import sampler_bundle

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.artifact.external import locations
from fewstep.artifact.manifest import Manifest
from fewstep.backends.base import RunError
from fewstep.evaluation.comparison import FILE, Comparison, Limits, digest, read
from fewstep.models.denoiser import load_network, save_network, unet
from fewstep.models.edm_weights import load_edm_weights
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.generator import Generator
from fewstep.runtime.server import limits
from fewstep.runtime.server.protocol import answer, parse
from fewstep.system.arrays import read_arrays

__all__ = ["TARGETS", "EscapeError", "home", "seeds", "watched"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
RUNS = ("exec", "os.system", "os.exec", "os.fork", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen", "marshal.loads")


class EscapeError(BaseException):
    """A target left its bundle or ran something. No exception of a kind that anybody catches."""


_folder = tempfile.TemporaryDirectory(prefix="fewstep-fuzz-")


@cache
def home() -> Path:
    """The bundle that targets write their bytes into."""
    root = Path(_folder.name) / "a.bundle"
    torch.manual_seed(0)
    with sampler_bundle(root).edit() as draft:
        sizes = {"channels": (8,), "layers": 1, "attention": False, "patch": 1}
        save_network(draft, "real", unet(draft.manifest.state, draft.manifest.signature.inputs, **sizes))
        draft.new(FILE).write_text(_compared(draft.manifest).model_dump_json())
    return root


def _compared(manifest: Manifest) -> Comparison:
    score = {name: {"mean": 1.0, "std": 0.1} for name in ("frechet", "recall", "accuracy", "psnr_db", "pixels.bright")}
    about = {
        "graph": "one.fp32",
        "sha256": digest(manifest, "one", "one.fp32"),
        "backend": "cpu",
        "precision": "fp32",
        "nfe": 1,
    }
    one = {**about, "scores": score, "p50_ms": 1.0, "p99_ms": 2.0, "samples_per_second": 500.0}
    evaluated = {
        "data": "some",
        "features": "classifier",
        "images": 8,
        "seeds": 2,
        "thin": 1,
        "reference": "one",
        "machine": {},
    }
    return Comparison.model_validate(
        {**evaluated, "real": {"frechet": 0.1, "recall": 1.0, "pixels.bright": 0.1}, "plans": {"one": one}}
    )


@contextmanager
def watched(root: Path) -> Iterator[None]:
    """Refuse to open files outside of root and to run anything."""
    if not _watching:
        sys.addaudithook(_look)
    _watching.append(root)
    try:
        with warnings.catch_warnings(action="ignore"):  # to show one is to read our own source
            yield
    finally:
        _watching[-1] = None


_watching: list[Path | None] = []
# How many cores there are; no name in a bundle leads there.
CORES = ("/sys/devices/system/cpu/", "/sys/fs/cgroup/", "/proc/self/mountinfo", "/proc/self/cgroup")


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    root = _watching[-1]
    if root is None:
        return
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(CORES):
        return
    if event == "open" and isinstance(arguments[0], str) and not Path(arguments[0]).resolve().is_relative_to(root):
        raise EscapeError(f"opened {arguments[0]}")
    if event in RUNS:
        raise EscapeError(f"{event} {arguments}")


@contextmanager
def bundle_with(name: str, content: bytes) -> Iterator[Bundle]:
    """The bundle with other content in one file, as a forger would sign it."""
    root = home()
    before, manifest = (root / name).read_bytes(), (root / MANIFEST).read_bytes()
    raw = json.loads(manifest)
    raw["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (root / name).write_bytes(content)
    (root / MANIFEST).write_text(json.dumps(raw))
    try:
        yield Bundle.load(root)
    finally:
        (root / name).write_bytes(before)
        (root / MANIFEST).write_bytes(manifest)


def manifest(content: bytes) -> None:
    """bundle.json, and everything that is asked of a bundle afterwards, to the samples."""
    root = home()
    before = (root / MANIFEST).read_bytes()
    (root / MANIFEST).write_bytes(content)
    try:
        bundle = Bundle.load(root)
        with suppress(ValueError):
            bundle.verify()
        for component in bundle.manifest.components:
            with suppress(ValueError):
                bundle.component(component)
        for plan in bundle.manifest.plans:
            with suppress(ValueError):
                bundle.ranges(plan)
            with suppress(ValueError, RunError, NotFiniteError):
                generator = Generator(bundle, plan=plan, backend="cpu", buckets=(1, 2), threads=1)
                generator.warm_up()
                generator.make(generator.example(2))
    finally:
        (root / MANIFEST).write_bytes(before)


def graph(content: bytes) -> None:
    """A graph's files: every one that protocol buffers' own parser finds is found."""
    found = locations(content)
    with suppress(DecodeError):
        assert _external(onnx.ModelProto.FromString(content)) <= found


def _external(message: Message) -> set[str]:
    """By the descriptors alone."""
    found = {pair.value for pair in getattr(message, "external_data", ()) if pair.key == "location"}
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                found |= _external(inner)
    return found


def ranges(content: bytes) -> None:
    """What calibration found."""
    with bundle_with("ranges.json", content) as bundle:
        bundle.ranges("one")


def comparison(content: bytes) -> None:
    """What samplers were evaluated by, to the choice of one."""
    with bundle_with(FILE, content) as bundle:
        for evaluated in read(bundle).plans.values():
            Limits(distance=1.0, calls=4, ms=5.0).broken(evaluated)


def config(content: bytes) -> None:
    """The configuration of a network."""
    with bundle_with("components/real/config.json", content) as bundle:
        load_network(bundle, "real")


def weights(content: bytes) -> None:
    """Its weights; most of their bytes are a header."""
    with bundle_with(f"components/real/{WEIGHTS}", content) as bundle:
        load_network(bundle, "real")


def arrays(content: bytes) -> None:
    """What a user gives samples to be made from, as a file of either kind."""
    path = home() / ("given.npz" if content.startswith(b"PK") else "given.safetensors")
    path.write_bytes(content)
    try:
        read_arrays(path)
    finally:
        path.unlink()


def checkpoint(content: bytes) -> None:
    """Weights of others, as torch.save writes them."""
    path = home() / "given.pt"
    path.write_bytes(content)
    try:
        load_edm_weights(path)
    except ValueError as error:
        if "does not hold the weights of an ADM network" not in str(error):  # the file was read, and has others
            raise
    finally:
        path.unlink()


def golden(content: bytes) -> None:
    """Reference inputs and outputs."""
    with bundle_with("golden.npz", content) as bundle:
        bundle.references()


def request(content: bytes) -> None:
    """A body of the Open Inference Protocol; its first line is the header with the length of the JSON."""
    header, _, body = content.partition(b"\n")
    asked, tensors = parse(body, header.decode("latin-1") or None, limits.ServerLimits())
    if "seeds" in tensors:
        answer(asked, "model", "1", {"images": ("UINT64", tensors["seeds"])})


def seeds(target: str) -> dict[str, bytes]:
    """Bytes that are as they should be, to begin with."""
    root = home()
    files = {"manifest": MANIFEST, "graph": "graphs/one.onnx", "ranges": "ranges.json", "golden": "golden.npz"}
    files |= {"comparison": FILE, "config": "components/real/config.json", "weights": f"components/real/{WEIGHTS}"}
    if target in files:
        return {"good": (root / files[target]).read_bytes()}
    if target == "arrays":
        file, given = io.BytesIO(), {"prompt_embeds": torch.zeros(1, 2, 3), "negative_prompt_embeds": torch.zeros(1, 2, 3)}
        np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in given.items()})
        return {"safetensors": save(given), "npz": file.getvalue()}
    if target == "checkpoint":
        file = io.BytesIO()
        torch.save({"model.map_layer0.weight": torch.zeros(4, 2)}, file)
        return {"good": file.getvalue()}
    inputs = [{"name": "seeds", "datatype": "UINT64", "shape": [2], "data": [0, 1]}]
    behind = [{"name": name, "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}} for name in "ab"]
    more = {"id": "x", "parameters": {"plan": "p", "timeout": 1}, "outputs": [{"name": "images", "parameters": {}}]}
    plain, binary = json.dumps({"inputs": inputs, **more}).encode(), json.dumps({"inputs": behind}).encode()
    return {"json": b"\n" + plain, "binary": b"%d\n" % len(binary) + binary + bytes(32)}


FUNCTIONS = (manifest, graph, ranges, comparison, config, weights, arrays, checkpoint, golden, request)
TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in FUNCTIONS}
