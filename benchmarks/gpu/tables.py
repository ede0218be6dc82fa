"""Tables of what run.py found, for benchmarks/tables.py: its rows, or "not run yet" where there are no result files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["NOT_RUN", "Table", "checked", "latencies", "learnt", "machine", "short", "taught"]

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
NOT_RUN = "not run yet"
EAGER = "eager torch"
# Columns of other ways: how many times as long as one graph they take.
OTHERS = {
    EAGER: "eager torch",
    "torch.compile, reduce-overhead": "torch.compile, reduce-overhead",
    "torch.compile, max-autotune": "torch.compile, max-autotune",
    "torch, CUDA graph": "torch, CUDA graph",
    "diffusers' scheduler": "diffusers' scheduler",
    "step graph, Python loop": "ONNX Runtime, Python loop",
    "one graph, a Loop": "one graph, a Loop",
    "one graph, plain launches": "no CUDA graph",
}
NAMES = {"sd15": "U-Net of SD 1.5's size, 4 calls", "sdxl_size": "U-Net of SDXL's size, 1 call"}
README_ROWS = (("sid1", 1), ("ddim10_w2_interval", 1), ("sd15", 1))  # of one graph in fp16


class Table(NamedTuple):
    """Titles, and cells as text."""

    head: tuple[str, ...]
    rows: list[list[str]]


def found(part: str) -> dict[str, Any] | None:
    """A part's result file, where there is one with rows."""
    path = RESULTS / f"{part}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content if any(task["rows"] for task in content["tasks"].values()) else None


