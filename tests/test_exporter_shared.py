"""Weights of a component lie once beside its graphs: a second plan writes kilobytes, and nothing stays that no graph reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import fewstep
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.bundle"


@pytest.fixture
def digits(tmp_path: Path) -> Bundle:
    return Bundle.load(shutil.copytree(EXAMPLE, tmp_path / "digits.bundle"))


def data(bundle: Bundle) -> dict[str, int]:
    return {path: file.bytes for path, file in bundle.manifest.files.items() if path.endswith(".data")}


def test_a_second_plan_writes_no_weights_again(digits: Bundle) -> None:
    inline = export_graphs(digits, ["table4"], ["fp32"], max_inline_bytes=1 << 30)
    expected = fewstep.Generator(inline, plan="table4")(seeds=[0, 1], labels=[3, 4])
    first = export_graphs(digits, ["table4"], ["fp32"], max_inline_bytes=0)
    ((path, size),) = data(first).items()
    assert path.startswith("graphs/teacher.fp32.")
    assert size > 2e6
    both = export_graphs(first, ["heun18", "dpmpp4"], ["fp32"], max_inline_bytes=0)
    assert data(both) == {path: size}
    graphs = {name: both.manifest.graphs[name] for name in ("table4.fp32", "heun18.loop.fp32", "dpmpp4.fp32")}
    assert all(graph.data == [path] for graph in graphs.values())
    assert all(both.manifest.files[graph.file].bytes < 0.1 * size for graph in graphs.values())
    for graph in graphs.values():
        check_files(both, graph)
    assert all(parity.ok for parity in check_graphs(both))
    np.testing.assert_array_equal(fewstep.Generator(both, plan="table4")(seeds=[0, 1], labels=[3, 4]), expected)
    both.verify()


def test_precisions_have_files_of_their_own_and_layers_left_out_stay_in_the_graph(digits: Bundle) -> None:
    bundle = calibrate_ranges(digits, "table4", ["int8"], samples=4, min_psnr_db=30)
    bundle = calibrate_ranges(bundle, "dpmpp4", ["int8"], samples=4, min_psnr_db=60)
    excluded = [bundle.ranges(plan).excluded["int8"] for plan in ("table4", "dpmpp4")]  # type: ignore[union-attr]
    assert excluded[0] != excluded[1]
    bundle = export_graphs(bundle, ["table4", "dpmpp4"], ["fp16", "int8"], max_inline_bytes=0)
    assert sorted(path.split(".")[1] for path in data(bundle)) == ["fp16", "int8"]
    assert all(parity.ok for parity in check_graphs(bundle))


def test_weights_go_with_the_last_graph_that_reads_them(digits: Bundle) -> None:
    bundle = export_graphs(digits, ["table4", "dpmpp4"], ["fp32"], max_inline_bytes=0)
    with bundle.edit() as draft:
        draft.drop_graph("table4.fp32")
    assert len(data(Bundle.load(bundle.root))) == 1
    with Bundle.load(bundle.root).edit() as draft:
        draft.drop_graph("dpmpp4.fp32")
    assert not data(Bundle.load(bundle.root))
    assert not list(bundle.root.glob("graphs/*.data"))


def test_small_weights_stay_in_the_graph(digits: Bundle) -> None:
    bundle = export_graphs(digits, ["dpmpp4"], ["fp32"])
    assert not data(bundle)
    assert bundle.manifest.graphs["dpmpp4.fp32"].data == []


def test_other_weights_get_another_file(digits: Bundle, tmp_path: Path) -> None:
    """A network that was trained further is another component: graphs of the old one are stale, with their weights."""
    from fewstep.models.denoiser import load_network, save_network

    bundle = export_graphs(digits, ["dpmpp4"], ["fp32"], max_inline_bytes=0)
    before = data(bundle)
    network = load_network(bundle, "teacher")
    next(network.parameters()).data += 1
    with bundle.edit() as draft:
        save_network(draft, "teacher", network)
    changed = Bundle.load(bundle.root)
    assert not data(changed)
    again = export_graphs(changed, ["dpmpp4"], ["fp32"], max_inline_bytes=0)
    assert len(data(again)) == 1
    assert data(again).keys() != before.keys()
