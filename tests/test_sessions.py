"""Opening a graph that somebody else wrote: it ends, for whoever waits and for whoever serves others meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto as Type
from onnx import helper

from fewstep.artifact.bundle import Bundle
from fewstep.backends.sessions import open_session
from fewstep.runtime.server.repository import Options, Repository
from fewstep.runtime.trial import try_out


def endless() -> bytes:
    """A file of a few kB whose constants take hours to compute, and ONNX Runtime does that while it opens it."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["c0"], value=helper.make_tensor("v", Type.FLOAT, [1], [0.01]))]
    nodes += [helper.make_node("MatMul", [f"c{k}"] * 2, [f"c{k + 1}"]) for k in range(2000)]
    nodes += [helper.make_node("ReduceSum", ["c2000"], ["sum"], keepdims=0), helper.make_node("Add", ["x", "sum"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, Type.FLOAT, [1]) for name in "xy")
    shape = helper.make_tensor("shape", Type.INT64, [2], [4000, 4000])
    graph = helper.make_graph(nodes, "endless", [x], [y], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def with_endless_graph(bundle: Bundle) -> Bundle:
    with bundle.edit() as draft:
        draft.new(bundle.manifest.graphs["sid1.fp32"].file).write_bytes(endless())
    return Bundle.load(bundle.root)


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


OPEN = """
from pathlib import Path
from fewstep.backends.sessions import open_session
print("here", flush=True)
open_session(Path({!r}), "it")
"""


def test_a_graph_that_does_not_open_in_time_is_refused_and_the_process_ends(digits: Bundle) -> None:
    broken = with_endless_graph(digits)
    command = [sys.executable, "-m", "fewstep.cli", "generate", str(broken.root), "--backend", "cpu"]
    environment = os.environ | {"FEWSTEP_LOAD_LIMIT_S": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=broken.root.parent)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "has not opened the graph 'sid1.fp32' in 1 s; if you trust it, set FEWSTEP_LOAD_LIMIT_S to more" in said


def test_opening_can_be_interrupted(tmp_path: Path) -> None:
    (tmp_path / "endless.onnx").write_bytes(endless())
    process = start(OPEN.format(str(tmp_path / "endless.onnx")))
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(3)  # into ONNX Runtime
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert process.returncode in (1, -signal.SIGINT)


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_LOAD_LIMIT_S", limit)
    with pytest.raises(ValueError, match=f"FEWSTEP_LOAD_LIMIT_S is a number of seconds above 0, got '{limit}'"):
        open_session(tmp_path / "none.onnx", "none")


def test_a_server_goes_on_with_what_it_has_where_the_next_version_never_opens(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is a process: when it has ended, nothing of it goes on in the server's."""
    repository = Repository([("digits", digits.root)], Options(plans=("sid1",), backend="cpu", max_batch=2))
    repository.load("digits")
    assert repository.load("digits").number == 2
    with_endless_graph(digits)
    monkeypatch.setenv("FEWSTEP_LOAD_LIMIT_S", "5")
    with pytest.raises(ValueError, match=r"digits.bundle was not open and run in 5 s; if you trust it, set FEWSTEP_LOAD"):
        repository.load("digits")
    used = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - used < 0.25
    assert repository.models["digits"].current == 2
    assert repository.models["digits"].version().batcher("sid1").submit(labels=[3], seeds=[0]).result().any()
    repository.close()


def test_what_a_trial_finds_is_said(digits: Bundle) -> None:
    try_out(digits.root, ["sid1", "sid2"], {"backend": "cpu", "buckets": [1]})
    with pytest.raises(ValueError, match=r"no graph of the plan 'table4'"):
        try_out(digits.root, ["table4"], {"backend": "cpu", "buckets": [1]})
    name = digits.manifest.graphs["sid1.fp32"].file
    model = onnx.load(digits.file(name))
    model.graph.node[0].op_type = "NoSuchOperator"
    with digits.edit() as draft:
        draft.new(name).write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"cannot run 'sid1' here: .*NoSuchOperator"):
        try_out(digits.root, ["sid1"], {"backend": "cpu", "buckets": [1]})


FORK = """
import os, sys
from fewstep.runtime import Generator
generator = Generator.open({bundle!r}, backend="cpu", threads=2)
before = generator(labels=[3, 1], seeds=[0, 1])
child = os.fork()
if child == 0:
    assert (generator(labels=[3, 1], seeds=[0, 1]) == before).all()
    assert (Generator.open({bundle!r}, backend="cpu", threads=2)(labels=[3, 1], seeds=[0, 1]) == before).all()
    if {drop}:
        del generator
    print("the child", end="")  # nothing is lost that waits in a buffer
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
assert (generator(labels=[3, 1], seeds=[0, 1]) == before).all()
"""
ONLY_IMPORTED = """
import os, sys
import fewstep.runtime
child = os.fork()
if child == 0:
    sys.exit(7)
print("the child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep="")
"""


@pytest.mark.parametrize("kind", ["kept", "dropped", "only imported"])
def test_a_forked_child_makes_the_same_images_and_ends(kind: str, digits: Bundle) -> None:
    process = start(ONLY_IMPORTED if kind == "only imported" else FORK.format(bundle=str(digits.root), drop=kind == "dropped"))
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("the child does not end")
    finally:
        os.system(f"pkill -P {process.pid}")
        process.kill()
    assert (out, process.returncode) == ("the child7\n", 0), err


def test_a_forked_child_opens_sessions_that_end_as_any(digits: Bundle) -> None:
    """Forks of forks, by multiprocessing as libraries use it."""
    code = (
        "import multiprocessing as m\n"
        "from fewstep.runtime import Generator\n"
        f"g = Generator.open({str(digits.root)!r}, backend='cpu', threads=2)\n"
        "def work(i): return int(g(labels=[i], seeds=[i]).sum())\n"
        "with m.get_context('fork').Pool(2) as pool: print(pool.map(work, range(4)) == [work(i) for i in range(4)])"
    )
    out, err = start(code).communicate(timeout=60)
    assert out == "True\n", err
