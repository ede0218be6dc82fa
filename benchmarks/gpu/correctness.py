"""Part one: does every graph give on the GPU what torch gave on the CPU? Nothing is timed."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from overflowing import overflowing

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.golden import Arrays
from fewstep.backends.sessions import CUDA, ERRORS, open_session
from fewstep.exporter.parity import Parity, check_graphs, compare, plans_of
from fewstep.runtime import Generator
from fewstep.runtime.finite import NotFiniteError
from gpu.job import Work, reason_of

__all__ = ["chosen", "classes", "digits", "finite", "shipped"]

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "digits.bundle"
PLANS = ("sid1", "sid2")  # whose graphs are shipped
NO_KERNEL = ("has no bf16 kernels", "cannot compute")  # of NoKernelError, whose words the selection passes on
LEVELS = {"fp32": 1, "fp16": 8, "bf16": 64}  # of 255 that images may be off, as far as the limits of graphs go


def shipped(work: Work) -> None:
    """Every graph of the shipped bundle."""
    check(work, Bundle.load(SHIPPED), "shipped")
    refuse_wrong(work)


def digits(work: Work) -> None:
    """Its networks that are shipped too, in every layout and precision."""
    if work.scale.checked:
        check(work, Bundle.load(work.bundle("digits")), "digits")
    refuse_wrong(work)


def classes(work: Work) -> None:
    """Every class of networks, with random weights, in every layout and precision."""
    for name in work.scale.classes:
        if work.has(3, name):
            check(work, Bundle.load(work.bundle(name)), name)
    refuse_wrong(work)


def check(work: Work, bundle: Bundle, title: str) -> None:
    """Graph by graph: by itself, state by state; then as the runtime runs it, with CUDA graphs and without."""
    references = bundle.references()
    for name, graph in bundle.manifest.graphs.items():
        for plan in plans_of(bundle, graph, references):
            about = {"bundle": title, "graph": name, "plan": plan, "precision": graph.precision, "layout": graph.layout}
            work.add(**about, way="states", **_stated(bundle, name, plan))
            for cuda_graphs in (True, False) if graph.layout == "unrolled" else (False,):
                way = "runtime, CUDA graphs" if cuda_graphs else "runtime, plain launches"
                work.add(**about, way=way, **_run(bundle, name, plan, references[plan], cuda_graphs=cuda_graphs))
            if graph.precision == "fp32" and graph.layout == "unrolled":
                work.add(**about, way="TF32", **_tf32(bundle, name, plan, references[plan]))


def _stated(bundle: Bundle, name: str, plan: str) -> dict[str, Any]:
    try:
        (found,) = [p for p in check_graphs(_only(bundle, name), CUDA) if p.plan == plan]
    except ValueError as error:
        return _failed(error)
    return _numbers(found)


def _failed(error: Exception) -> dict[str, Any]:
    """What raised: no comparison where ONNX Runtime has no kernel, else a wrong one."""
    reason = reason_of(error)
    return {"ok": False, "skipped" if any(words in reason for words in NO_KERNEL) else "error": reason}


def _only(bundle: Bundle, name: str) -> Bundle:
    """The bundle as if it had one graph."""
    graphs = {name: bundle.manifest.graphs[name]}
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"graphs": graphs}))


def _run(bundle: Bundle, name: str, plan: str, golden: Arrays, *, cuda_graphs: bool) -> dict[str, Any]:
    """By the runtime, three times: a captured graph must read what is new in its buffers, and give equal images again.

    Before that and after it, an image alone: a session's captured graphs must be one for each batch size.
    """
    sizes = sorted({1, len(golden["noise"])})
    try:
        generator = Generator(
            bundle, plan=plan, graph=name, backend="cuda", buckets=sizes, cuda_graphs=cuda_graphs, on_nan="ignore"
        )
        alone = run(generator, golden, 1)
        first, turned, again = (run(generator, golden, sizes[-1], step) for step in (1, -1, 1))
        alone_again = run(generator, golden, 1)
    except (ValueError, RuntimeError) as error:
        return _failed(error)
    graph = bundle.manifest.graphs[name]
    found = _numbers(compare(bundle, name, graph, plan, {"sample": first}, golden))
    largest = max(1.0, float(np.abs(first).max()))
    turned_error, alone_error = (
        float(max(np.abs(made - first[: len(made)]).max() for made in others)) / largest
        for others in ([turned], [alone, alone_again])
    )
    follows = max(turned_error, alone_error) <= 2 * graph.limit  # another batch or row of it may round in another way
    return found | {
        "ok": bool(found["ok"] and follows),
        "turned_error": turned_error,
        "alone_error": alone_error,
        "repeats": bool((first == again).all()),
        "why": generator.reason,
    }


def run(generator: Generator, golden: Arrays, batch: int, step: int = 1) -> npt.NDArray[Any]:
    """Samples of a reference's first inputs. step: -1 where they are to be made in reverse order, which is turned back."""
    with generator._pool.borrow(batch) as binding:
        for key, array in binding.inputs.items():
            array[:batch] = golden[key][:batch][::step]
        binding.run()
        made: npt.NDArray[Any] = binding.outputs["sample"][:batch][::step].copy()
        return made


