"""Writes the measured tables of README and docs from the result files: python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and the next `<!-- end -->`; tests check that pages hold what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from gpu import tables as gpu

from fewstep.cli.demo import SAMPLERS
from fewstep.models.mixed_precision import WORTH

__all__ = ["PAGES", "ROOT", "result", "written"]

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "docs/training.md", "docs/calibration.md", "docs/export.md", "docs/edge.md", "docs/serving.md"),
    "docs/verification.md",
)
BLOCK = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """A result file, by the name of its benchmark."""
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))
    return found


def written(page: str) -> str:
    """A page's text with its tables as the result files have them."""
    return BLOCK.sub(lambda block: "".join((*block.groups(), TABLES[block[1]](), "\n")), page)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    titles = list(head)
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |").replace("|  |", "| |")


def spread(row: dict[str, float], digits: int) -> str:
    return f"{row['mean']:.{digits}f} ± {row['std']:.{digits}f}"


def digits() -> str:
    found = result("digits")
    rows = []
    for name, title in SAMPLERS.items():
        row = found["samplers"][name]
        scores = spread(row["frechet"], 2), spread(row["accuracy"], 3)
        rows.append([title, str(row["nfe"]), *scores, f"{row['latency_ms']['median']:.1f}"])
    real = found["real_against_real"]
    rows.append(["real training images", "", spread(real["frechet"], 2), spread(real["accuracy"], 3), ""])
    return markdown(["sampler", "network calls", "Frechet distance", "class accuracy", "ms per image"], rows)


def calls_of(found: dict[str, Any]) -> list[int]:
    """The numbers of network calls at which a comparison of solvers is complete, by the last row of each."""
    return sorted({int(key.split(", ")[0]) for key in found["rows"] if re.match(LAST, key)})


LAST = r"[1-3], table, real|\d+, IIA-EDM"


def solvers(name: str) -> str:
    """Every sampler at every number of network calls."""
    found = result(name)
    columns = calls_of(found)
    titles = dict.fromkeys(re.sub(r"^\d+, |, \d+ calls$", "", key) for key in found["rows"] if not key.startswith("35, "))
    rows = []
    for title in titles:
        cells = []
        for calls in columns:
            row = found["rows"].get(f"{calls}, {title}") or found["rows"].get(f"{calls}, {title}, {calls + 1} calls")
            cells.append(distance(row["frechet"]) if row else "")
        rows.append([title, *cells])
    return markdown(["sampler", *(str(calls) for calls in columns)], rows)


def distance(row: dict[str, float | None]) -> str:
    """A distance with its spread, where more than one set of seeds was evaluated."""
    assert row["mean"] is not None
    return score(row, 0 if row["mean"] >= 100 else 2)


FAMILIES = {
    "best scheduler of diffusers": r"UniPC|DEIS|DPM-Solver|PNDM|DDIM$|Heun|iPNDM$|S-PNDM$",
    "best plan fitted step by step": r"B?IIA-",
    "table, pixels": r"table, pixels",
    "table, real": r"table, real",
}


def budgets(name: str) -> str:
    """The best of every family at every number of network calls."""
    found = result(name)
    rows = []
    for calls in calls_of(found):
        exact = {
            key.split(", ", 1)[1]: row["frechet"]
            for key, row in found["rows"].items()
            if key.startswith(f"{calls}, ") and not key.endswith(f", {calls + 1} calls")
        }
        cells = []
        for title, pattern in FAMILIES.items():
            family = [key for key in exact if re.match(pattern, key)]
            best = min(family, key=lambda key: exact[key]["mean"], default=None)
            words = best if best and not title.startswith("table") else ""
            cells.append(f"{distance(exact[best])} {words}".strip() if best else "")
        rows.append([str(calls), *cells])
    return markdown(["network calls", *FAMILIES], rows)


def interval() -> str:
    rows = []
    for name, row in result("interval-digits")["rows"].items():
        bounds = f"{row['lo']:.2f} to {row['hi']:.2f}" if "interval" in name else ""
        scores = [spread(row[key], digits) for key, digits in (("frechet", 2), ("recall", 3), ("accuracy", 3))]
        rows.append([name, bounds, str(row["nfe"]), *scores])
    return markdown(["guidance", "noise levels", "network calls", "Frechet distance", "recall", "class accuracy"], rows)


