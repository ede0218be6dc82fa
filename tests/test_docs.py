"""Every command and Python block of the pages runs to its end, in order, as a reader types it, and so does every `next:`.

A line that is new on a page is run without being named here. What is made smaller, and what is not run, stands in these tables.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import given
import numpy as np
import pytest
from conftest import ROOT
from pages import Block, blocks, following
from ports import free_port
from test_cli import fewstep
from typer.main import get_command

from fewstep import Asked, Family, Pipeline
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Imported
from fewstep.cli.app import app
from fewstep.models.denoiser import load_network
from fewstep.models.families import FAMILIES
from fewstep.models.proof import PIPELINES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Options that are added to a command that begins so: the last one given counts. {port} is a free one.
SMALLER = {
    "fewstep train": "--iterations 2 --batch 4",
    "fewstep train --data few": "--network tiny.json",
    "fewstep distill": "--iterations 2 --batch 4",
    "fewstep calibrate": "--samples 4 --batch 4",
    "fewstep calibrate digits.bundle --steps": "--iterations 2 --unseen 8",  # of tables
    "fewstep calibrate push.bundle": "--iterations 2 --unseen 8",
    "fewstep calibrate digits.bundle --method": "--fine 2",
    "fewstep interval": "--steps 2 --samples 10",
    "fewstep compare": "--seeds 2 --thin 3 --seconds 0.01",
    "fewstep tau": "--iterations 1 --runs 2 --value 0.9 --value 1 --steps 2 --samples 10",
    "fewstep consistency": "--samples 4",
    "fewstep quantize": "--samples 4",
    "fewstep bench": "--seconds 0.01 --batch 1",
    "fewstep build digits.bundle": "--batch 2 --graph sid1.fp16",
    "fewstep serve": "--max-batch 4 --port {port}",
    "python -m http.server": "{port}",
    "accelerate launch --module fewstep.cli train": "--iterations 2 --batch 4",
    "torchrun --nproc-per-node 2 --module fewstep.cli distill": "--iterations 2 --batch 4",
}
# Words of commands and code that others take the place of.
INSTEAD = {
    "mnist5k": "few",  # 150 of its images: a classifier is trained on them in seconds
    "s3://bucket": "file://{here}/bucket",  # the same files, in what every machine has
    "--steps 10 --guidance": "--steps 2 --guidance",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--distance 3": "--distance 1e9",  # what was trained for two updates ...
    "--ms 10": "--ms 1e4",  # ... or runs beside other work holds no tighter limit
    "--ms 20": "--ms 1e4",
    "--tokens 512 --resolution 1024": "--tokens 7 --resolution 16",  # of a tiny FLUX
    "--tokens 256": "--tokens 5 --steps 3",  # of a tiny AuraFlow
    "iterations=6000": "iterations=1, batch=2",
    '"sid1", steps=1': '"sid1", steps=1, iterations=1, batch=2',
    '"table4", steps=4': '"table4", steps=4, iterations=2, unseen=8, samples=4, batch=4',
    "npm install --ignore-scripts": "ln -s {node_modules} node_modules",
    "8008": "{port}",
    "localhost:8000": "localhost:{port}",
}
# What is not run here, and why.
NOT_RUN = {
    "make demo": "test_demo.py runs it",
    "make test": "this is it",
    "pip install": "test_extras.py holds what is named against pyproject.toml, test_wheel.py installs it",
    "npm install onnxruntime-web": "test_exporter_edge_web.py takes the one that .ci/run installs",
    "pkg-config": "of a library that the tests take from the package onnxruntime",
    "tritonserver": "test_runtime_deploy.py starts it where it is",
    "serve run": "test_runtime_deploy.py runs it with two replicas, of which one is killed",
    "benchmarks/gpu/pack.sh": "it downloads 350 MB; test_gpu_kit.py packs, takes and joins small files",
    "python benchmarks/gpu/run.py": "test_gpu_kit.py rehearses it",
    "python -m gpu.bundles": "run.py makes bundles in the same way, as test_gpu_kit.py sees",
    "python docs/make_api.py": "test_house.py holds the page against what it writes",
}
# Blocks that are nothing to type, by their first words.
NO_COMMANDS = ("D_k     = denoise", "src/fewstep/\n  api.py", "containers:", "photos: 30 images")
# What answers for long: started, asked until it is ready, used by the commands after it, and ended by SIGTERM with this code.
SERVERS = {"fewstep serve": ("/v2/health/ready", 0), "python -m http.server": ("/", -15), "python service.py": (None, -15)}

# What a reader has, made when it is first named and not there.
GIVEN: dict[str, Callable[[Path], None]] = {
    "digits.bundle": given.copy_of(ROOT / "examples" / "digits.bundle"),
    "examples": given.examples,
    "few": given.few,
    "photos": given.photos,
    "bucket": lambda path: given.bucket(path / "photos"),
    "config.json": given.shown("training.md"),
    "temporal.json": given.shown("extending.md"),
    "push.npz": given.pushes,
    "seen.npz": given.seen,
    "push.bundle": given.actions,
    "tiny.json": partial(given.config, sample_size=14, in_channels=4, out_channels=4, num_class_embeds=11),
    "latents.json": partial(given.config, sample_size=8, in_channels=4, out_channels=4, num_class_embeds=11),
    "prompts.json": given.prompts_network,
    "prompts.safetensors": given.prompts,
    "vae": given.autoencoder,
    "pipeline": given.pipeline,
    "flux": given.flux,
    "auraflow": given.auraflow,
    "edm-imagenet-64x64-cond-adm.pkl": given.edm,
    "ORT": given.onnx_runtime,
    **dict.fromkeys(["a.bundle", "b.bundle", "plain.bundle", "lskip.bundle"], given.copy_of("digits.bundle")),
}
# Bundles that are trained teachers alone: the shipped one has what these pages fit.
TRAINED = {"calibration.md": ["digits.bundle", "tuned.bundle"]}
NAMES: dict[str, Callable[[], Any]] = {
    "unet": given.text_unet,
    "pixels": lambda: np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3), np.uint8),
    "labels": lambda: np.arange(50) % 10,
}
# What a page's commands need beside Python: a page runs without those that a machine lacks, and the test skips at its end.
NEEDS = {"g++": ("g++", "FEWSTEP_ORT_INCLUDE"), "./embed": ("g++", "FEWSTEP_ORT_INCLUDE"), "nc": ("nc", None)}
NEEDS |= dict.fromkeys(["node", "npm"], ("node", "FEWSTEP_ORT_NODE"))

# Options on the pages that are of other programs.
FOREIGN = {"--help", "--include_ops_by_config", "--ignore-scripts", "--cflags", "--libs", "--nproc-per-node", "--module"}
FOREIGN |= {"--model-repository", "--minutes", "--parts", "--before", "--bundles", "--rehearse"}

FAMILY_FILE = "# src/fewstep/models/families/"  # begins a block that is a file of a checkout

_followed: set[tuple[str, str]] = set()


class Walk:
    """A reader in a directory, who types what a page shows."""

    def __init__(self, here: Path, page: str) -> None:
        self.here, self.names, self.lacking = here, dict[str, Any](), list[str]()
        self.port, self.server = free_port(), None
        self.families = contextlib.ExitStack()  # classes of a reader's own, as long as this walk goes on
        self.has = GIVEN | dict.fromkeys(TRAINED.get(page, []), self.train)
        here.mkdir()

    def train(self, path: Path) -> None:
        """The teacher that the README's first command trains."""
        self.run(f"fewstep train --data mnist5k --out {path.name}", path.parent)

    def block(self, block: Block) -> None:
        assert block.kind in ("sh", "python", "json", "text"), f"blocks in {block.kind} are not run"
        if block.kind == "python":
            self.python(block)
        elif block.kind == "sh" and not block.text.startswith(NO_COMMANDS):
            at = self.here
            for command in block.commands:
                at = self.run(command, at)

    def python(self, block: Block) -> None:
        code = self.instead(block.text)
        if code.startswith(FAMILY_FILE):
            exec(compile(code, "a family", "exec"), names := {"__name__": "own_family"})
            family = names["FAMILY"]
            self.families.enter_context(patch.dict(FAMILIES, {family.kind: family}))
            self.families.enter_context(patch.dict(PIPELINES, family.pipelines))
            return
        self.provide(re.findall(r'"([^"\s]+)"', code), self.here)
        self.names |= {
            name: make() for name, make in NAMES.items() if re.search(rf"\b{name}\b", code) and name not in self.names
        }
        with contextlib.chdir(self.here):
            exec(compile("\n" * block.line + code, "the page", "exec"), self.names)

    def run(self, command: str, at: Path) -> Path:
        """Run one command in a directory; the directory after it."""
        command = self.smaller(command)
        words = shlex.split(command)
        if command.startswith(tuple(NOT_RUN)) or self.lacks(words):
            return at
        self.provide([w for w, before in zip(words[1:], words, strict=False) if before not in ("--out", "-o", ">")], at)
        if words[0] == "cd":
            return at / words[1]
        if command.startswith(tuple(SERVERS)):
            self.serve(command, at)
        elif words[0] == "fewstep":
            done = fewstep(*words[1 : words.index(">") if ">" in words else None], cwd=at)
            if ">" in words:
                (at / words[-1]).write_text(done.stdout)
            self.follow(words[1], done.stdout + done.stderr, at)
        else:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=at, env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        return at

    def follow(self, verb: str, said: str, at: Path) -> None:
        """What a verb names as next, in a copy of the directory, once for each pair of verbs."""
        for command in following(said):
            pair = verb, " ".join(command.split()[:2])
            if pair not in _followed:
                _followed.add(pair)
                copy = shutil.copytree(at, at.with_name(f"{at.name}-next"))
                self.run(command, copy)
                self.stop()
                shutil.rmtree(copy)

    def smaller(self, command: str) -> str:
        command, *into = self.instead(" ".join(command.split())).split(" > ")
        added = [options for begin, options in SMALLER.items() if command.startswith(begin)]
        return self.filled(" > ".join([" ".join([command, *added]), *into]))

    def instead(self, text: str) -> str:
        for words, others in INSTEAD.items():
            text = re.sub(rf"(?<![\w.]){re.escape(words)}(?![\w.])", lambda _, others=others: others, text)
        return self.filled(text)

    def filled(self, text: str) -> str:
        modules = Path(os.environ.get("FEWSTEP_ORT_NODE", "")).resolve().parent
        for name, value in {"here": self.here, "port": self.port, "node_modules": modules}.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    def provide(self, words: list[str], at: Path) -> None:
        """Make what a reader has, where it is named and not there."""
        for word in words:
            path = at
            for part in Path(word.removeprefix("file://")).parts:
                path /= part
                if part in self.has and not path.exists():
                    self.has[part](path)

    def lacks(self, words: list[str]) -> bool:
        lacking = [word for word in words if word in NEEDS and not is_here(*NEEDS[word])]
        self.lacking += lacking
        return bool(lacking)

    def serve(self, command: str, at: Path) -> None:
        self.stop()
        (path, code) = next(server for begin, server in SERVERS.items() if command.startswith(begin))
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=at, env=environment(), stderr=subprocess.PIPE, text=True
        )
        self.server = process, code
        until_ready(process, self.port, path)

    def stop(self) -> None:
        """End the server that runs, as a supervisor does."""
        if self.server:
            process, code = self.server
            self.server = None
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode == code, said