def _tf32(bundle: Bundle, name: str, plan: str, golden: Arrays) -> dict[str, Any]:
    """What the CUDA provider would do if it were not told that fp32 is fp32."""
    graph = bundle.manifest.graphs[name]
    try:
        session = open_session(bundle.file(graph.file), name, provider=CUDA, provider_options={"use_tf32": "1"})
        made = session.run(["sample"], {given.name: golden[given.name] for given in session.get_inputs()})[0]
    except (ValueError, *ERRORS) as error:
        return _failed(error)
    return _numbers(compare(bundle, name, graph, plan, {"sample": made}, golden)) | {"ok": True}


def _numbers(found: Parity) -> dict[str, Any]:
    kept = asdict(found)
    return {"ok": found.ok and not found.skipped} | {
        key: kept[key] for key in ("max_error", "psnr_db", "drift", "limit", "skipped") if kept[key] or key == "max_error"
    }


def chosen(work: Work) -> None:
    """What the runtime takes by itself, and whether its images are the CPU's, in another thread and batch size, too."""
    bundle = Bundle.load(SHIPPED)
    labels, seeds = [i % 10 for i in range(8)], list(range(8))
    for plan in PLANS:
        own, cpu = Generator(bundle, plan=plan), Generator(bundle, plan=plan, backend="cpu", precision="fp32")
        own.warm_up()
        expected = cpu(labels=labels, seeds=seeds).astype(int)
        made = [own(labels=labels, seeds=seeds)]
        with ThreadPoolExecutor(1) as other:  # ONNX Runtime captures anew in every thread
            begin = time.perf_counter()
            made.append(other.submit(own, labels=labels, seeds=seeds).result())
            other_thread_s = time.perf_counter() - begin
        made.append(own(labels=labels, seeds=seeds))
        alone = np.concatenate([own(labels=[label], seeds=[seed]) for label, seed in zip(labels, seeds, strict=True)])
        levels = max(np.abs(images - expected).max() for images in (*made, alone))
        work.add(
            plan=plan,
            backend=own.backend,
            graph=own.graph,
            why=own.reason,
            levels_off=int(levels),
            other_thread_s=other_thread_s,
            ok=own.backend == "cuda" and bool(levels <= LEVELS[own.precision]),
        )
    refuse_wrong(work)


def finite(work: Work) -> None:
    """Numbers that are not finite are seen, with their row, and made again in fp32 where that is asked for."""
    bundle = Bundle.load(SHIPPED)
    path = work.scratch / "overflowing.bundle"
    shutil.copytree(bundle.root, path)
    broken = overflowing(Bundle.load(path), "fp16")
    choices = {"plan": "sid2", "precision": "fp16", "backend": "cuda"}
    try:
        Generator(broken, **choices)(labels=[3], seeds=[0])
    except NotFiniteError as error:
        work.add(way="raise", ok=True, said=str(error))
    else:
        work.add(way="raise", ok=False, said="")
    rescuing = Generator(broken, **choices, on_nan="fp32")
    images = rescuing(labels=[3], seeds=[0])
    expected = Generator(bundle, plan="sid2", precision="fp32", backend="cpu")(labels=[3], seeds=[0])
    levels = int(np.abs(images.astype(int) - expected).max())
    work.add(way="fp32", ok=rescuing.rescued == 1 and levels <= 1, levels_off=levels)
    refuse_wrong(work)


def refuse_wrong(work: Work) -> None:
    """Raises ValueError where rows are not what they should be."""
    wrong = [row for row in work.found["rows"] if not row["ok"] and not row.get("skipped")]
    if wrong:
        words = ", ".join(str(wrong[0][key]) for key in ("bundle", "graph", "plan", "way") if key in wrong[0])
        raise ValueError(f"{len(wrong)} of {len(work.found['rows'])} comparisons failed, the first is {words}")