def transfer() -> str:
    rows = [
        [name, str(row["nfe"]), spread(row["frechet"], 2), spread(row["psnr_db"], 1)]
        for name, row in result("transfer")["rows"].items()
    ]
    return markdown(["table", "network calls", "Frechet distance", "PSNR, dB"], rows)


def brightness() -> str:
    found = result("brightness")
    shown = "dark", "bright", "contrast", "detail"
    rows = []
    for name, row in found["rows"].items():
        off = (spread(row[f"pixels.{statistic}"], 2) for statistic in shown)
        rows.append(
            [name, spread(row["frechet"], 1), *off, f"{100 * row['white']['mean']:.1f} ± {100 * row['white']['std']:.1f}"]
        )
    rows.append(["real images", "", *[""] * len(shown), f"{100 * found['real_white']:.1f}"])
    return markdown(
        ["sampler", "Frechet distance", *(f"{name}, off by" for name in shown), "% of pixels at 250 or above"], rows
    )


def fit_cost() -> str:
    found = result("fit_cost")
    rows = [
        [name, f"{row['seconds']:.1f}", f"{row['least']:.1f} to {row['most']:.1f}", str(row["calls"] or "")]
        for name, row in found["rows"].items()
    ]
    return markdown(["", "seconds, median", "over rounds", "network calls for an image"], rows)


def throughput() -> str:
    rows = []
    for size, ways in result("throughput")["rows"].items():
        speeds = (f"{ways[way]['median']:.0f}" for way in ("plain", "train", "train, 2 processes"))
        ratios = (
            f"{ways[key]['median']:.2f} ({ways[key]['least']:.2f} to {ways[key]['most']:.2f})"
            for key in ("train over plain", "2 processes over 1")
        )
        rows.append([size, *speeds, *ratios])
    head = ("network", "plain loop, images/s", "train", "train, 2 processes", "train over plain", "2 processes over 1")
    return markdown(head, rows)


def mixed_precision() -> str:
    rows = []
    for name, row in result("mixed_precision")["rows"].items():
        taken = "bf16" if row["block"] < WORTH else "fp32"
        rows.append([name, "yes" if row["says_bf16"] else "no", f"{row['block']:.1f}", f"{row['network']:.1f}", taken])
    return markdown(["instructions", "oneDNN says bf16", "the block in bf16", "the network of digits in bf16", "taken"], rows)


def scaling() -> str:
    """Large networks: what training and distilling them takes, by count."""
    rows = []
    for name, row in result("scaling")["large"].items():
        cells = [f"{row['weights'] / 1e6:,.0f}", f"{row['flops'] / 1e12:.2f}", f"{row['kept'] / 1e9:.1f}"]
        for run in ("train", "distill"):
            need = row[run]
            cells += [f"{need['weights_bytes'] / 1e9:.0f}", f"{need['flops'] * 1e6 / ASSUMED_RATE / 3600:.1f}"]
        rows.append([name, *cells])
    head = ["network", "weights, M", "forward, TFLOP an image", "activations, GB an image"]
    return markdown([*head, "train: weights, GB", "hours a million images", "SiD: weights, GB", "hours a million images"], rows)


ASSUMED_RATE = 4e14  # operations a second of one GPU


def sid() -> str:
    """Generators over training time, beside what the teacher makes."""
    return training_curves((1, 2, 4, 8), short=False)


def sid_choices() -> str:
    """Guidance modes and alphas in short runs."""
    return training_curves((1, 2), short=True)


def training_curves(shown: tuple[int, ...], *, short: bool) -> str:
    """Distances at these looks, and the scores of the weights that were kept."""
    found = result("sid")
    rows = []
    for name, row in found["rows"].items():
        if name.startswith("short, ") == short:
            curves = [run["curve"] for run in found["scores"][name].values() if "curve" in run]
            along = (f"{mean(curve[at - 1]['frechet'] for curve in curves):.2f}" if curves else "" for at in shown)
            scores = (score(row[key], digits) for key, digits in (("frechet", 2), ("accuracy", 3), ("recall", 3)))
            rows.append([name.removeprefix("short, ").replace("1 steps", "1 step"), *along, *scores])
    rows.sort(key=lambda cells: cells[1] != "")  # what nothing is trained for first
    points = [f"after {at * found['every']}" for at in shown]
    return markdown(["", *points, "weights kept", "class accuracy", "recall"], rows)


