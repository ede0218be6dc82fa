"""Verbs that make models: train, import, distill."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import (
    BundlePath,
    Embeddings,
    Json,
    MixedPrecision,
    Replace,
    Seed,
    app,
    editable,
    finish,
    finite,
    free_name,
    telling,
)
from fewstep.system.console import SPEAKS, Paced, clock, say, show, track
from fewstep.system.json_object import read_object
from fewstep.system.places import MANIFEST

__all__ = ["distill", "import_checkpoint", "train"]


UPDATES_OF_SID = 5  # of a teacher, that an update of a distillation computes as much as: see docs/training.md, What it takes

Log = Annotated[
    Path | None, typer.Option("--log-to", help="A directory for TensorBoard and sheets of samples.", show_default="none")
]


Accumulate = Annotated[int, typer.Option(help="Parts that a batch is computed in, one after the other, for memory.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Forget activations and compute them again, for memory.")]
Shard = Annotated[bool, typer.Option("--shard", help="Every process keeps a share of the weights (FSDP2), for memory.")]
License = Annotated[str | None, typer.Option(help="Of what goes in, in words, for the card.", show_default="not stated")]
SaveEvery = Annotated[int, typer.Option(help="Updates between two checkpoints.")]


@app.command(rich_help_panel="Make a network")
def train(
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("digits.bundle"),
    data: Annotated[
        str,
        typer.Option(help="mnist5k, a folder of images (one subfolder per class), a data set, its URL, or what encode wrote."),
    ] = "mnist5k",
    embeddings: Embeddings = None,
    steps: Annotated[int, typer.Option(help="Updates of the network.")] = 2000,
    batch: Annotated[int, typer.Option(help="Images per update, over all processes.")] = 32,
    lr: Annotated[float, typer.Option(callback=finite, help="Peak learning rate; --schedule says how it falls.")] = 3e-3,
    tau: Annotated[
        float | None,
        typer.Option(help="Lskip: weight of the plain loss; 1 switches Lskip off.", show_default="0.99; 1 for a flow"),
    ] = None,
    skip: Annotated[int, typer.Option(help="Lskip: levels of 1000 that it looks ahead.")] = 9,
    kind: Annotated[str, typer.Option(help="What the network estimates: edm, eps, v or flow.")] = "edm",
    network: Annotated[
        Path | None, typer.Option(help="Its configuration, a config.json of diffusers.", show_default="a small UNet2DModel")
    ] = None,
    patch: Annotated[int, typer.Option(min=1, help="Side of the squares of pixels that are folded into channels.")] = 2,
    sigma_data: Annotated[
        float, typer.Option(callback=finite, help="Standard deviation of the data, of edm networks; about 1 for latents.")
    ] = 0.5,
    shared: Annotated[bool, typer.Option("--shared", help="Lskip: its second noise is the first one, not drawn anew.")] = False,
    curriculum: Annotated[
        float | None, typer.Option(help="CLTS: width of its normal, such as 0.3.", show_default="none")
    ] = None,
    schedule: Annotated[str, typer.Option(help="linear, constant, momentum-decay or compensation-only.")] = "linear",
    resolution: Annotated[int | None, typer.Option(help="Side in pixels for a folder's images.", show_default=False)] = None,
    precision: MixedPrecision = "auto",
    accumulate: Accumulate = 1,
    checkpointing: Checkpointing = False,
    shard: Shard = False,
    compile: Annotated[bool, typer.Option("--compile", help="By torch.compile.")] = False,
    save_every: SaveEvery = 50,
    license: License = None,
    log: Log = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a teacher on real images and start a bundle with it. Stopped, it goes on where it was.

    The learning rate stays, falls to 0 with `linear`, or falls with Adam's momentum with `momentum-decay`. With --embeddings,
    the label of an image is the row of its prompt.
    """
    from fewstep.data.embeddings import condition_of, read_embeddings
    from fewstep.trainer.batches import open_examples
    from fewstep.trainer.teacher import TeacherConfig, train_teacher

    tau = 1.0 if tau is None and kind == "flow" else 0.99 if tau is None else tau
    config = TeacherConfig(
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        kind=cast(Any, kind),
        network=read_object(network) if network else None,
        patch=patch,
        sigma_data=sigma_data,
        tau=tau,
        skip=skip,
        shared=shared,
        curriculum=curriculum,
        schedule=cast(Any, schedule),
        precision=precision,
        accumulate=accumulate,
        checkpointing=checkpointing,
        shard=shard,
        compile=compile,
        checkpoint_every=save_every,
    )
    given = read_embeddings(embeddings) if embeddings else None
    images = open_examples(data, resolution=resolution, embeddings=condition_of(given) if given else None, track=track)
    _refuse_trained(out)
    pace = Paced(telling(images))
    bundle = train_teacher(out, images, config, embeddings=given, license=license, log=log, track=pace)
    if SPEAKS:  # the first process alone
        bundle = _seen(bundle)
    result = {"bundle": str(out), "networks": list(bundle.manifest.networks), "graphs": list(bundle.manifest.graphs)}
    finish(result, as_json, ", or: ".join(_after_training(out, bundle, data, pace.seconds, batch)))


