"""Any torch module as a bundle: three axes, several inputs, encoders, closed forms, and what is refused."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep
from fewstep import ArrayInput, ArrayOutput, Axis, Column, Edm, Flow, Guidance, ImageOutput, LabelInput, State, solvers
from fewstep.artifact.bundle import Bundle
from fewstep.exporter.graph import network, traced
from fewstep.exporter.parity import check_graphs
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import sample

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import mixture

VOLUME, OBSERVATION = State(channels=2, axes=(3, 4, 5)), ArrayInput(name="observation", shape=(6,), null="zeros")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, observation: Tensor) -> Tensor:
        return self.linear(observation).tanh()


class Volumes(nn.Module):
    """Told the class, the noise level and what an encoder made of an observation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.told, self.classes = nn.Conv3d(2, 2, 3, padding=1), nn.Linear(5, 2), nn.Embedding(4, 2)

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor, observation: Tensor) -> Tensor:
        level = timestep.reshape(-1, 1).to(x.dtype).expand(x.shape[0], 1)
        told = self.told(torch.cat([observation, level], 1)) + self.classes(labels)
        return self.conv(x) + told[:, :, None, None, None]


def exported(path: Path, **changes: object) -> tuple[Bundle, nn.Module, nn.Module]:
    torch.manual_seed(0)
    module, encoder, flow = Volumes(), Encoder(), Flow()
    given: dict = {
        "state": VOLUME,
        "parametrisation": flow,
        "plans": {"guided": solvers.heun(flow.grid(4), Guidance(2.0)), "plain": solvers.ddim(flow.grid(3))},
        "inputs": [LabelInput(classes=3), OBSERVATION],
        "encode": {"observation": encoder},
    }
    return fewstep.export(module, path, **given | changes), module, encoder


def test_a_volume_conditioned_on_a_class_and_an_encoded_array_is_what_torch_makes(tmp_path: Path) -> None:
    bundle, module, encoder = exported(tmp_path / "v.bundle", precisions=["fp32", "fp16"])
    bundle.verify()
    assert all(parity.ok for parity in check_graphs(bundle))
    assert bundle.manifest.default == "guided"
    rng = np.random.default_rng(0)
    observation, labels = rng.standard_normal((2, 6)).astype(np.float32), [0, 2]
    generator = fewstep.Generator.open(tmp_path / "v.bundle", precision="fp32")
    made = generator(seeds=[5, 6], observation=observation, labels=labels)
    assert made.shape == (2, 3, 4, 5, 2)
    # The original is the module itself, walked by the plan, with its own encoder and nothing of the exporter's.
    from fewstep.runtime.noise import noise

    flow, plan = Flow(), bundle.plan("guided")
    start = torch.from_numpy(noise([5, 6], (plan.draws, *VOLUME.shape)))

    def denoise(x: Tensor, sigma: float, labels: Tensor, seen: Tensor) -> Tensor:
        scales = flow.scales(sigma)
        when = torch.tensor([scales.timestep])
        return scales.skip * x + scales.out * module(scales.into * x, when, labels, encoder(seen))

    given = torch.tensor(labels), torch.from_numpy(observation)
    with torch.no_grad():
        null = torch.full((2,), 3), torch.zeros(2, 6)
        x = sample(guided(denoise, given, null), plan.begin(start[:, 0]), plan, [])
    assert np.abs(made - np.moveaxis(x.numpy(), 1, -1)).max() < 1e-6 * np.abs(made).max()


def test_encoders_run_once_outside_of_the_loop(tmp_path: Path) -> None:
    import onnx

    bundle, *_ = exported(tmp_path / "v.bundle", layouts=["loop"])
    model = onnx.load(bundle.file(bundle.manifest.graphs["plain.loop.fp32"].file))
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    inside = {node.op_type for node in loop.attribute[0].g.node}
    assert "Tanh" in {node.op_type for node in model.graph.node}
    assert "Tanh" not in inside