LSKIP = {"ddim5": "DDIM, 5 steps", "ddim10": "DDIM, 10", "ddim20": "DDIM, 20", "iia10": "IIA-DDIM, 10"}


def lskip() -> str:
    """Distances, and how they change against the plain loss, seed by seed."""
    found = result("lskip")
    rows = []
    for name, row in found["rows"].items():
        cells = [score(row[key], int(row[key]["mean"] < 1000)) if key in row else "" for key in LSKIP]
        for i, key in enumerate(LSKIP):
            if not name.endswith("plain") and key in row:
                plain = found["scores"][re.sub("(skip|plain).*", "plain", name)]
                changes = [run[key] / plain[seed][key] * 100 - 100 for seed, run in found["scores"][name].items()]
                percent = f"{round(mean(changes)):+d} ± {stdev(changes):.0f} %"
                cells[i] += f" ({percent if mean(changes) < 1000 else f'{mean(changes) / 100 + 1:.0f} x'})"
        rows.append([name, *cells])
    return markdown(["loss", *LSKIP.values()], rows)


def curriculum() -> str:
    """How soon a run comes to where uniform sampling ends, and where it ends itself."""
    found = result("curriculum")
    rows = [
        [name, score(row["frechet"], 2), ", ".join(str(at or "never") for at in found["reached"][name])]
        for name, row in found["rows"].items()
    ]
    return markdown(["", "Frechet distance at the end", "updates to the aim, by run"], rows)


def score(row: dict[str, float | None], digits: int) -> str:
    """A mean with its spread, where there is one."""
    return f"{row['mean']:.{digits}f}" + (f" ± {row['std']:.{digits}f}" if row["std"] is not None else "")


def latency() -> str:
    ways = ("torch.compile", "diffusers scheduler", "Python loop over ONNX")
    rows = []
    for name, row in result("latency")["plans"].items():
        measured, baked = row["ways"], row["ways"]["baked"]
        slower = (f"{measured[way]['over_baked']:.2f} x" if way in measured else "" for way in ways)
        nodes = f"{row['nodes']['baked']} of {row['nodes']['evaluations x bare']}"
        rows.append([name, str(row["evaluations"]), nodes, f"{baked['median_ms']:.2f}", f"{baked['over_bare']:.2f}", *slower])
    head = ["plan", "evaluations", "nodes left", "one graph, ms", "over bare evaluations", *ways]
    return markdown(head, [*rows, *gpu.short(len(head))])


def precision() -> str:
    rows = []
    for plan, row in result("precision")["plans"].items():
        for name in ("fp32", "int8", "int8, shared ranges"):
            scores = row[name]
            psnr = f"{scores['psnr_db']:.1f}" if "psnr_db" in scores else ""
            times = []
            for batch in ("latency, batch 1", "latency, batch 8"):
                ms = {way: measured["median_ms"] for way, measured in row[batch].items()}
                times.append(f"{ms[name]:.1f}" + (f" ({ms['fp32'] / ms[name]:.2f} x)" if name != "fp32" else ""))
            excluded = str(len(row["excluded"])) if name != "fp32" else ""
            rows.append(
                [f"{plan}, {name}", excluded, psnr, spread(scores["frechet"], 2), spread(scores["accuracy"], 3), *times]
            )
    head = ("plan", "excluded layers", "PSNR, dB", "Frechet distance", "class accuracy", "ms, batch 1", "ms, batch 8")
    return markdown(head, rows)


def int8() -> str:
    found, rows = result("int8"), []
    for processor, ways in found["processors"].items():
        for way, row in ways.items():
            where = found["machine"]["cpu"] if processor == "this one" else processor
            scores = [f"{row[key]:.1f}" if key in row else "" for key in ("psnr_db", "openvino_psnr_db")]
            times = [f"{row[f'batch {batch}']['median_ms']:.1f}" for batch in (1, 8)]
            rows.append([f"{where}: {way if way == 'fp32' else f'int8, weights in {way}'}", *scores, *times])
    return markdown(("processor", "PSNR, dB", "in OpenVINO, dB", "ms, batch 1", "ms, batch 8"), rows)