def _refuse_trained(out: Path) -> None:
    """Raises ValueError for a teacher whose training has ended, though what follows may have been stopped."""
    if (out / MANIFEST).is_file() and (bundle := Bundle.load(out)).manifest.networks:
        following = "inspect" if bundle.manifest.graphs else "export"
        raise ValueError(f"{out} is trained already; see it with: fewstep {following} {out}, or choose another --out")


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


def _after_training(out: Path, bundle: Bundle, data: str, seconds: float | None, batch: int) -> list[str]:
    """What one does next with a teacher, and how long the longest of it takes. seconds: of an update of `batch` images."""
    from fewstep.data.latents import is_latents
    from fewstep.trainer.sid_config import SidConfig

    kind, distillation = bundle.manifest.condition.kind, f"fewstep distill {out} --steps 1"
    if seconds is not None:
        config = SidConfig()
        expected = config.iterations * UPDATES_OF_SID * seconds * config.batch / batch
        distillation += f" (about {clock(expected)} here)"
    if not bundle.manifest.graphs:
        return [f"fewstep export {out}", distillation]
    if kind == "embeddings":
        return [f"fewstep check {out}", distillation]
    judged = kind == "labels" and "://" not in data and not is_latents(Path(data))
    seen = [f"fewstep generate {out} --out grid.png"]
    return [*seen, *([f"fewstep compare {out} --data {data}"] if judged else []), distillation]


@app.command(rich_help_panel="Make a network")
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


