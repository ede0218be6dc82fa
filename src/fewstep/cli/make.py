"""Verbs that make models: train, encode, import, distill."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Imported
from fewstep.cli.app import BundlePath, Inputs, Json, Replace, app, editable, finish, finite, free_name, given_arrays, telling
from fewstep.cli.verb import verb
from fewstep.system.console import SPEAKS, Paced, clock, say, show, track
from fewstep.system.places import MANIFEST
from fewstep.trainer.configs import SidConfig, TeacherConfig, TuneConfig

__all__ = ["distill", "import_checkpoint", "train"]

PANEL = "Make a network"
UPDATES_OF_SID = 5  # of a teacher, that an update of a distillation computes as much as: see docs/training.md, What it takes

Log = Annotated[
    Path | None,
    typer.Option("--log-to", help="A directory for TensorBoard and sheets of samples.", show_default="none", hidden=True),
]
License = Annotated[str | None, typer.Option(help="Of what goes in, in words, for the card.", show_default="not stated")]


def _by_start(options: Mapping[str, Any]) -> type:
    return TuneConfig if options["start"] else TeacherConfig


@verb(
    app,
    panel=PANEL,
    configs=[TeacherConfig, TuneConfig],
    visible=["iterations", "batch", "lr", "kind", "seed"],
    choose=_by_start,
)
def train(
    config: TuneConfig,
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("digits.bundle"),
    data: Annotated[
        str,
        typer.Option(
            help="mnist5k, a folder of images (one subfolder per class), a data set, its URL, what encode wrote, or arrays in "
            ".npz or .parquet."
        ),
    ] = "mnist5k",
    inputs: Inputs = None,
    start: Annotated[
        str | None, typer.Option(help="A network of the bundle to go on from: fine-tuning.", show_default="a new network")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the network.", show_default="teacher; START_tuned", hidden=True)] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels for a folder's images.", show_default=False, hidden=True)
    ] = None,
    license: License = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train a teacher on real samples and start a bundle with it. Stopped, it goes on where it was.

    With --inputs, the label of a sample is the row of what it is made from.
    """
    from fewstep.data.inputs import inputs_of
    from fewstep.trainer.batches import examples_like, open_examples
    from fewstep.trainer.teacher import train_teacher

    named = name or (f"{start}_tuned" if start else "teacher")
    origin, given = _origin(out, start, named), given_arrays(inputs)
    if origin:
        if resolution:
            raise ValueError(f"images are resized to those that {out} makes; leave --resolution out")
        samples = examples_like(origin, data, rows=given is not None, track=track)
    else:
        samples = open_examples(data, resolution=resolution, inputs=inputs_of(given) if given else None, track=track)
    pace = Paced(telling(samples))
    about: dict[str, Any] = {"start": start, "name": named, "arrays": given, "license": license, "log": log}
    bundle = train_teacher(out, samples, config, **about, track=pace)
    if SPEAKS:  # the first process alone
        bundle = _seen(bundle)
    result = {"bundle": str(out), "networks": list(bundle.manifest.denoisers), "graphs": list(bundle.manifest.graphs)}
    rows = str(inputs) if inputs else data if Path(data).suffix == ".npz" else None
    following = _after_training(out, bundle, data, pace.seconds, config.batch, teacher=named, rows=rows)
    finish(result, as_json, ", or: ".join(following))


def _origin(out: Path, start: str | None, name: str) -> Bundle | None:
    """The bundle that has the network to start from; None for a new one.

    Raises ValueError for a bundle without it, or that has the name already; and for a teacher whose training has ended, though
    what follows may have been stopped.
    """
    if start:
        loaded = editable(out)
        loaded.pick("network", start, loaded.manifest.denoisers)
        free_name(loaded, name, name, replace=False)
        return loaded
    if (out / MANIFEST).is_file() and (bundle := Bundle.load(out)).manifest.denoisers:
        following = "inspect" if bundle.manifest.graphs else "export"
        raise ValueError(f"{out} is trained already; see it with: fewstep {following} {out}, or choose another --out")
    return None