def export() -> str:
    rows = []
    for name, row in result("export")["digits teacher"].items():
        engine = row["engine fp16 SM89"]
        fp32 = row["fp32"]
        sizes = [f"{row[p]['bytes'] / 1e6:.2f}" for p in ("fp32", "fp16")] + [f"{engine['bytes'] / 1e6:.1f}"]
        seconds = (f"{s:.1f}" for s in (fp32["export_seconds"], fp32["load_seconds"], engine["build_seconds"]))
        rows.append([name.replace("1 steps,", "1 step,"), str(fp32["nodes"]), *sizes, *seconds])
    return markdown(("graph", "nodes", "fp32, MB", "fp16, MB", "engine, MB", "export, s", "load, s", "engine build, s"), rows)


def large() -> str:
    found = result("export")["large"]
    weights = found["weights_bytes"]
    rows = [
        [name, f"{sum(row['files'].values()) / 1e9:.2f}", f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 1e9:.2f}",
         f"{(row['peak_bytes'] - found['peak_bytes_of_imports']) / weights:.2f} x"]
        for name, row in found["graphs"].items()
    ]  # fmt: skip
    return markdown(("graph", "written, GB", "seconds", "peak memory, GB", "less imports, over the weights"), rows)


def edge() -> str:
    found = result("edge")
    titles = {
        "onnx": "ONNX, ONNX Runtime",
        "ort": ".ort, ONNX Runtime",
        "openvino f32": "OpenVINO, f32",
        "openvino default": "OpenVINO, its default (bf16 here)",
    }
    measured = [(title, found["cpu"]["sid1"][name]) for name, title in titles.items()]
    rows = []
    for title, row in (*measured, ("browser, Chromium, WebAssembly", found["browser"]["sid1"])):
        error = f"{row['max_error']:.1e}".replace("0.0e+00", "0") if "max_error" in row else "not visible"
        rows.append(
            [title, error, str(row["max_levels"]), f"{row['pixels_that_differ'] * 100:.2g} %", f"{row['latency_ms']:.1f}"]
        )
    return markdown(
        ("target", "largest error of the sample", "largest difference, of 255", "pixels that differ", "ms per image"), rows
    )


def sizes() -> str:
    parts = result("edge")["sizes"]["parts"]

    def total(target: str, *begins: str, key: str = "bytes") -> str:
        found = [p[key] or 0 for p in parts if p["target"] == target and p["part"].startswith(begins)]
        return f"{sum(found) / 1e6:.2f}" if any(found) else ""

    rows = []
    for target, title, runtime in (
        ("ort", "ort", ("onnxruntime",)),
        ("web", "web", ("onnxruntime-web",)),
        ("web", "web, gzipped", ("onnxruntime-web",)),
        ("openvino", "openvino", ("openvino",)),
        ("device", "device, with ONNX Runtime", ("onnxruntime",)),
        ("device", "device, with TensorRT-RTX", ("tensorrt", "polygraphy")),
    ):
        key = "gzip_bytes" if "gzipped" in title else "bytes"
        graphs = (total(target, f"sid1.{p}", key=key) for p in ("fp32", "fp16"))
        rows.append([title, *graphs, total(target, *runtime, key=key)])
    return markdown(("target", "graph and weights, fp32, MB", "fp16, MB", "to install or download beside it, MB"), rows)


def generator() -> str:
    rows = []
    for name, row in result("generator")["overhead"].items():
        milliseconds = (
            f"{row[key]['median']:.2f}" for key in ("bare_p50_ms", "generator_p50_ms", "bare_p99_ms", "generator_p99_ms")
        )
        over, beyond = (f"{row[key]['median']:.0f} ± {row[key]['std']:.0f}" for key in OVERHEAD)
        share = row["overhead_us"]["median"] / row["bare_p50_ms"]["median"] / 1e3
        rows.append([name, *milliseconds, over, f"{share * 100:.1f} %", beyond])
    head = ("plan", "bare p50, ms", "Generator p50", "bare p99", "Generator p99", "overhead, µs", "of p50", "without noise, µs")
    return markdown(head, rows)