def environment() -> dict[str, str]:
    """Commands of this environment first."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def is_here(program: str, variable: str | None) -> bool:
    return bool(shutil.which(program) and (variable is None or os.environ.get(variable)))


def until_ready(process: subprocess.Popen[str], port: int, path: str | None) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if path is None:
                socket.create_connection(("127.0.0.1", port), 1).close()
            else:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


def own_network(here: Path) -> None:
    """The page on exporting made a bundle of one's own network."""
    bundle = Bundle.load(here / "mine.bundle")
    bundle.verify()
    assert bundle.plan("dpmpp8").rows == 8
    assert load_network(bundle, "teacher").parametrisation.kind == "v"


def own_parts(here: Path) -> None:
    """The page on extending made graphs of modules and of a plan, distilled a class, and proved one of diffusers."""
    assert "euler12.fp32" in Bundle.load(here / "digits.bundle").manifest.graphs
    assert {"dpmpp6.fp32", "heun18.fp32"} <= Bundle.load(here / "arm.bundle").manifest.graphs.keys()
    assert Bundle.load(here / "sound.bundle").manifest.graphs.keys() == {"heun4.fp32"}
    assert Bundle.load(here / "temporal.bundle").manifest.denoisers["sid1"].kind == "Temporal"
    record = Bundle.load(here / "auraflow.bundle").manifest.records.components["teacher"]
    assert isinstance(record, Imported)
    assert record.proof["against"] == "AuraFlowPipeline"