def _seen(bundle: Bundle) -> Bundle:
    """With the graph of the default plan, which images can be made by, where what writes graphs is installed."""
    try:
        from fewstep.exporter.export import export_graphs
    except ImportError as missing:
        say(f"no graph was written, for {missing.name} is not installed")
        return bundle
    plan = bundle.manifest.default
    assert plan
    return export_graphs(bundle, [plan], ["fp32"], report=say, track=track)


def _after_training(
    out: Path,
    bundle: Bundle,
    data: str,
    seconds: float | None,
    batch: int,
    *,
    teacher: str = "teacher",
    rows: str | None = None,
) -> list[str]:
    """What one does next with a teacher, and how long the longest of it takes.

    seconds: of an update of `batch` samples. rows: a file with what samples can be made from, where that cannot be drawn.
    """
    from fewstep.data.arrays import is_arrays
    from fewstep.trainer.batches import is_of_images

    signature, distillation = bundle.manifest.signature, f"fewstep distill {out} --steps 1"
    drawn = all(each.choices is not None for each in signature.inputs)
    given = "" if drawn or rows is None else f" --inputs {rows}"
    distillation += f" --teacher {teacher}" if teacher != "teacher" else ""
    distillation += f"{given} --guidance 1" if signature.inputs and not signature.guidable else given
    if seconds is not None:
        config = SidConfig()
        expected = config.iterations * UPDATES_OF_SID * seconds * config.batch / batch
        distillation += f" (about {clock(expected)} here)"
    seen = f"fewstep generate {out}{given}" if drawn else f"fewstep generate {out}{given} --samples 10"
    if not drawn and rows is None:
        distillation, seen = "", f"fewstep check {out}"
    if not bundle.manifest.graphs:
        return [f"fewstep export {out}", *filter(None, [distillation])]
    evaluated = is_arrays(Path(data)) or (signature.labels is not None and is_of_images(data))
    return [seen, *filter(None, [f"fewstep compare {out} --data {data}" if evaluated else "", distillation])]


@verb(app, panel=PANEL)
def encode(
    data: Annotated[
        str, typer.Argument(help="A folder of images (one subfolder per class), or a data set.", show_default=False)
    ],
    autoencoder: Annotated[Path, typer.Option(help="Its directory, as diffusers saved it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The directory to write.")] = Path("latents"),
    resolution: Annotated[int | None, typer.Option(help="Side in pixels for a folder's images.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are encoded at once.")] = 16,
    as_json: Json = False,
) -> None:
    """Encode images with an autoencoder, once, for a network that works on its latents."""
    from fewstep.data.latents import encode_images

    encode_images(data, autoencoder, out, resolution=resolution, batch=batch, note=say, track=track)
    finish({"latents": str(out)}, as_json, f"fewstep train --data {out} --sigma-data 1 --out {out.name}.bundle")


