"""What is installed for running, what conflicts, what each backend would do here, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from fewstep.artifact.bundle import Bundle
from fewstep.system.extras import install
from fewstep.system.machine import Machine

__all__ = ["Finding", "Surroundings", "examine", "here", "try_backends"]

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PROVIDER_LIBRARIES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}


class Finding(NamedTuple):
    """verdict: ok; note, where something is absent that some need; bad, where something cannot work. fix: the way out."""

    verdict: Literal["ok", "note", "bad"]
    about: str
    found: str
    fix: str = ""


class Surroundings(NamedTuple):
    """What is looked at. packages: versions by lower-case name. unloadable: why a provider's library does not load."""

    packages: Mapping[str, str]
    machine: Machine
    providers: tuple[str, ...]
    unloadable: Mapping[str, str]


def here(machine: Machine) -> Surroundings:
    """This environment."""
    root: Path | None = None
    providers: tuple[str, ...] = ()
    unloadable: dict[str, str] = {}
    if find_spec("onnxruntime"):
        import onnxruntime as ort

        providers, root = tuple(ort.get_available_providers()), Path(ort.__file__).parent
        unloadable = _unloadable(root / "capi", providers)
    # Where a folder of Python's path is laid over another, what comes first is what is imported.
    seen = [d for d in reversed(list(distributions())) if not _hidden(d, root)]
    packages = {_name(d): d.version for d in seen}
    return Surroundings(packages, machine, providers, unloadable)


def examine(around: Surroundings) -> Iterator[Finding]:
    """Everything there is to say, in the order in which it would be mended."""
    yield Finding("ok", "Python", sys.version.split()[0])
    yield _onnx_runtime(around)
    yield _gpu(around)
    yield from _providers(around)
    yield from _tensorrt(around)
    yield from _cuda_mix(around)


def _onnx_runtime(around: Surroundings) -> Finding:
    found = [f"{name} {around.packages[name]}" for name in RUNTIMES if name in around.packages]
    if not found:
        return Finding("bad", "ONNX Runtime", "not installed", f"{install('cpu')}, or gpu in place of cpu for NVIDIA GPUs")
    if len(found) == 2:
        return Finding(
            "bad",
            "ONNX Runtime",
            f"{' and '.join(found)} overwrite each other's files",
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install('gpu')}",
        )
    return Finding("ok", "ONNX Runtime", found[0])


def _gpu(around: Surroundings) -> Finding:
    if around.machine.sm is None:
        return Finding("note", "GPU", "no NVIDIA driver or GPU; the CPU runs everything")
    return Finding("ok", "GPU", f"{around.machine.gpu}, SM {around.machine.sm}")


def _providers(around: Surroundings) -> Iterator[Finding]:
    if around.machine.sm is None:
        return
    if "CUDAExecutionProvider" not in around.providers:
        yield Finding("bad", "CUDA", "this ONNX Runtime has no CUDA provider", install("gpu"))
    for provider in around.providers:
        if provider in around.unloadable:
            fix = "pip install 'onnxruntime-gpu[cuda,cudnn]', or a torch of the same CUDA, or put them on LD_LIBRARY_PATH"
            if provider == "TensorrtExecutionProvider":
                fix = "not needed: fewstep drives TensorRT itself"
            verdict: Literal["note", "bad"] = "note" if provider == "TensorrtExecutionProvider" else "bad"
            yield Finding(verdict, provider, around.unloadable[provider], fix)


def _tensorrt(around: Surroundings) -> Iterator[Finding]:
    found = [name for name in ("tensorrt", "tensorrt-rtx") if name in around.packages]
    for name in found:
        yield Finding("ok", name, around.packages[name])
    if around.machine.sm is None:
        return
    if not found:
        yield Finding("note", "TensorRT", "not installed; engines in bundles cannot run", install("rtx"))
    elif not any(name in around.packages for name in ("cuda-python", "cuda-bindings")):
        yield Finding("bad", "cuda-python", "not installed; engines need it to run", "pip install cuda-python")


def _cuda_mix(around: Surroundings) -> Iterator[Finding]:
    majors = {
        ending: sorted(n for n in around.packages if n.startswith("nvidia-") and n.endswith(ending))
        for ending in ("-cu12", "-cu13")
    }
    if all(majors.values()):
        yield Finding(
            "note",
            "CUDA packages",
            f"two majors side by side: {majors['-cu12'][0]} and {majors['-cu13'][0]} among others",
            "keep those of the major that ONNX Runtime asks for; two work only where nothing loads both",
        )


def try_backends(bundle: Bundle) -> Iterator[Finding]:
    """What each backend does with a bundle's default plan, tried in earnest."""
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.selection import PREFERRED

    for backend in PREFERRED:
        try:
            generator = Generator(bundle, backend=backend, buckets=(1,))
            first = generator.warm_up()[1]
        except (ValueError, RuntimeError) as error:
            yield Finding("bad" if backend == "cpu" else "note", backend, str(error))
        else:
            yield Finding("ok", backend, f"{generator.graph}, first call {first * 1e3:.0f} ms")


def _unloadable(folder: Path, providers: Iterable[str]) -> dict[str, str]:
    """Why the libraries of providers do not load, by provider. folder: where ONNX Runtime has its own."""
    from fewstep.backends.cuda_libraries import CUDNN, load_cuda_libraries, why_not

    found = {}
    for provider in providers:
        if provider not in PROVIDER_LIBRARIES:
            continue
        load_cuda_libraries()
        name = f"onnxruntime_providers_{PROVIDER_LIBRARIES[provider]}"
        needed = [str(folder / (f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so")), CUDNN]
        if reason := next(filter(None, map(why_not, needed)), ""):
            found[provider] = reason
    return found


def _name(package: Distribution) -> str:
    return str(package.metadata["Name"]).lower().replace("_", "-")


def _hidden(package: Distribution, root: Path | None) -> bool:
    """Whether this is an ONNX Runtime in another folder than the one that is imported, root, which hides it."""
    if root is None or _name(package) not in RUNTIMES:
        return False
    return Path(str(package.locate_file("onnxruntime"))).resolve() != root.resolve()
