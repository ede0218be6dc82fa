"""Any torch module at its bounds: classes and "none", what it must give, precisions, modes, whole bundles."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep
from fewstep import ArrayInput, Flow, Guidance, LabelInput, State, solvers
from fewstep.exporter.parity import check_graphs

FLOW, LINE = Flow(), State(channels=2, axes=(8,))
CLASSES = LabelInput(classes=3, name="instrument")
PLANS = {"guided": solvers.ddim(FLOW.grid(2), Guidance(2.0)), "plain": solvers.ddim(FLOW.grid(2))}


class Doubles(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return 2 * x + timestep.reshape(-1, 1, 1) / 1000


class Embeds(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.classes, self.dropout = nn.Embedding(rows, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor, timestep: Tensor, instrument: Tensor) -> Tensor:
        return self.dropout(x) + self.classes(instrument)[:, :, None]


class Counts(nn.Module):
    """Has no table of its classes, so that it makes something of any number."""

    def forward(self, x: Tensor, timestep: Tensor, instrument: Tensor) -> Tensor:
        return x * 0.5 + instrument.to(x.dtype)[:, None, None]


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 2, batch_first=True)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.rnn((x + timestep.reshape(-1, 1, 1) / 1000).transpose(1, 2))[0].transpose(1, 2)


class Draws(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Divides(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x + (timestep - 1000).log().sum()


class Stacks(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return torch.cat([x * (k + 1) for k in range(self.times)], 1)


def exported(path: Path, module: nn.Module, **changes: object) -> fewstep.Bundle:
    given: dict = {"state": LINE, "parametrisation": FLOW, "plans": {"e": PLANS["plain"]}}
    return fewstep.export(module, path, **given | changes)


@pytest.mark.parametrize("module", [Embeds(4), Counts()], ids=["embedding", "number"])
def test_every_class_and_none_are_numbers_that_the_module_gets(tmp_path: Path, module: nn.Module) -> None:
    bundle = exported(tmp_path / "c.bundle", module, inputs=[CLASSES], plans=PLANS)
    assert all(parity.ok for parity in check_graphs(bundle))
    made = fewstep.Generator.open(bundle.root, plan="plain")(seeds=[1, 1, 1, 1], instrument=[0, 1, 2, 2])
    assert not np.array_equal(made[0], made[1])
    assert np.array_equal(made[2], made[3])


def test_what_a_class_means_is_folded_into_the_graph(tmp_path: Path) -> None:
    """The check of numbers costs one lookup, before whatever the module does with them."""
    import onnx

    bundle = exported(tmp_path / "c.bundle", Counts(), inputs=[CLASSES])
    graph = onnx.load(bundle.file(bundle.manifest.graphs["e.fp32"].file)).graph
    assert sum(node.op_type == "Gather" for node in graph.node) == 1


def test_a_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = Embeds(4).train()
    module.classes.eval()
    exported(tmp_path / "c.bundle", module, inputs=[CLASSES])
    assert module.training
    assert module.dropout.training
    assert not module.classes.training


@pytest.mark.parametrize(
    ("module", "changes", "sentence"),
    [
        (Embeds(3), {"inputs": [CLASSES]}, "does not take 3 by 'instrument', the number after its 3 classes.*has 4 rows"),
        (Stacks(2), {}, r"makes \(4, 8\) of states \(2, 8\)"),
        (Stacks(3), {}, r"makes \(6, 8\) of states \(2, 8\)"),
        (Draws(), {}, "answers one question in two ways"),
        (Divides(), {}, "not finite at the noise level 1"),
        (Doubles(), {"precisions": ["int8"]}, "exported in fp32, fp16 and bf16; int8 needs"),
        (Doubles(), {"precisions": []}, "has a graph at least"),
        (Recurs(), {"precisions": ["fp16"]}, "torch.export does not take this Recurs in fp16"),
        (Doubles(), {"precisions": ["fp7"]}, "precision is one of fp32, .*got 'fp7'"),
        (Doubles(), {"precisions": "fp32"}, r"give a list: \['fp32'\]"),
        (Doubles(), {"layouts": ["spiral"]}, "layout is one of unrolled, loop, step, got 'spiral'"),
        (Doubles(), {"plans": {"e": 3}}, r"plans\['e'\] is a fewstep.Plan, .*got 3"),
        (
            Doubles(),
            {"inputs": [ArrayInput(name="style", shape=(2,))], "encode": {"style": len}},
            "torch.nn.Module, got <built",
        ),
        (print, {}, "the module is a torch.nn.Module, got <built-in"),
    ],
)
def test_what_does_not_go_is_said_at_once_and_nothing_stays(
    tmp_path: Path, module: nn.Module, changes: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        exported(tmp_path / "c.bundle", module, **changes)
    assert not list(tmp_path.iterdir())


def test_a_bundle_needs_nothing_that_it_says_itself(tmp_path: Path) -> None:
    bundle = exported(tmp_path / "c.bundle", Doubles())
    with pytest.raises(ValueError, match="leave out out, state"):
        fewstep.export(bundle, tmp_path / "d.bundle", state=LINE)
    with pytest.raises(ValueError, match="plans of a bundle are named"):
        fewstep.export(bundle, plans=PLANS)


@pytest.mark.parametrize("steps", [2.5, "3"])
def test_a_grid_has_a_whole_number_of_steps(steps: object) -> None:
    for parametrisation in (FLOW, fewstep.Edm(sigma_data=1), fewstep.Eps()):
        assert parametrisation.grid(np.int64(3)).n == 3
        with pytest.raises(ValueError, match="a whole number of steps, got"):
            parametrisation.grid(steps)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_exporter_module_bounds import Doubles, exported
def track(items, title):
    for item in items:
        yield item
        print("written", flush=True)
        sys.stdin.read()
exported(Path({out!r}), Doubles(), track=track)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_no_bundle_and_the_next_one_makes_it(tmp_path: Path, number: int) -> None:
    out = tmp_path / "k.bundle"
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert not out.exists(), "others see a bundle when it has its graphs"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert not out.exists()
    bundle = exported(out, Doubles())
    bundle.verify()
    assert list(bundle.manifest.graphs) == ["e.fp32"]
    assert [path.name for path in tmp_path.iterdir()] == ["k.bundle"]
