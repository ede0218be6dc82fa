"""Verbs that hand a bundle to servers which others keep: deploy triton, deploy ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import BundlePath, Json, app, finish, finite, precisions
from fewstep.cli.verb import verb
from fewstep.system.console import show

__all__ = ["ray", "triton"]

PANEL = "Run it in production"

deploy = typer.Typer(help="Write a bundle as NVIDIA Triton or Ray Serve take it.", no_args_is_help=True)
app.add_typer(deploy, name="deploy", rich_help_panel=PANEL)

Plans = Annotated[list[str] | None, typer.Option("--plan", help="A plan; repeat for more.", show_default="the default")]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="Precision of the graphs.", show_default="by device")]
MaxBatch = Annotated[int, typer.Option(min=1, max=1024, help="Samples in a batch.")]
WaitMs = Annotated[
    float, typer.Option(callback=finite, min=0, max=60_000, help="How long a request may wait for others to join.", hidden=True)
]
MaxWaiting = Annotated[int, typer.Option(min=1, help="Requests in the queue; beyond, they are refused.", hidden=True)]
Timeout = Annotated[
    float, typer.Option(callback=finite, min=0.001, max=86_400, help="Seconds a request waits if it names none.")
]


@verb(deploy, panel=PANEL)
def triton(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The model repository; other models in it stay.")] = Path("model_repository"),
    plan: Plans = None,
    device: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    precision: PrecisionName = None,
    max_batch: MaxBatch = 32,
    wait_ms: WaitMs = 2.0,
    max_waiting: MaxWaiting = 256,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Write a Triton model repository: an ensemble for each plan, with dynamic batching and warm-up for every batch size.

    TensorRT engines of the bundle are taken where there are any, one for every GPU architecture; else the ONNX graph.
    """
    from fewstep.runtime.deploy.triton import TritonSettings, write_repository

    if device not in ("gpu", "cpu"):
        raise ValueError(f"device is gpu or cpu, got {device!r}")
    loaded = Bundle.load(bundle)
    wanted = precisions(precision)[0] if precision else None
    settings = TritonSettings(cast(Any, device), wanted, max_batch, wait_ms, max_waiting, timeout)
    names = write_repository(loaded, out, _plans(loaded, plan), settings)
    for name in names:
        show(f"{out / name}: an ensemble of {name}.noise and {name}.sampler")
    finish({"out": str(out), "models": names}, as_json, f"tritonserver --model-repository {out}")


@verb(deploy, panel=PANEL)
def ray(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("serve.yaml"),
    plan: Plans = None,
    precision: PrecisionName = None,
    backend: Annotated[str | None, typer.Option(help="tensorrt, cuda or cpu.", show_default="the fastest there")] = None,
    min_replicas: Annotated[int, typer.Option(min=0, help="Replicas without load.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Replicas under load.")] = 4,
    cpus: Annotated[float, typer.Option(callback=finite, min=0.1, help="CPUs of a replica.")] = 1.0,
    gpus: Annotated[float, typer.Option(callback=finite, min=0, help="GPUs of a replica; parts of one are fine.")] = 0.0,
    max_batch: MaxBatch = 32,
    wait_ms: WaitMs = 0.0,
    max_waiting: MaxWaiting = 256,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Write a Ray Serve configuration: replicas with the HTTP interface of `fewstep serve`, scaled with the load."""
    from fewstep.runtime.deploy.ray import RaySettings, Replicas, write_config

    loaded = Bundle.load(bundle)
    wanted = precisions(precision)[0] if precision else None
    settings = RaySettings(
        bundle=bundle,
        plans=tuple(_plans(loaded, plan)),
        precision=wanted,
        backend=backend,
        threads=max(1, int(cpus)),
        max_batch=max_batch,
        wait_ms=wait_ms,
        max_waiting=max_waiting,
        timeout_s=timeout,
    )
    write_config(out, settings, Replicas(least=min_replicas, most=max_replicas, cpus=cpus, gpus=gpus))
    show(f"wrote {out}; the bundle must lie at {loaded.root} on every node")
    finish({"out": str(out)}, as_json, f"serve run {out}")


def _plans(bundle: Bundle, plans: list[str] | None) -> list[str]:
    """The plans that were named, else the default. Raises ValueError for none."""
    if plans or bundle.manifest.default:
        return plans or [cast(str, bundle.manifest.default)]
    raise ValueError(f"{bundle.root.name} has no default plan; name one with --plan")
