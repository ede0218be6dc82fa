"""Families of networks: what a file must hold, what its call must give, what a pipeline is told besides, what is proven."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import given
import pytest
import torch
from conftest import ROOT
from pages import blocks
from small import small

from fewstep import ArrayInput, Bundle, Draft, Family, ImageOutput, Pipeline, Signature, save_network
from fewstep.models import families
from fewstep.models.denoiser import Denoiser, fresh_network, load_network
from fewstep.models.importer import ImportOptions, import_teacher
from fewstep.models.proof import PIPELINES

HEAD = "# src/fewstep/models/families/auraflow.py"
PROMPT = ArrayInput(name="prompt_embeds", shape=(5, 12), null="given")
PLAIN = (ROOT / "src/fewstep/models/families/unet2d.py").read_text()


@pytest.fixture
def aura(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Family:
    """The family of the page on extending, for one test, and a checkpoint of it."""
    (text,) = [block.text for block in blocks(ROOT / "docs" / "extending.md") if block.text.startswith(HEAD)]
    exec(compile(text, "/families/auraflow.py", "exec"), names := {"__name__": "auraflow"})
    given.auraflow(tmp_path / "auraflow")
    known(monkeypatch, names["FAMILY"])
    return names["FAMILY"]


def known(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    monkeypatch.setitem(families.FAMILIES, family.kind, family)
    monkeypatch.delitem(PIPELINES, "AuraFlowPipeline", raising=False)
    for name, pipeline in family.pipelines.items():
        monkeypatch.setitem(PIPELINES, name, pipeline)


def imported(tmp_path: Path) -> Any:
    return import_teacher(tmp_path / "auraflow", tmp_path / "a.bundle", ImportOptions(tokens=5, steps=3))[1]


def wrong_scale(net: Any, x: torch.Tensor, timestep: torch.Tensor, inputs: Any, _: Any) -> torch.Tensor:
    return net(x, inputs["prompt_embeds"], timestep.expand(x.shape[0]), return_dict=False)[0]


def test_a_pipeline_gets_what_its_call_needs_besides(tmp_path: Path, aura: Family) -> None:
    proof = imported(tmp_path)
    assert proof.against == "AuraFlowPipeline"
    assert {case.guidance for case in proof.cases} == {1.0, 3.5}
    assert proof.max_error < 1e-4 * proof.scale


def test_the_pipeline_itself_sees_a_call_that_is_wrong(tmp_path: Path, aura: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, replace(aura, call=wrong_scale))
    with pytest.raises(ValueError, match="end elsewhere than with AuraFlowPipeline"):
        imported(tmp_path)


def test_without_a_pipeline_it_is_said_that_the_call_is_not_checked(
    tmp_path: Path, aura: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, replace(aura, call=wrong_scale, pipelines={}))
    said = "around the network (no pipeline of diffusers ran, so the family's own call is not checked)"
    assert said in imported(tmp_path).against
    assert said in (tmp_path / "a.bundle" / "card.md").read_text()


def test_a_pipeline_that_lacks_an_argument_says_which(tmp_path: Path, aura: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, replace(aura, pipelines={"AuraFlowPipeline": Pipeline(50, 3.5)}))
    with pytest.raises(ValueError, match=r"does not run with these parts .*prompt_attention_mask"):
        imported(tmp_path)


def as_a_tuple(net: Any, x: torch.Tensor, timestep: torch.Tensor, inputs: Any, _: Any) -> Any:
    return (net(x, inputs["prompt_embeds"], timestep.expand(x.shape[0]) / 1000, return_dict=False)[0],)


def fewer_channels(net: Any, x: torch.Tensor, timestep: torch.Tensor, inputs: Any, _: Any) -> torch.Tensor:
    return as_a_tuple(net, x, timestep, inputs, _)[0][:, :2]


def twice_the_channels(net: Any, x: torch.Tensor, timestep: torch.Tensor, inputs: Any, _: Any) -> torch.Tensor:
    return as_a_tuple(net, x, timestep, inputs, _)[0].repeat(1, 2, 1, 1)


def another_name(net: Any, x: torch.Tensor, timestep: torch.Tensor, inputs: Any, _: Any) -> torch.Tensor:
    return net(x, inputs["prompt"], timestep)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (as_a_tuple, "ValueError: a call of this AuraFlowTransformer2DModel gives a tuple; it gives a tensor alone"),
        (fewer_channels, r"this AuraFlowTransformer2DModel makes \(2, 8, 8\) of states \(4, 8, 8\)"),
        (twice_the_channels, r"makes \(8, 8, 8\) of states \(4, 8, 8\)"),
        (another_name, "KeyError: 'prompt'"),
    ],
)
def test_a_call_is_tried_where_a_network_is_made_saved_loaded_or_imported(
    tmp_path: Path, aura: Family, monkeypatch: pytest.MonkeyPatch, call: Any, sentence: str
) -> None:
    from diffusers import AuraFlowTransformer2DModel

    from fewstep import Flow

    net, signature = AuraFlowTransformer2DModel.from_pretrained(tmp_path / "auraflow" / "transformer"), made_from(PROMPT)
    with Draft.create(tmp_path / "b.bundle", signature) as draft:
        save_network(draft, "teacher", Denoiser(net, parametrisation=Flow()))
    bundle = Bundle.load(tmp_path / "b.bundle")
    assert load_network(bundle, "teacher").net.config.sample_size == 8
    config = dict(net.config) | {"_class_name": aura.kind}
    assert fresh_network(config, bundle.manifest.state, signature.inputs, parametrisation=Flow()).patch == 1
    known(monkeypatch, replace(aura, call=call))
    where = "the call in test_families.py does not run with prompt_embeds, states"
    with pytest.raises(ValueError, match=f"{where}.*{sentence}"):
        load_network(bundle, "teacher")
    with pytest.raises(ValueError, match=where):
        fresh_network(config, bundle.manifest.state, signature.inputs, parametrisation=Flow())
    with pytest.raises(ValueError, match=where), bundle.edit() as draft:
        save_network(draft, "other", Denoiser(net, parametrisation=Flow()))
    with pytest.raises(ValueError, match=where):
        imported(tmp_path)


def made_from(*inputs: Any) -> Signature:
    return Signature(inputs=inputs, output=ImageOutput(channels=4, height=8, width=8))


def test_a_variance_that_a_configuration_speaks_of_is_left_aside() -> None:
    from diffusers import UNet2DModel

    network = small("plain")
    config = {key: value for key, value in network.denoiser.net.config.items() if not key.startswith("_")}
    net = UNet2DModel(**config | {"out_channels": 2 * config["in_channels"]})
    denoiser = Denoiser(net, parametrisation=network.denoiser.parametrisation)
    x = torch.randn(1, config["in_channels"], 8, 8)
    with torch.no_grad():
        made = denoiser.evaluate(x, torch.ones(1))
        assert torch.equal(made, net(x, torch.ones(1)).sample[:, : config["in_channels"]])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PLAIN, "families/own.py and families/unet2d.py are both of a UNet2DModel|unet2d.py and families/own.py are both of"),
        (PLAIN.replace('"UNet2DModel",', '"UNet9DModel",'), "families/own.py is of a UNet9DModel, which diffusers has not"),
        (PLAIN.replace("FAMILY = ", "FAMLIY = "), "families/own.py has no FAMILY"),
        ("def x(:\n", r"families/own.py cannot be read \(SyntaxError: invalid syntax"),
        ("from fewstep import Famliy\n", r"families/own.py cannot be read \(ImportError: "),
    ],
)
def test_a_file_that_holds_no_new_family_is_refused_by_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    shutil.copytree(ROOT / "src" / "fewstep", tmp_path / "fewstep", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "fewstep" / "models" / "families"
    (folder / "own.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "fewstep.cli", "import", "nowhere", "--out", "a.bundle"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr

    assert re.search(sentence, " ".join(done.stderr.split())), done.stderr


def test_a_family_without_read_says_so(tmp_path: Path, aura: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, Family(aura.kind, aura.takes, aura.call, aura.facts))
    with pytest.raises(ValueError, match="the family of a AuraFlowTransformer2DModel has no `read`"):
        imported(tmp_path)
