"""What a device gets: a bundle that builds and proves its engine in a process that cannot import torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewstep.artifact.bundle import Bundle
from fewstep.exporter.edge.package import package
from fewstep.runtime import Generator

EXAMPLE = Bundle.load(Path(__file__).parent.parent / "examples" / "digits.bundle")
ABSENT = ["torch", "diffusers", "safetensors", "onnx_ir", "onnxscript", "accelerate", "datasets", "torchmetrics"]


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("device") / "out"
    package(EXAMPLE, out, ["device"], plans=["sid1"])
    return Bundle.load(out / "device" / "digits.bundle")


def test_it_holds_the_chosen_plan_and_no_networks_weights(trimmed: Bundle, tmp_path: Path) -> None:
    trimmed.verify()
    manifest = trimmed.manifest
    assert sorted(manifest.graphs) == ["sid1.fp16", "sid1.fp32", "sid1.int8", "sid1.int8-fp16"]
    assert list(manifest.plans) == ["sid1"]
    assert manifest.components["sid1"].directory is None
    assert set(manifest.components) == set(manifest.records.components) == {"sid1"}
    assert manifest.records.plans == {}
    assert (manifest.default, manifest.signature) == ("sid1", EXAMPLE.manifest.signature)
    with np.load(trimmed.file("golden.npz")) as golden:
        assert {key.split("/")[0] for key in golden.files} == {"sid1"}
    package(EXAMPLE, tmp_path / "one", ["device"], plans=["sid2"], precisions=["fp16"])
    one = Bundle.load(tmp_path / "one" / "device" / "digits.bundle").manifest
    assert (list(one.graphs), one.default) == (["sid2.fp16"], "sid2")


def test_its_images_are_those_of_the_whole_bundle(trimmed: Bundle) -> None:
    expected = Generator.open(EXAMPLE.root, backend="cpu")(labels=[3, 1, 4], seeds=[0, 1, 2])
    np.testing.assert_array_equal(Generator.open(trimmed.root, backend="cpu")(labels=[3, 1, 4], seeds=[0, 1, 2]), expected)


def test_it_builds_and_checks_without_torch(trimmed: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    root = shutil.copytree(trimmed.root, tmp_path / "digits.bundle")
    for verb in (["build"], ["check"], ["generate", "--labels", "3"]):
        done = without_torch(verb[0], root, *verb[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    bundle = Bundle.load(root)
    bundle.verify()
    assert {e.graph for e in bundle.manifest.engines.values()} == set(bundle.manifest.graphs) - {
        "sid1.int8"
    }  # which is for CPUs
    assert (tmp_path / "grid.png").is_file()


def test_check_fails_there_when_a_graph_is_off(trimmed: Bundle, tmp_path: Path) -> None:
    root = shutil.copytree(trimmed.root, tmp_path / "digits.bundle")
    manifest = (root / "bundle.json").read_text()
    (root / "bundle.json").write_text(manifest.replace('"limit": 0.03', '"limit": 1e-12'))
    assert without_torch("check", root, cwd=tmp_path).returncode == 1


def without_torch(verb: str, bundle: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a fresh process where importing torch and what comes with it fails."""
    code = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\nfrom fewstep.cli import main\nmain()"
    command = [sys.executable, "-c", code, verb, str(bundle), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
