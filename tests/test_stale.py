"""What a change makes stale goes, whatever was changed, whatever was made of it; records speak of what is called like them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from test_cli import fewstep, refused

from fewstep.artifact.adopt import mismatch
from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.card import license
from fewstep.artifact.components import DecoderEntry
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Distilled
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature, State
from fewstep.calibration.calibrate import calibrate
from fewstep.calibration.configs import FitConfig
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.exporter.edge.package import package
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.decoder import save_decoder
from fewstep.models.denoiser import save_network, unet
from fewstep.runtime import Generator
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim
from fewstep.trainer.configs import SidConfig
from fewstep.trainer.sid import distill

LABELS = (LabelInput(classes=2),)
WEIGHTS = "components/{}/diffusion_pytorch_model.safetensors"


def tiny_decoder(seed: int) -> AutoencoderTiny:
    torch.manual_seed(seed)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(in_channels=3, out_channels=3, latent_channels=4, **widths, **blocks).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent model with two networks, each with a plan, its graphs, ranges and reference, and a fitted plan."""
    root = tmp_path_factory.mktemp("stale") / "a.bundle"
    with Draft.create(root, Signature(inputs=LABELS, output=ImageOutput(channels=3, height=16, width=16))) as draft:
        save_decoder(draft, tiny_decoder(0))
        for seed, name in enumerate(("teacher", "other")):
            torch.manual_seed(seed)
            latent = State(channels=4, axes=(8, 8))
            save_network(draft, name, unet(latent, LABELS, channels=(8,), layers=1, attention=False, patch=1))
            draft.manifest.plans[f"{name}2"] = PlanEntry.of(ddim(karras(2, 0.1, 10.0)), denoiser=name, solver="DDIM")
        draft.manifest.default = "teacher2"
    bundle = Bundle.load(root)
    bundle, _ = calibrate(bundle, FitConfig(steps=2, samples=2, fine=1), name="fitted", cache=root.parent / "cache")
    for plan in ("teacher2", "other2"):
        bundle = calibrate_ranges(bundle, plan, ["int8"], samples=1)
    export_graphs(bundle, ["teacher2", "other2", "fitted"], ["fp32"])
    return root


@pytest.fixture
def latent(made: Path, tmp_path: Path) -> Bundle:
    import shutil

    shutil.copytree(made, tmp_path / "a.bundle")
    return Bundle.load(tmp_path / "a.bundle")


def left(bundle: Bundle) -> dict[str, set[str]]:
    """The plans that graphs, ranges and references are there of."""
    manifest = bundle.manifest
    graphs = {str(graph.plan) for graph in manifest.graphs.values()}
    return {"graphs": graphs, "ranges": set(manifest.ranges), "references": set(bundle.references())}


def new_decoder(draft: Draft) -> None:
    draft.remove("components/decoder")
    save_decoder(draft, tiny_decoder(1))


def new_kind_of_decoder(draft: Draft) -> None:
    torch.manual_seed(2)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    save_decoder(draft, AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks))


def new_scale(draft: Draft) -> None:
    decoder = draft.manifest.components["decoder"]
    assert isinstance(decoder, DecoderEntry)
    decoder.scaling_factor *= 2


def new_weights(draft: Draft) -> None:
    name = WEIGHTS.format("teacher")
    tensors = {key: value * 1.01 for key, value in load_file(draft.root / name).items()}
    save_file(tensors, draft.new(name))


def new_use(draft: Draft) -> None:
    entry = draft.manifest.denoisers["teacher"]
    entry.parametrisation = entry.parametrisation.model_copy(update={"sigma_data": 0.6})


def new_numbers(draft: Draft) -> None:
    draft.manifest.plans["teacher2"] = PlanEntry.of(ddim(karras(2, 0.1, 11.0)), denoiser="teacher", solver="DDIM")


def new_network(draft: Draft) -> None:
    draft.manifest.plans["teacher2"].denoiser = "other"


def no_plan(draft: Draft) -> None:
    del draft.manifest.plans["teacher2"]
    draft.manifest.default = "other2"


def new_words(draft: Draft) -> None:
    draft.manifest.plans["teacher2"].solver = "called otherwise"
    draft.new("note.txt").write_text("something else")