def own_images(here: Path) -> None:
    """The page on training trained by its own configuration, from a file of options and on arrays, further, and distilled."""
    assert load_network(Bundle.load(here / "photos.bundle"), "teacher").patch == 1
    assert Bundle.load(here / "own.bundle").manifest.default == "sid1"
    assert Bundle.load(here / "v.bundle").manifest.denoisers["teacher"].parametrisation.kind == "v"
    pushed = Bundle.load(here / "push.bundle").manifest
    assert {"teacher", "teacher_tuned", "sid1"} <= pushed.denoisers.keys()
    assert [column.unit for column in pushed.output.columns] == ["cm", "m"]
    assert np.load(here / "ways.npy").shape == (10, 8, 2)


TRUTHS: dict[str, Callable[[Path], None]] = {
    "export.md": own_network,
    "extending.md": own_parts,
    "training.md": own_images,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    walk = Walk(tmp_path / "fresh", page.name)
    try:
        for block in blocks(page):
            try:
                walk.block(block)
            except BaseException as error:
                error.add_note(f"{page.name}, block at line {block.line}")
                raise
    finally:
        walk.stop()
        walk.families.close()
    if page.name in TRUTHS:
        TRUTHS[page.name](walk.here)
    if walk.lacking:
        pytest.skip(f"not run, for want of what .ci/run brings: {', '.join(dict.fromkeys(walk.lacking))}")


def test_a_class_of_ones_own_is_one_file(tmp_path: Path) -> None:
    texts = [block.text for block in blocks(ROOT / "docs" / "extending.md") if block.text.startswith(FAMILY_FILE)]
    shutil.copytree(ROOT / "src" / "fewstep", tmp_path / "fewstep", ignore=shutil.ignore_patterns("__pycache__"))
    for text in texts:
        (tmp_path / text.splitlines()[0].removeprefix("# src/")).write_text(text)
    code = "from fewstep.models import families; print(families.__file__, *families.FAMILIES)"
    told = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=told, cwd=tmp_path, capture_output=True, text=True, check=True)
    place, *known = done.stdout.split()
    assert tmp_path in Path(place).parents
    assert set(known) == {*FAMILIES, "Temporal", "AuraFlowTransformer2DModel"}


def test_the_page_on_extending_names_every_field_of_a_family() -> None:
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    names = [field.name for kind in (Family, Asked) for field in fields(kind)]
    assert not [name for name in (*names, *Pipeline._fields) if f"`{name}" not in text]


def test_what_is_not_run_is_on_the_pages() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.kind == "sh"]
    typed = [" ".join(command.split()) for block in found for command in block.commands]
    for begin in NOT_RUN:
        assert any(command.startswith(begin) for command in typed), begin
    for begin in NO_COMMANDS:
        assert sum(block.text.startswith(begin) for block in found) == 1, begin


def test_options_that_pages_name_exist() -> None:
    there = set(options(get_command(app))) | FOREIGN
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", page.read_text("utf-8"))))
        assert named <= there, f"{page.name} names {named - there}"


def options(command: Any) -> Iterator[str]:
    """Of a command of click and those below it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "CONTRIBUTING.md", *PAGES]:
        for target, _, section in re.findall(r"\]\(([^)#:]*)(#([^)]*))?\)", page.read_text("utf-8")):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name} links to {target}"
            titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE) if section else []
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert not section or section in anchors, f"{page.name} links to {target}#{section}"
