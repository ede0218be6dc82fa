"""Other people's tools take every graph we write: Polygraphy runs them, TensorRT-RTX parses them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import PlanEntry
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.exporter.export import export_graphs
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import uniform
from fewstep.sampling.solvers import few_step

WHOLE = [
    f"two{layout}.{precision}" for layout in ("", ".loop") for precision in ("fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8")
]
STEP = [f"sid1.step.{precision}" for precision in ("fp32", "fp16", "bf16")]
NO_KERNEL = ("bf16", "fp8")  # ONNX Runtime has no kernels for them on a CPU
FOR_CPU = ("int8",)  # TensorRT takes no zero points


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A guided plan of two rows, one of them in the interval, in every layout and precision."""
    root = tmp_path_factory.mktemp("accepted") / "digits.bundle"
    shutil.copytree(ROOT / "examples" / "digits.bundle", root)
    with Bundle.load(root).edit() as draft:
        plan = few_step(uniform(2, 2.5), guidance=Guidance(1.5, 2.0))
        draft.manifest.plans["two"] = PlanEntry.of(plan, denoiser="sid1", solver="few steps")
    made = calibrate_ranges(Bundle.load(root), "two", ["int8", "int8-fp16", "fp8"], samples=4, min_psnr_db=0)
    made = export_graphs(made, ["two"], ["int8", "int8-fp16", "fp8"], layouts=["unrolled", "loop"], batched_guidance=True)
    return export_graphs(made, ["two"], ["fp32", "fp16", "bf16"], layouts=["unrolled", "loop", "step"], batched_guidance=True)


def _files(bundle: Bundle, name: str) -> list[Path]:
    graph = bundle.manifest.graphs[name]
    return [bundle.file(path) for path in (graph.file, graph.postprocess) if path]


def test_polygraphy_runs_them_in_onnx_runtime(bundle: Bundle) -> None:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import DataLoader

    names = [name for name in WHOLE + STEP if name.split(".")[-1] not in NO_KERNEL]
    for path in (path for name in names for path in _files(bundle, name)):
        with OnnxrtRunner(SessionFromOnnx(str(path))) as runner:
            (feeds,) = DataLoader(iterations=1, val_range=(0, 1), input_metadata=runner.get_input_metadata())
            outputs = runner.infer(feeds)
        assert {"images", "sample"} <= outputs.keys() or "denoised" in outputs


@pytest.mark.parametrize("name", ["two.fp32", "two.loop.int8", "sid1.step.fp16"])
def test_polygraphys_own_command_runs_it(name: str, bundle: Bundle) -> None:
    command = [str(Path(sys.executable).with_name("polygraphy")), "run", str(_files(bundle, name)[0])]
    done = subprocess.run([*command, "--onnxrt", "--val-range", "[0,1]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "PASSED" in done.stdout


def test_tensorrt_rtx_parses_them(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    names = [name for name in WHOLE + STEP if name.split(".")[-1] not in FOR_CPU]
    code = (
        "import sys; from polygraphy.backend.trt import NetworkFromOnnxPath\n"
        "for path in sys.argv[1:]:\n"
        "    builder, network, parser = NetworkFromOnnxPath(path)()\n"
        "    assert network.num_layers > 3 and parser.num_errors == 0, path\n"
        "    assert {network.get_output(i).name for i in range(network.num_outputs)} <= {'images', 'sample', 'denoised'}\n"
    )
    files = [str(path) for name in names for path in _files(bundle, name)]
    done = subprocess.run(
        [sys.executable, "-c", code, *files],
        env=os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