ALL, OF_OTHER = {"teacher2", "other2", "fitted"}, {"other2"}
CHANGES: dict[str, tuple[Callable[[Draft], None], set[str]]] = {
    "the decoder's weights": (new_decoder, set()),
    "the decoder's class": (new_kind_of_decoder, set()),
    "how the decoder is used": (new_scale, set()),
    "a network's weights": (new_weights, OF_OTHER),
    "how a network is used": (new_use, OF_OTHER),
    "a plan's numbers": (new_numbers, ALL - {"teacher2"}),
    "a plan's network": (new_network, ALL - {"teacher2"}),
    "a plan that is no more": (no_plan, ALL - {"teacher2"}),
    "words": (new_words, ALL),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_made_with_something_else_goes(name: str, latent: Bundle) -> None:
    assert left(latent) == {"graphs": ALL, "ranges": ALL - {"fitted"}, "references": ALL}
    change, stays = CHANGES[name]
    with latent.edit() as draft:
        change(draft)
    bundle = Bundle.load(latent.root)
    bundle.verify()
    assert left(bundle) == {"graphs": stays, "ranges": stays - {"fitted"}, "references": stays}
    files = {path for path in bundle.manifest.files if path.startswith(("graphs/", "ranges/", "golden"))}
    assert len(files) == len(stays) + len(stays - {"fitted"}) + bool(stays)
    if stays:
        assert all(result.ok for result in check_graphs(bundle))


@pytest.mark.parametrize("change", [new_decoder, new_weights])
def test_a_fit_for_something_else_is_said_to_be(change: Callable[[Draft], None], latent: Bundle) -> None:
    assert mismatch(latent, "fitted") is None
    with latent.edit() as draft:
        change(draft)
    assert "was fitted with other weights than those of 'teacher' and the decoder now" in str(
        mismatch(latent_now(latent), "fitted")
    )


def latent_now(bundle: Bundle) -> Bundle:
    return Bundle.load(bundle.root)


def test_what_is_made_anew_in_the_same_change_stays(latent: Bundle) -> None:
    graph = latent.manifest.graphs["teacher2.fp32"]
    with latent.edit() as draft:
        new_numbers(draft)
        draft.new(graph.file).write_bytes(b"another graph")
        draft.manifest.graphs["teacher2.fp32"] = graph.model_copy(update={"limit": 1e-5})
    assert left(latent_now(latent))["graphs"] == ALL


def test_a_bundle_without_its_weights_is_whole_and_says_so(latent: Bundle, tmp_path: Path) -> None:
    """A latent one, with a plan fitted for a network that is not there any more."""
    package(latent, tmp_path / "out", ["device"], plans=["fitted", "teacher2"])
    trimmed = Bundle.load(tmp_path / "out/device/a.bundle")
    trimmed.verify()
    assert not [path for path in trimmed.manifest.files if path.startswith("components/")]
    assert trimmed.model_digest("teacher") == latent.model_digest("teacher")
    assert mismatch(trimmed, "fitted") is None
    images = (Generator.open(b.root, plan="fitted", backend="cpu")(labels=[0, 1], seeds=[0, 1]) for b in (latent, trimmed))
    np.testing.assert_array_equal(*images)
    for verb in ("check", "inspect"):
        shown = fewstep(verb, trimmed.root).stdout
        assert "the network teacher is not here: its graphs run, but nothing can be exported" in shown
        assert "the decoder is not here" in shown
        assert "not here" not in fewstep(verb, latent.root).stdout
    assert "was shipped without the denoiser 'teacher'" in refused("export", trimmed.root, "--plan", "fitted")
    with trimmed.edit() as draft:  # and stays whole
        draft.new("note.txt").write_text("")
    assert left(latent_now(trimmed)) == {
        "graphs": {"fitted", "teacher2"},
        "ranges": set(),
        "references": {"fitted", "teacher2"},
    }


def test_weights_left_out_by_an_edit_are_remembered(latent: Bundle) -> None:
    digests = {name: latent.model_digest(name) for name in latent.manifest.denoisers}
    with latent.edit() as draft:
        for name, entry in draft.manifest.components.items():
            draft.remove(f"components/{name}")
            entry.directory = None
    bundle = latent_now(latent)
    assert {name: bundle.model_digest(name) for name in digests} == digests
    assert left(bundle)["graphs"] == ALL
    assert all(result.ok for result in check_graphs(bundle))


def test_weights_removed_by_hand_are_missed_with_a_way_out(digits: Bundle) -> None:
    digits.component("sid1").joinpath("config.json").unlink()
    assert (
        "is missing; copy the bundle again from its source, or make one without its training networks there with: "
        in refused("check", digits.root)
    )


# Records


def test_a_plan_called_as_a_network_leaves_the_networks_record_alone(digits: Bundle) -> None:
    with digits.edit() as draft:
        trained = draft.manifest.records.components["teacher"]
        draft.manifest.records.components["teacher"] = trained.model_copy(update={"license": "CC0"})
    before = latent_now(digits).manifest.records.components["teacher"]
    fewstep("adopt", digits.root, "--plan", "table4", "--name", "teacher", "--replace")
    bundle = latent_now(digits)
    assert bundle.manifest.records.components["teacher"] == before
    adopted = bundle.manifest.records.plans["teacher"].adopted
    assert adopted
    assert adopted.plan == "table4"
    assert license(bundle.manifest, "teacher") == "CC0"
    bundle = distill(bundle, "student", SidConfig(iterations=1, batch=2))
    assert "| teacher | edm | training from nothing | 4000 of mnist5k | CC0 |" in _card_of(bundle)


def _card_of(bundle: Bundle) -> str:
    from fewstep.artifact.card import card

    return card(bundle.manifest)


def test_a_record_goes_with_what_it_speaks_of(digits: Bundle) -> None:
    assert "table4" in digits.manifest.records.plans
    bundle = distill(digits, "table4", SidConfig(iterations=1, batch=2))  # a generator takes the fitted plan's name
    assert "table4" not in bundle.manifest.records.plans
    distilled = bundle.manifest.records.components["table4"]
    assert isinstance(distilled, Distilled)
    assert distilled.teacher == "teacher"
    with bundle.edit() as draft:
        del draft.manifest.plans["table4"], draft.manifest.components["table4"]
        draft.remove("components/table4")
        draft.manifest.default = "sid1"
    assert "table4" not in latent_now(bundle).manifest.records.components


def test_digests_do_not_depend_on_what_a_later_version_may_say(latent: Bundle) -> None:
    """A field with a default that is the same leaves hashes as they are: they stand in records and in graphs."""
    path = latent.root / "bundle.json"
    raw = json.loads(path.read_text())
    digest = latent.model_digest("teacher")
    del raw["components"]["teacher"]["patch"]
    path.write_text(json.dumps(raw))
    assert Bundle.load(latent.root).model_digest("teacher") == digest
