"""Verbs of production: serve, bench, doctor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import BundlePath, Json, app, finish, finite, size, whole_numbers
from fewstep.cli.verb import verb
from fewstep.system.console import say, show, table, track
from fewstep.system.places import check_file

__all__ = ["bench", "doctor", "serve"]

PANEL = "Run it in production"


@verb(app, panel=PANEL)
def serve(
    bundles: Annotated[list[str], typer.Argument(help="Bundles, each PATH or NAME=PATH.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 or :: for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan to serve; repeat for more.", show_default="all exported")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Precision of the graphs.", show_default="by backend")] = None,
    backend: Annotated[str | None, typer.Option(help="tensorrt, cuda or cpu.", show_default="the fastest here")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each plan.", show_default="what is fastest", hidden=True)
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Samples in a batch.")] = 32,
    max_samples: Annotated[int, typer.Option(min=1, max=1024, help="Samples in a request.")] = 64,
    wait_ms: Annotated[
        float, typer.Option(callback=finite, min=0, max=60_000, help="How long an idle server waits for more.", hidden=True)
    ] = 0.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Samples in each queue; beyond, 503.", hidden=True)] = 256,
    timeout: Annotated[
        float, typer.Option(callback=finite, min=0.001, max=86_400, help="Seconds a request waits if it names none.")
    ] = 10.0,
    admin: Annotated[bool, typer.Option("--admin", help="Allow loading and rolling back over HTTP.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name this server is known by; repeat for more.", show_default="localhost")
    ] = None,
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol, /generate, /metrics, a playground at /.

    FEWSTEP_API_KEY in the environment asks every request but probes for that key.
    """
    from fewstep.runtime.server.app import Policy
    from fewstep.runtime.server.repository import Options, Repository
    from fewstep.runtime.server.serve import serve as run

    named = [tuple(b.split("=", 1)) if "=" in b else (Bundle.load(b).manifest.name, b) for b in bundles]
    options = Options(tuple(plan or ()), precision, backend, threads, max_batch, max_samples, wait_ms, max_waiting)
    repository = Repository([(name, Path(path)) for name, path in named], options)
    policy = Policy(timeout, os.environ.get("FEWSTEP_API_KEY"), admin)
    run(repository, policy, host=host, port=port, names=allow_host or (), report=say)


@verb(app, panel=PANEL)
def bench(
    bundle: BundlePath,
    plan: Annotated[list[str] | None, typer.Option(help="A plan; repeat for more.", show_default="the default")] = None,
    precision: Annotated[str | None, typer.Option(help="Precision of the graph.", show_default="by backend")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="A backend; repeat for more.", show_default="all here")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="what is fastest")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(callback=finite, min=0.01, help="How long each batch size runs.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="A PNG of the latencies.", show_default="none")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput of every backend that runs here, bucket by bucket."""
    from fewstep.runtime.bench import measure, save_plot
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.selection import PREFERRED

    if plot is not None:
        import matplotlib  # noqa: F401  (measuring takes a while: say now what is missing)

        check_file(plot, ".png")
    loaded, results, buckets = Bundle.load(bundle), {}, whole_numbers("batch sizes", batch)
    plans: list[str | None] = [*plan] if plan else [None]
    for name in plans:
        for where in backend or PREFERRED:
            try:
                generator = Generator(
                    loaded,
                    plan=name,
                    precision=precision,
                    backend=where,
                    threads=threads,
                    buckets=buckets,
                )
            except ValueError as error:
                if backend or where == PREFERRED[-1]:
                    raise
                say(f"left out: {error}")
                continue
            title = f"{generator.graph} on {where}"
            results[title] = measure(generator, seconds=seconds, track=track)
            say(f"{title}: {generator.reason}")
    for title, rows in results.items():
        table(title, ["batch", "first ms", "p50 ms", "p90 ms", "p99 ms", "samples/s", "memory"], [_cells(row) for row in rows])
    if plot is not None:
        save_plot(plot, results)
        show(f"wrote {plot}")
    finish({"bundle": str(bundle), "results": results}, as_json)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A batch size's measurements, as they are shown."""
    times = (f"{row[key]:.2f}" for key in ("first_ms", "p50_ms", "p90_ms", "p99_ms"))
    return (str(row["batch"]), *times, f"{row['samples_per_second']:.0f}", size(row["peak_memory_bytes"]))


@verb(app, panel=PANEL)
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle to try on every backend.", show_default="none")] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed for running, what conflicts, what each backend would do here, and the fix.

    Exit code 1 when something cannot work.
    """
    from fewstep.runtime.doctor import examine, here, try_backends
    from fewstep.system.machine import this_machine

    findings = list(examine(here(this_machine())))
    if bundle is not None:
        findings += try_backends(Bundle.load(bundle))
    table("doctor", ["", "about", "found", "fix"], [tuple(f) for f in findings])
    finish({"findings": [f._asdict() for f in findings]}, as_json)
    if any(f.verdict == "bad" for f in findings):
        raise typer.Exit(1)