@pytest.mark.parametrize("told", ["scaled", "joined", "sum"])
def test_what_is_told_of_the_noise_level_keeps_the_batch(tmp_path: Path, told: str) -> None:
    """Only what broadcasts into numbers with a batch of their own is computed at export."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, timestep: Tensor, observation: Tensor) -> Tensor:
            level = timestep.reshape(-1, 1).expand(x.shape[0], 1)
            level = {"scaled": level / 1000, "joined": level, "sum": level / 1000 + level.sin() * level}[told]
            made = self.layer(torch.cat([observation[:, :5], level], 1))
            return x * made[:, 0].reshape(-1, 1, 1, 1, 1) + made[:, 1].reshape(-1, 1, 1, 1, 1)

    flow = Flow()
    plans = {"heun3": solvers.heun(flow.grid(3))}
    about: dict = {"state": VOLUME, "parametrisation": flow, "plans": plans, "inputs": [OBSERVATION]}
    bundle = fewstep.export(Told(), tmp_path / "t.bundle", layouts=["unrolled", "loop"], **about)
    assert all(parity.ok for parity in check_graphs(bundle))


def test_a_field_of_twenty_channels_that_is_not_square_gives_numbers_in_units(tmp_path: Path) -> None:
    state = State(channels=20, axes=(6, 10))
    columns = tuple(Column(name=f"c{i}", unit="K", mean=float(i), std=1.0 + i) for i in range(20))
    output = ArrayOutput(axes=(Axis(name="latitude", size=6), Axis(name="longitude", size=10)), columns=columns)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(20, 20, 3, padding=1)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return self.conv(x)

    edm = Edm(sigma_data=0.5)
    bundle = fewstep.export(
        Field(), tmp_path / "f.bundle", state=state, parametrisation=edm, plans={"h": solvers.heun(edm.grid(3))}, output=output
    )
    made = fewstep.Generator(bundle)(seeds=[0])
    sampled = bundle.references("h")["h"]["sample"]
    assert made.shape == (1, 6, 10, 20)
    assert sampled.shape[1:] == (20, 6, 10)
    assert abs(made[..., 7].mean() - 7) < 8 * 3


def test_the_closed_form_samples_its_own_distribution(tmp_path: Path) -> None:
    """What ONNX Runtime makes of the best denoiser there is has the moments of the mixture, for every observation."""
    edm = Edm(sigma_data=1.0)
    columns = (Column(name="x", unit="m", std=3.0), Column(name="y", unit="m", mean=20.0, std=0.4))
    output = ArrayOutput(axes=(Axis(name="time", size=mixture.STEPS),), columns=columns)
    bundle = fewstep.export(
        mixture.Exact(output, edm),
        tmp_path / "exact.bundle",
        state=mixture.WALKED,
        parametrisation=edm,
        plans={"heun18": solvers.heun(edm.grid(18))},
        inputs=mixture.INPUTS,
        output=output,
    )
    n, seen = 2000, np.array([0.6, -0.3])
    observation = np.broadcast_to(seen, (n, 2)).astype(np.float32)
    made = fewstep.Generator(bundle)(seeds=range(n), observation=observation).astype(np.float64)
    centers = mixture.means(seen[None])[:, 0]
    mean, between = centers.mean(0), centers[0] - centers[1]
    var = np.diag(mixture.covariance())[:, None] * mixture.UNITS**2 + between**2 / 4
    assert (np.abs(made.mean(0) - mean) < 5 * np.sqrt(var / n)).all()
    assert (np.abs(made.var(0) / var - 1) < 0.2).all()


def image_of(channels: int) -> ImageOutput:
    return ImageOutput(channels=channels, height=3, width=4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encode": {"other": Encoder()}}, "encode names 'other', which is no input"),
        ({"plans": {}}, "a bundle has a plan at least"),
        ({"inputs": [LabelInput(classes=3)], "encode": {}}, "does not run with these inputs"),
        ({"inputs": [LabelInput(classes=3), OBSERVATION, OBSERVATION]}, "every input has a name that no other tensor"),
        ({"output": image_of(1)}, "there is none"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_stays(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        exported(tmp_path / "v.bundle", **changes)
    assert not (tmp_path / "v.bundle").exists()


def test_what_torch_export_does_not_take_is_said_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return x if x.sum() > 0 else 2 * x

    flow, before = Flow(), logging.getLogger("torch.onnx").level
    with pytest.raises(ValueError, match=r"does not take this Decides: Could not guard on data-dep.*return x if x\.sum"):
        fewstep.export(
            Decides(), tmp_path / "d.bundle", state=VOLUME, parametrisation=flow, plans={"h": solvers.heun(flow.grid(3))}
        )
    assert capfd.readouterr().err == "", "torch prints its whole graph"
    assert logging.getLogger("torch.onnx").level == before
    assert not (tmp_path / "d.bundle").exists()


def test_a_module_of_another_shape_is_refused(tmp_path: Path) -> None:
    class Shrinks(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return x[:, :, 1:]

    flow = Flow()
    with pytest.raises(ValueError, match=r"this Shrinks makes \(2, 2, 4, 5\) of states \(2, 3, 4, 5\)"):
        fewstep.export(
            Shrinks(), tmp_path / "d.bundle", state=VOLUME, parametrisation=flow, plans={"h": solvers.heun(flow.grid(3))}
        )


def test_traces_of_modules_without_a_configuration_are_not_kept(tmp_path: Path) -> None:
    """Another module may come to lie where one was, and would be taken for it."""
    before = len(network._traces)
    exported(tmp_path / "v.bundle")
    assert len(network._traces) == before


class Small(nn.Module):
    """Divides by a sum that is 0 but for a small number, multiplies by nearly 1, and has one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        positive = self.second(self.first(x.relu() * 0))
        return x * 1.000001 + positive / (positive.sum(1, keepdim=True) + 1e-15)


def test_small_numbers_and_shared_weights_stay(tmp_path: Path) -> None:
    """onnxscript takes 1e-15 for 0: without it, 0 is divided by 0."""
    torch.manual_seed(0)
    module, edm = Small(), Edm(sigma_data=0.5)
    plans = {"heun": solvers.heun(edm.grid(3))}
    bundle = fewstep.export(module, tmp_path / "s.bundle", state=VOLUME, parametrisation=edm, plans=plans, precisions=["fp32"])
    assert all(parity.ok for parity in check_graphs(bundle))
    assert np.isfinite(fewstep.Generator(bundle)(seeds=[0])).all()


def test_what_other_threads_print_while_a_module_is_traced_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with traced._quiet():
        print("of torch", file=sys.stderr)
        other = Thread(target=lambda: print("of a progress bar", file=sys.stderr))
        other.start()
        other.join()
    assert capsys.readouterr().err == "of a progress bar\n"