def rows_of(part: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of a part, each with its task's name."""
    content = found(part) or {"tasks": {}}
    return [(name, row) for name, task in content["tasks"].items() for row in task["rows"]]


def machine() -> str:
    """What the figures were measured on, in a line."""
    parts = [content for part in ("correctness", "latency", "training", "teacher") if (content := found(part))]
    lines = []
    for content in parts:
        of = content["machine"]
        versions = of.get("versions", {})
        memory = f", {of['gpu_memory_bytes'] / 1e9:.0f} GB" if of.get("gpu_memory_bytes") else ""
        lines.append(
            f"{of.get('gpu') or 'no GPU'}{memory}, driver {of.get('driver')}, CUDA {of.get('cuda')}, cuDNN {of.get('cudnn')}, "
            f"ONNX Runtime {of.get('onnxruntime')}, torch {versions.get('torch')}, {of.get('date')}"
        )
    return "\n".join(dict.fromkeys(lines)) or NOT_RUN


def checked() -> Table:
    """By precision: comparisons with torch on the CPU."""
    head = ("graphs", "comparisons", "wrong", "not computed", "largest error", "smallest PSNR, dB", "with TF32, largest error")
    by: dict[str, list[dict[str, Any]]] = {}
    for _, row in rows_of("correctness"):
        if "graph" in row and "precision" in row:
            by.setdefault(row["precision"], []).append(row)
    rows = []
    for precision, all_rows in by.items():
        tf32 = [row["max_error"] for row in all_rows if row["way"] == "TF32" and "max_error" in row]
        own = [row for row in all_rows if row["way"] != "TF32"]
        done = [row for row in own if not row.get("skipped")]
        wrong, skipped = sum(not row["ok"] for row in done), len(own) - len(done)
        ran = [row for row in done if "max_error" in row]  # others are wrong, and have no numbers
        error = f"{max(row['max_error'] for row in ran):.2g}" if ran else ""
        psnr = f"{min(row['psnr_db'] for row in ran):.1f}" if ran else ""
        rows.append([precision, str(len(done)), str(wrong), str(skipped), error, psnr, f"{max(tf32):.2g}" if tf32 else ""])
    return Table(head, rows or [[NOT_RUN, *[""] * (len(head) - 1)]])


def _cases() -> dict[tuple[str, str, int], dict[str, dict[str, Any]]]:
    """Rows of latencies by (plan, precision, batch) and way. Where a compiled run is another one, it is held against its own
    eager torch."""
    cases: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    eager = float("nan")
    for task, row in rows_of("latency"):
        if "p50_ms" not in row:
            continue
        kind = task.partition(".")[2]
        case = cases.setdefault((kind or row["plan"], row["precision"], row["batch"]), {})
        if not task.startswith("compiled"):
            case[row["way"]] = row
        elif row["way"] in OTHERS and row["way"] != EAGER:
            case[row["way"]] = row | {"over_eager": row["p50_ms"] / eager}
        eager = row["p50_ms"] if row["way"] == EAGER else eager
    return cases


def _others(case: dict[str, dict[str, Any]]) -> dict[str, str]:
    """How many times as long as one graph every other way takes."""
    one = case["one graph"]["p50_ms"]
    found = {way: case[way]["p50_ms"] / one for way in OTHERS if way in case}
    if EAGER in case:
        found |= {way: row["over_eager"] * found[EAGER] for way, row in case.items() if "over_eager" in row}
    return {way: f"{times:.2f} x" for way, times in found.items()}


def latencies() -> Table:
    """One graph, and every other way over it."""
    head = ("plan", "evaluations", "one graph, ms", "p99", "images/s", "Generator adds, µs", *OTHERS.values())
    rows = []
    for (name, precision, batch), case in _cases().items():
        if "one graph" not in case:
            continue
        one, others = case["one graph"], _others(case)
        adds = f"{(case['Generator']['p50_ms'] - one['p50_ms']) * 1e3:.0f}" if "Generator" in case else ""
        numbers = [f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{one['images_per_second']:.0f}", adds]
        title = f"{NAMES.get(name, name)}, {precision}, batch {batch}"
        rows.append([title, str(one["evaluations"]), *numbers, *(others.get(way, "") for way in OTHERS)])
    return Table(head, rows or [[NOT_RUN, *[""] * (len(head) - 1)]])


def short(columns: int) -> list[list[str]]:
    """Rows for the README's table of latencies: plan, evaluations, nodes, ms, over bare, compiled, diffusers, Python loop."""
    content, rows = found("latency"), []
    for (name, precision, batch), case in _cases().items():
        if (name, batch) not in README_ROWS or precision != "fp16" or "one graph" not in case or content is None:
            continue
        others = _others(case)
        ways = ("torch.compile, reduce-overhead", "diffusers' scheduler", "step graph, Python loop")
        title = f"{NAMES.get(name, name)}, batch {batch}, fp16 on {content['machine'].get('gpu') or 'no GPU'}"
        one = case["one graph"]
        rows.append([title, str(one["evaluations"]), "", f"{one['p50_ms']:.2f}", "", *(others.get(way, "") for way in ways)])
    return rows or [["on a GPU", NOT_RUN, *[""] * (columns - 2)]]


def learnt() -> Table:
    """Updates a second, and how far weights end from the CPU's."""
    head = ("run", "precision", "updates/s", "images/s", "50 updates, from the CPU's")
    rows_found = [row for _, row in rows_of("training")]
    apart = {(row["run"], row["precision"]): row["apart"] for row in rows_found if "apart" in row}
    rows = []
    for row in rows_found:
        if "updates_per_second" not in row:
            continue
        first = row["size"] == "digits" and row["device"] == "cuda" and not row["compiled"]
        far = apart.get((row["run"], row["precision"])) if first else None
        title = f"{row['run']}, {row['size']}, {row['device']}{', compiled' * row['compiled']}"
        rates = f"{row['updates_per_second']:.1f}", f"{row['images_per_second']:.0f}"
        rows.append([title, row["precision"], *rates, "" if far is None else f"{far:.2g}"])
    return Table(head, rows or [[NOT_RUN, *[""] * (len(head) - 1)]])


def taught() -> Table:
    """The color teacher, run by run."""
    head = ("run", "updates", "images seen", "minutes", "Frechet distance", "precision", "recall")
    content = found("teacher")
    rows = []
    for run in content["tasks"]["teach"].get("runs", []) if content else []:
        scores = run.get("scores", {})
        evaluated = [
            f"{scores[key]:.{digits}f}" if key in scores else ""
            for key, digits in (("frechet", 1), ("precision", 3), ("recall", 3))
        ]
        title = f"{run['date']}, {run['gpu'] or 'no GPU'}, {run['precision']}"
        rows.append([title, f"{run['updates']:,}", f"{run['images_seen']:,}", f"{run['seconds'] / 60:.1f}", *evaluated])
    return Table(head, rows or [[NOT_RUN, *[""] * (len(head) - 1)]])
