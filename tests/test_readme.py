"""The README keeps its word: its code runs, tables and claims are those of the committed result files, it stays short."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from tables import PAGES, result, written

README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("sid1.")


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_the_result_files(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert "<!-- table: " in text
    assert written(text) == text, "run: python benchmarks/tables.py"


def test_one_graph_is_the_fastest_way() -> None:
    for name, row in result("latency")["plans"].items():
        measured = row["ways"]
        assert measured["baked"]["over_bare"] <= 1.03, name
        assert min(measured[way]["over_baked"] for way in ("eager torch", "torch.compile")) >= 1.3, name
        assert measured["Python loop over ONNX"]["over_baked"] > 1, name


def test_eight_bits_are_faster_and_as_good() -> None:
    for name, row in result("precision")["plans"].items():
        assert row["int8"]["frechet_over_fp32"] <= 1.1, name
        for batch in (1, 8):
            measured = row[f"latency, batch {batch}"]
            assert measured["int8"]["median_ms"] < measured["fp32"]["median_ms"], name


def test_export_needs_memory_for_one_copy_of_the_weights() -> None:
    found = result("export")["large"]
    assert found["weights_bytes"] > 2 << 30
    assert all(row["ok"] for row in found["parity"].values())
    for name, row in found["graphs"].items():
        assert row["peak_bytes"] - found["peak_bytes_of_imports"] < 1.5 * found["weights_bytes"], name


def test_the_server_keeps_what_serving_md_says() -> None:
    found = result("server")
    assert found["throughput"]["share_of_generator"]["8 images a request, 16 clients"]["median"] >= 0.8
    soak = found["soak"]
    assert soak["wrong"] == soak["stack_traces"] == found["kill"]["wrong"] == 0
    assert soak["accepted_ms"]["p99"] < soak["deadline_s"] * 1e3
    resident = soak["resident_bytes"]
    assert resident[-1] < 1.1 * resident[len(resident) // 10]


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_measured_claims_of_this_release_hold_in_the_result_file() -> None:
    samplers = result("digits")["samplers"]
    frechet = {name: row["frechet"]["mean"] for name, row in samplers.items()}
    assert frechet["sid1"] < frechet["dpmpp4"]
    assert samplers["sid1"]["accuracy"]["mean"] >= 0.88
    assert frechet["table4"] < frechet["dpmpp6"] < frechet["dpmpp4"]
    assert frechet["sid2"] < frechet["ddim10"]