def others() -> str:
    rows = []
    for plan, ways in result("generator")["others"].items():
        slower = (f"{ways[way]['over_generator']:.2f} x" if way in ways else "" for way in OTHERS)
        rows.append([f"{plan}, batch 1", f"{ways['Generator']['median_ms']:.2f}", *slower])
    return markdown(("plan", "Generator, ms", *OTHERS), rows)


def server() -> str:
    found = result("server")["throughput"]
    rates = found["images_per_second"]
    rows = [["bare Generator in a loop, batch 32", f"{median(rates['Generator']):.0f}", "", ""]]
    for case, share in found["share_of_generator"].items():
        least, most = min(share["rounds"]), max(share["rounds"])
        rows.append(
            [case, f"{median(rates[case]):.0f}", f"{share['median'] * 100:.0f} %", f"{least * 100:.0f} to {most * 100:.0f} %"]
        )
    return markdown(("load", "images/s", "of the Generator", "over rounds"), rows)


def soak() -> str:
    found = result("server")["soak"]
    answers, milliseconds = found["answers"], found["accepted_ms"]
    sent = sum(count for status, count in answers.items() if ":" not in status)
    resident = [size / 1e6 for size in found["resident_bytes"]]
    early = median(resident[len(resident) // 10 : len(resident) // 5])
    rows = [
        ["requests of 8 images", f"{sent:,} in {found['seconds'] / 60:.0f} min, twice the capacity"],
        ["answered 200, all equal to the Generator's bytes", f"{answers['200']:,}, {found['wrong']} wrong"],
        ["refused at once with 503", f"{answers.get('503', 0):,}"],
        ["too late, 504", f"{answers.get('504', 0):,}"],
        ["other answers, broken connections", f"{sent - sum(answers.get(s, 0) for s in ('200', '503', '504')):,}"],
        [
            "accepted: p50, p99, longest, ms (deadline 2,000)",
            ", ".join(f"{milliseconds[q]:,.0f}" for q in ("p50", "p99", "p100")),
        ],
        ["memory after a minute, at the end, MB", f"{early:.0f}, {median(resident[-10:]):.0f}"],
        ["stack traces seen by clients", str(found["stack_traces"])],
    ]
    return markdown(("ten minutes beside slow, broken and oversized requests", ""), rows)


def attacks() -> str:
    rows = []
    for name, found in result("attacks")["attacks"].items():
        memory = (f"{found[key] / 1e6:.0f}" for key in ("before", "most", "after"))
        rows.append([name, *memory, f"{found['slowest_probe_s'] * 1e3:.0f}"])
    return markdown(("attack", "MB before", "at most", "after", "slowest probe, ms"), rows)


def _of_gpu(table: Callable[[], gpu.Table]) -> str:
    return markdown(*table())


OVERHEAD = ("overhead_us", "overhead_over_seeded_us")
OTHERS = ("eager torch", "torch.compile", "diffusers scheduler", "Python loop over ONNX")
PLAIN = (
    brightness,
    digits,
    latency,
    precision,
    int8,
    export,
    large,
    edge,
    sizes,
    generator,
    others,
    server,
    soak,
    attacks,
    interval,
    transfer,
    fit_cost,
    throughput,
    scaling,
    sid,
    sid_choices,
    lskip,
    curriculum,
)
TABLES: dict[str, Callable[[], str]] = {
    "mixed_precision": mixed_precision,
    **{table.__name__: table for table in PLAIN},
    "solvers_digits": partial(solvers, "solvers-digits"),
    "budgets_digits": partial(budgets, "solvers-digits"),
    "solvers_cifar10": partial(solvers, "solvers-cifar10"),
    "budgets_cifar10": partial(budgets, "solvers-cifar10"),
    "gpu_machine": gpu.machine,
    **{f"gpu_{table.__name__}": partial(_of_gpu, table) for table in (gpu.checked, gpu.latencies, gpu.learnt, gpu.taught)},
}

if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(written(path.read_text("utf-8")), "utf-8")
