"""The README keeps its word: its code runs, its table is the committed result file, it stays short."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from fewstep.demo import SAMPLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
LATENCY = json.loads((ROOT / "benchmarks/results/latency.json").read_text("utf-8"))
RESULT = json.loads((ROOT / "benchmarks/results/digits.json").read_text("utf-8"))


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("sid1.")


def table() -> str:
    """The README's table, from the result file."""
    lines = ["| sampler | network calls | Frechet distance | class accuracy | ms per image |", "|---|--:|--:|--:|--:|"]
    for name, title in SAMPLERS.items():
        row = RESULT["samplers"][name]
        frechet, accuracy = (f"{row[k]['mean']:.{d}f} ± {row[k]['std']:.{d}f}" for k, d in (("frechet", 2), ("accuracy", 3)))
        lines.append(f"| {title} | {row['nfe']} | {frechet} | {accuracy} | {row['latency_ms']['mean']:.1f} |")
    real = RESULT["real_against_real"]
    frechet, accuracy = (f"{real[k]['mean']:.{d}f} ± {real[k]['std']:.{d}f}" for k, d in (("frechet", 2), ("accuracy", 3)))
    return "\n".join([*lines, f"| real training images | | {frechet} | {accuracy} | |"])


def test_the_table_is_the_result_file() -> None:
    assert table() in README


def latency_table() -> str:
    """The README's second table: a plan in one graph against other ways to run it."""
    ways = ("torch.compile", "diffusers scheduler", "Python loop over ONNX")
    lines = [
        "| plan | evaluations | one graph, ms | over bare evaluations | " + " | ".join(ways) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(ways),
    ]
    for name, row in LATENCY["plans"].items():
        measured, baked = row["ways"], row["ways"]["baked"]
        cells = [f"{measured[way]['over_baked']:.2f} x" if way in measured else "" for way in ways]
        lines.append(
            f"| {name} | {row['evaluations']} | {baked['median_ms']:.2f} | {baked['over_bare']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def test_the_second_table_is_its_result_file_and_one_graph_is_the_fastest_way() -> None:
    assert latency_table() in README
    for name, row in LATENCY["plans"].items():
        measured = row["ways"]
        assert measured["baked"]["over_bare"] <= 1.03, name
        assert min(measured[way]["over_baked"] for way in ("eager torch", "torch.compile")) >= 1.3, name
        assert measured["Python loop over ONNX"]["over_baked"] > 1, name


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_measured_claims_of_this_release_hold_in_the_result_file() -> None:
    frechet = {name: row["frechet"]["mean"] for name, row in RESULT["samplers"].items()}
    assert frechet["sid1"] < frechet["ddim4"] / 4
    assert RESULT["samplers"]["sid1"]["accuracy"]["mean"] >= 0.88
    assert frechet["iia4"] < frechet["ddim4"]
    assert frechet["iia6"] < frechet["ddim6"]
    assert frechet["sid2"] < frechet["ddim10"]