@verb(app, "import", panel=PANEL)
def import_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(
            help="A pipeline that diffusers saved, a network with a scheduler beside it, a single file, or weights of an ADM "
            "network of EDM.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("imported.bundle"),
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt's embedding.", show_default="the tokenizer's")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels, of a network that takes any.", show_default="the checkpoint's")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of its own scheduler in the plan.", show_default="its pipeline's, up to 100"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Guidance scale of the plan, or of a network that embeds it (LCM).",
            show_default="none, or the pipeline's",
        ),
    ] = None,
    null_class: Annotated[
        bool, typer.Option("--null-class", help='Trained without a class, too: the last class of a U-Net means "none".')
    ] = False,
    variant: Annotated[str | None, typer.Option(help="Of its files, such as fp16.", show_default="the one there is")] = None,
    pipeline: Annotated[
        Path | None, typer.Option(help="For a single file: a directory with its configurations.", show_default=False)
    ] = None,
    license: License = None,
    as_json: Json = False,
) -> None:
    """Start a bundle with the network of a checkpoint and its own scheduler as a plan, and prove that both make what diffusers'
    pipeline makes. Runs no code of it.
    """
    from fewstep.artifact.card import proven
    from fewstep.models.importer import ImportOptions, import_teacher

    with suppress(ImportError):  # it warns of packages that it lacks and nothing here needs
        from transformers.utils import logging

        logging.set_verbosity_error()
    options = ImportOptions(tokens, resolution, null_class, steps, guidance, variant, license, pipeline)
    bundle, proof = import_teacher(source, out, options)
    manifest = bundle.manifest
    about, parametrisation = manifest.records.components["teacher"], manifest.denoisers["teacher"].parametrisation
    assert isinstance(about, Imported)
    for note in about.notes:
        say(note)
    show(f"it estimates {parametrisation.kind}; {proven(about)}")
    plan = str(manifest.default)
    show(f"plan {plan}: {bundle.plan(plan).nfe} network calls for an image")
    result = {"bundle": str(out), "plan": plan, "parametrisation": parametrisation.model_dump(), "notes": about.notes}
    finish(result | {"proof": proof.dump(), "max_error": proof.max_error}, as_json, f"fewstep export {out}")


@verb(app, panel=PANEL, configs=[SidConfig], visible=["steps", "iterations", "guidance", "plan", "seed"])
def distill(
    config: SidConfig,
    bundle: BundlePath,
    name: Annotated[str | None, typer.Option(help="Name of the new network and plan.", show_default="sid<steps>")] = None,
    data: Annotated[
        str | None, typer.Option(help="Real samples for an adversarial term, as for train.", show_default="none is read")
    ] = None,
    validate: Annotated[
        str | None, typer.Option(help="Samples that evaluate the run: the best weights are kept.", show_default="the last are")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--samples", min=1, help="How many of --data.", show_default="200", hidden=True)
    ] = None,
    inputs: Inputs = None,
    teacher: Annotated[str, typer.Option(help="The network to learn from.", hidden=True)] = "teacher",
    license: Annotated[str | None, typer.Option(help="Of what goes in, for the card.", hidden=True)] = None,
    replace: Replace = False,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Distil the teacher into a generator of 1 to 4 steps (SiD). Stopped, it goes on where it was.

    Reads no sample, unless --data or --validate names some.
    """
    loaded, some, metric = editable(bundle), None, None
    steps = config.steps or (loaded.plan(config.plan).rows if config.plan else 1)
    name = free_name(loaded, name, f"sid{steps}", replace=replace)
    if count and not data:
        raise ValueError("--samples counts real samples, and none are read; give some to --data")
    from fewstep.trainer.batches import examples_like
    from fewstep.trainer.sid import distill

    given = given_arrays(inputs)
    if data:
        some = examples_like(loaded, data, rows=given is not None, track=track).about(count or 200)
    if validate:
        from fewstep.data import images_like
        from fewstep.data.arrays import arrays_like, is_arrays
        from fewstep.evaluation.validate import validator

        arrays = is_arrays(Path(validate))
        evaluating = arrays_like(loaded, validate) if arrays else images_like(loaded, validate, track=track)
        metric = validator(loaded, evaluating, arrays=given, track=telling(evaluating))
    about: dict[str, Any] = {"teacher": teacher, "license": license, "validated_on": validate, "log": log}
    extras: dict[str, Any] = {"samples": some, "validate": metric, "arrays": given}
    done = distill(loaded, name, config, **about, **extras, track=telling(some))
    record = done.manifest.records.components[name]
    looks = [] if isinstance(record, Imported) else record.metrics
    result = {"bundle": str(bundle), "plan": name, "metrics": [look.model_dump() for look in looks]}
    if looks:
        best = min(looks, key=lambda look: look.value)
        show(f"kept the weights of update {best.iteration}, at distance {best.value:.3g}, of {len(looks)} looks")
    finish(result, as_json, f"fewstep export {bundle} --plan {name}")
