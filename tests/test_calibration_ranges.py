"""What layers see, and which of them must not be rounded."""

from __future__ import annotations

import pytest
import torch

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import LabelInput, State
from fewstep.artifact.spec import Precision
from fewstep.calibration.inputs import Drawn
from fewstep.calibration.ranges import calibrate_ranges, collect, excluded_layers, rounded_sample
from fewstep.models.denoiser import Denoiser, unet
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

STATE, CLASSES = State(channels=1, axes=(8, 8)), (LabelInput(classes=3),)
PLAN = ddim(karras(3, 0.1, 20.0), Guidance(2.0, 0.5))


def _denoiser() -> Denoiser:
    torch.manual_seed(0)
    return unet(STATE, CLASSES, channels=(16,), layers=1, attention=False, patch=1).eval()


def _inputs(batch: int = 8) -> Drawn:
    labels = torch.arange(batch) % 3
    noise = torch.randn(batch, PLAN.draws, *STATE.shape, generator=torch.Generator().manual_seed(1))
    return Drawn(noise, (labels,), (torch.full_like(labels, 3),))


def test_ranges_are_those_of_the_plans_own_trajectory() -> None:
    """conv_in sees the scaled state: for EDM x / sqrt(sigma^2 + 0.25), and the first state is 20 noise."""
    denoiser, inputs = _denoiser(), _inputs()
    ranges = collect(denoiser, PLAN, inputs, name="p")
    first = 20 * inputs.noise[:, 0] / (20**2 + 0.25) ** 0.5
    assert ranges.layers["conv_in"].input[0] == pytest.approx((float(first.min()), float(first.max())), rel=1e-6)
    assert {len(layer.input) for layer in ranges.layers.values()} == {PLAN.rows}
    assert "conv_out" in ranges.layers
    assert all(low <= high for layer in ranges.layers.values() for low, high in layer.input + layer.output)


def test_both_evaluations_of_a_guided_row_count() -> None:
    """The class embedding of "none" is made large: where the row is guided, the layer behind it sees it."""
    denoiser, inputs = _denoiser(), _inputs()
    with torch.no_grad():
        denoiser.net.class_embedding.weight[3] += 50
    seen = collect(denoiser, PLAN, inputs, name="p").layers["down_blocks.0.resnets.0.time_emb_proj"].input
    assert [high > 40 for _, high in seen] == [scale != 1 for scale in PLAN.guidance]


def test_the_layer_that_hurts_is_kept_and_no_more_than_needed() -> None:
    """One outlier in a layer's weights leaves no codes for the others of its channel: that layer hurts most."""
    denoiser, inputs = _denoiser(), _inputs()
    with torch.no_grad():
        denoiser.net.conv_out.weight[0, 0, 0, 0] = 100.0
    ranges = collect(denoiser, PLAN, inputs, name="p")
    excluded, (without, reached) = excluded_layers(denoiser, PLAN, inputs, ranges, "int8-fp16", span=2.0, min_psnr_db=40)
    assert "conv_out" in excluded
    assert without < 40 <= reached
    fewer, _ = excluded_layers(denoiser, PLAN, inputs, ranges, "int8-fp16", span=2.0, min_psnr_db=without - 1)
    assert fewer == []
    exact = rounded_sample(denoiser, PLAN, inputs, ranges, (), "int8-fp16")
    left = [name for name in ranges.layers if name not in excluded]
    error = (rounded_sample(denoiser, PLAN, inputs, ranges, left, "int8-fp16") - exact).square().mean()
    assert 10 * torch.log10(4 / error) == pytest.approx(reached, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8-fp16", "fp8"])
def test_a_network_that_overflows_fp16_is_refused(precision: Precision) -> None:
    denoiser, inputs = _denoiser(), _inputs()
    with torch.no_grad():
        denoiser.net.conv_in.weight *= 1e6  # a group norm follows, so the network itself does not mind
    ranges = collect(denoiser, PLAN, inputs, name="p")
    with pytest.raises(ValueError, match=rf"conv_in reaches .* fp16 ends at 65504, so {precision} would overflow"):
        excluded_layers(denoiser, PLAN, inputs, ranges, precision, span=2.0)
    _, (_, reached) = excluded_layers(denoiser, PLAN, inputs, ranges, "bf16", span=2.0, min_psnr_db=30)
    assert reached >= 30


def test_ranges_are_kept_in_the_bundle_and_another_precision_adds_to_them(digits: Bundle) -> None:
    known = digits.ranges("sid1")
    assert known is not None
    again = calibrate_ranges(digits, "sid1", ["fp8"], samples=8, min_psnr_db=20).ranges("sid1")
    assert again is not None
    assert set(again.excluded) == {*known.excluded, "fp8"}
    assert again.excluded["int8"] == known.excluded["int8"]
    more = calibrate_ranges(Bundle.load(digits.root), "sid1", ["bf16"], samples=4, again=False, min_psnr_db=20).ranges("sid1")
    assert more is not None
    assert more.layers == again.layers
    assert set(more.excluded) == {*again.excluded, "bf16"}
    Bundle.load(digits.root).verify()
    with digits.edit() as draft:
        draft.new("ranges/sid1.json").write_text('{"plan": "sid1"}')
    with pytest.raises(ValueError, match=r"ranges/sid1\.json does not hold ranges"):
        Bundle.load(digits.root).ranges("sid1")