@app.command("import", rich_help_panel="Make a network")
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
    config: Annotated[
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
    options = ImportOptions(tokens, resolution, null_class, steps, guidance, variant, license, config)
    bundle, proof = import_teacher(source, out, options)
    manifest = bundle.manifest
    about, parametrisation = manifest.provenance.networks["teacher"], manifest.networks["teacher"].parametrisation
    for note in about["notes"]:
        say(note)
    show(f"it estimates {parametrisation.kind}; {proven(about)}")
    plan = str(manifest.default)
    show(f"plan {plan}: {bundle.plan(plan).nfe} network calls for an image")
    result = {"bundle": str(out), "plan": plan, "parametrisation": parametrisation.model_dump(), "notes": about["notes"]}
    finish(result | {"proof": proof.dump(), "max_error": proof.max_error}, as_json, f"fewstep export {out}")


@app.command(rich_help_panel="Make a network")
def distill(
    bundle: BundlePath,
    steps: Annotated[
        int | None, typer.Option(help="Network calls per image of the generator, 1 to 4.", show_default="1, or those of --plan")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new network and plan.", show_default="sid<steps>")] = None,
    iterations: Annotated[int, typer.Option(help="Updates of the generator.")] = 800,
    batch: Annotated[int, typer.Option(help="Images per update, over all processes.")] = 32,
    lr: Annotated[
        float | None, typer.Option(callback=finite, help="Learning rate.", show_default="6e-4, or 3e-4 for several steps")
    ] = None,
    alpha: Annotated[float, typer.Option(callback=finite, help="SiD's alpha.")] = 1.0,
    guidance: Annotated[float, typer.Option(callback=finite, help="Weight the teacher is guided with; 1 is none.")] = 1.2,
    lo: Annotated[float, typer.Option(callback=finite, help="Guide it at noise levels above this ...")] = 0.0,
    hi: Annotated[float | None, typer.Option(help="... and up to this.", show_default="all that are higher")] = None,
    mode: Annotated[
        str, typer.Option(help="Where guidance acts: teacher, lsg, zero (Zero-CFG) or anti (Anti-CFG).")
    ] = "teacher",
    match: Annotated[str, typer.Option(help="What is matched: uniform, every step's output, or final.")] = "uniform",
    plan: Annotated[
        str | None,
        typer.Option(
            help="A sampler to begin as, such as a table that calibrate fitted, whose steps it keeps; its end is matched.",
            show_default="few steps, each with noise drawn anew",
        ),
    ] = None,
    start: Annotated[str, typer.Option(help="The network to start as, such as a generator of more steps.")] = "teacher",
    data: Annotated[
        str | None, typer.Option(help="Real images for an adversarial term, as for train.", show_default="none is read")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many of them.", show_default="200")] = None,
    validate: Annotated[
        str | None, typer.Option(help="Images that judge the run: the best weights are kept.", show_default="the last are")
    ] = None,
    validate_every: Annotated[int, typer.Option(help="Updates between two looks.")] = 25,
    patience: Annotated[int, typer.Option(help="Looks without a better one that end the run; 0: none does.")] = 0,
    embeddings: Embeddings = None,
    precision: MixedPrecision = "auto",
    accumulate: Accumulate = 1,
    checkpointing: Checkpointing = False,
    shard: Shard = False,
    save_every: SaveEvery = 50,
    license: License = None,
    replace_it: Replace = False,
    log: Log = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Distil the teacher into a generator of 1 to 4 steps (SiD). Stopped, it goes on where it was.

    Reads no image, unless --data or --validate names some.
    """
    loaded, some, metric = editable(bundle), None, None
    steps = steps or (loaded.plan(plan).rows if plan else 1)
    name = free_name(loaded, name, f"sid{steps}", replace=replace_it)
    if images and not data:
        raise ValueError("--images counts real images, and none are read; give some to --data")
    from fewstep.data import images_like
    from fewstep.data.embeddings import read_embeddings
    from fewstep.data.latents import is_latents
    from fewstep.trainer.batches import open_examples
    from fewstep.trainer.sid import distill
    from fewstep.trainer.sid_config import SidConfig

    chosen: dict[str, Any] = {
        "iterations": iterations,
        "batch": batch,
        "alpha": alpha,
        "guidance": guidance,
        "lo": lo,
        "hi": hi,
        "mode": mode,
        "match": match,
        "plan": plan,
        "start": start,
        "seed": seed,
        "validate_every": validate_every,
        "patience": patience,
        "precision": precision,
        "accumulate": accumulate,
        "checkpointing": checkpointing,
        "shard": shard,
        "checkpoint_every": save_every,
    }
    config = SidConfig(steps=steps, lr=lr, **chosen)
    if data:
        made = loaded.manifest
        size = None if is_latents(Path(data)) else made.image.height
        some = open_examples(data, resolution=size, embeddings=made.condition if embeddings else None, track=track).about(
            images or 200
        )
    if validate:
        from fewstep.evaluation.validate import validator

        judging = images_like(loaded, validate, track=track)
        metric = validator(loaded, judging, track=telling(judging))
    given_embeddings = read_embeddings(embeddings) if embeddings else None
    about = {"license": license, "validated_on": validate}
    extras: dict[str, Any] = {"images": some, "validate": metric, "embeddings": given_embeddings, "provenance": about}
    looks = distill(loaded, name, config, log=log, track=telling(some), **extras).manifest.provenance.networks[name]["metrics"]
    result: dict[str, Any] = {"bundle": str(bundle), "plan": name, "metrics": looks}
    if looks:
        best = min(looks, key=lambda look: look["value"])
        show(f"kept the weights of update {best['iteration']}, at distance {best['value']:.3g}, of {len(looks)} looks")
    finish(result, as_json, f"fewstep export {bundle} --plan {name}")
