"""One self-contained HTML page about a compared bundle, for whoever decides what ships. Nothing in it is loaded or executed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Fitted, Searched
from fewstep.calibration.methods import METHODS
from fewstep.calibration.teacher import Teacher
from fewstep.data import images_like
from fewstep.data.conditions import Conditions
from fewstep.evaluation import charts
from fewstep.evaluation.comparison import FARTHEST, NAMED, Comparison, Evaluated, farthest, read
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.plan import Plan, trajectory
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.system.picture import grid
from fewstep.system.places import check_file, writing
from fewstep.system.progress import Track, silent

__all__ = ["write_report"]

WAY = "What the network takes the image for at each evaluation, from one noise."
TABLES = "Where they evaluate the network, and how each row weighs the estimates made so far."
# Titles of the scores that a table shows, their names, decimals.
COLUMNS = {
    "frechet": (("Frechet distance", "frechet", 2), ("class accuracy", "accuracy", 3), ("recall", "recall", 3)),
    "energy": (
        ("energy distance", "energy", 4),
        ("sliced Wasserstein", "sliced_wasserstein", 3),
        ("means off", "mean", 3),
        ("deviations off", "std", 3),
        ("correlations off", "correlation", 3),
    ),
}
SAME = 0.99  # cosine similarity where guidance does nothing
SHOWN = 10  # images of a sampler, estimates of a trajectory
Pictures = NDArray[np.uint8]


def write_report(bundle: Bundle, out: Path, *, track: Track = silent) -> None:
    """Write the page: what ships, images at equal noise, quality, trajectories, fitted tables, searched intervals.

    Args:
        bundle: compared, of which the page speaks.
        out: the page, .html.
        track: shows progress.

    Raises:
        ValueError: where the bundle's samplers were not compared, or no file can be written at out.
        OSError: where it cannot be written.
    """
    check_file(out, ".html")
    comparison = read(bundle)
    names = sorted(comparison.plans, key=lambda name: -comparison.plans[name].nfe)
    pictures = bundle.manifest.output.pictures
    drawn = track(range(len(names)), "draw samplers") if pictures else ()
    parts = [_real(bundle, comparison)] if pictures else []
    parts += [_sampler(bundle, comparison, names[i]) for i in drawn]
    sections = {
        "samples": "".join(parts),
        "table": _table(bundle, comparison, names),
        "by_calls": charts.quality(comparison, "nfe", "network calls for a sample"),
        "by_ms": charts.quality(comparison, "p50_ms", f"ms for a sample, p50, {_backends(comparison)}"),
        "trajectories": _section("strips", "On the way", WAY, _trajectories(bundle, names if pictures else [], track)),
        "fits": _section("fits", "Fitted tables", TABLES, _fits(bundle, names)),
        "intervals": _section("fits", "Where guidance pays", "", _intervals(bundle)),
    }
    folder = resources.files("fewstep")
    page = Template((folder / "evaluation/page/report.html").read_text("utf-8"))
    text = page.substitute(
        sections,
        name=escape(bundle.manifest.name),
        style=(folder / "style.css").read_text("utf-8") + (folder / "evaluation/page/report.css").read_text("utf-8"),
        evaluated=escape(_evaluated(comparison)),
        machine=escape(_machine(comparison.machine)),
    )
    with writing(out) as beside:
        beside.write_text(text, "utf-8")


def _section(kind: str, title: str, note: str, figures: Iterable[str]) -> str:
    """Figures under a title; nothing where there are none."""
    content = "".join(figures)
    said = f'<p class="note">{note}</p>' if note else ""
    return f'<section><h2>{title}</h2>{said}<div class="{kind}">{content}</div></section>' if content else ""


def _real(bundle: Bundle, comparison: Comparison) -> str:
    """A row of held-out images, the classes in turn. No bundle holds them, so they are looked for where they were."""
    caption = f"<b>real</b> held-out images of {escape(comparison.data)}"
    try:
        held_out = images_like(bundle, comparison.data, "held-out")
    except (OSError, ValueError) as error:
        return _figure("", f"{caption}, which are not here: {escape(str(error))}")
    seen: dict[int, list[int]] = {}
    for place, label in enumerate(held_out.labels.tolist()):
        seen.setdefault(label, []).append(place)
    turns = [place for turn in zip_longest(*(seen[label] for label in sorted(seen))) for place in turn if place is not None]
    images, _ = held_out[np.array(turns[:SHOWN])]
    return _figure(_image(images.transpose(0, 2, 3, 1), f"{len(images)} real images"), caption)


def _sampler(bundle: Bundle, comparison: Comparison, name: str) -> str:
    evaluated = comparison.plans[name]
    generator = Generator(bundle, plan=name, graph=evaluated.graph)
    signature = generator.signature
    if not signature.finite:
        return ""  # a comparison keeps no arrays
    given: dict[str, Any] = signature.example(SHOWN, guided=generator.plan.guided)  # the classes in turn
    images = generator(seeds=range(SHOWN), **given)
    called = [name for each in signature.inputs for name in each.called(given[each.name])]
    facts = f"{evaluated.nfe} calls, {NAMED[evaluated.metric]} {evaluated.distance}, {evaluated.p50_ms:.1f} ms"
    shown = f": {', '.join(called)}" if called else ""
    caption = f"<b>{escape(name)}</b> {escape(bundle.manifest.plans[name].solver)}<br>{facts}{escape(shown)}"
    return _figure(_image(images, f"{name}: {SHOWN} images{shown}"), caption)


def _table(bundle: Bundle, comparison: Comparison, names: Sequence[str]) -> str:
    columns = COLUMNS[comparison.metric]
    pixels = ["pixels off"] if comparison.metric == "frechet" else []
    head = ["plan", "network calls", *(title for title, _, _ in columns), *pixels, "PSNR, dB", "p50 ms", "samples per second"]
    lines = ["".join(f"<th>{title}</th>" for title in head)]
    for name in names:
        evaluated = comparison.plans[name]
        scores = [_score(evaluated, key, digits) for _, key, digits in columns] + _off(evaluated.farthest)
        pair = "reference" if name == comparison.reference else _score(evaluated, "psnr_db", 1)
        numbers = [str(evaluated.nfe), *scores, pair, f"{evaluated.p50_ms:.2f}", f"{evaluated.samples_per_second:.0f}"]
        ships = " class=ships" if name == bundle.manifest.default else ""
        lines.append(f"<th scope=row{ships}>{escape(name)}</th>" + "".join(f"<td>{number}</td>" for number in numbers))
    real = [f"{comparison.real[key]:.{digits}f}" if key in comparison.real else "" for _, key, digits in columns]
    cells = ["", *real, *_off(farthest(comparison.real)), "", "", ""]
    lines.append("<th scope=row>real training samples</th>" + "".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _off(found: tuple[str, float] | None) -> list[str]:
    """What pixels are farthest off in; nothing of arrays."""
    return [f"{found[0]} {found[1]:.2f}" + (" (too far)" if found[1] > FARTHEST else "")] if found else []


def _score(evaluated: Evaluated, key: str, digits: int) -> str:
    found = evaluated.scores.get(key)
    return f"{found.mean:.{digits}f}&thinsp;±&thinsp;{found.std:.{digits}f}" if found else ""


def _trajectories(bundle: Bundle, names: Sequence[str], track: Track) -> Iterator[str]:
    """What the network takes the image for, row by row, from one noise."""
    if not bundle.manifest.signature.finite:
        return
    teachers: dict[str, Teacher] = {}
    for i in track(range(len(names)), "walk samplers"):
        name = names[i]
        denoiser, plan = bundle.manifest.plans[name].denoiser, bundle.plan(name)
        if bundle.manifest.components[denoiser].directory is None:
            continue  # shipped without weights
        teacher = teachers.setdefault(denoiser, Teacher(bundle, denoiser))
        rows = np.unique(np.linspace(0, plan.rows - 1, min(plan.rows, SHOWN)).round().astype(int))
        with np.errstate(divide="ignore"):
            levels = plan.sigmas[rows] / plan.alphas[rows]
        caption = f"<b>{escape(name)}</b> estimates at noise levels {', '.join(f'{level:.3g}' for level in levels)}"
        yield _figure(_image(_estimates(teacher, plan)[rows], f"{name}: estimates"), caption)


def _estimates(teacher: Teacher, plan: Plan) -> Pictures:
    """D_0 .. D_{n-1}, (n, H, W, C), of the seed 0 and the first class."""
    drawn = torch.tensor(noise([0], (plan.draws, *teacher.manifest.state.shape)))
    conditions = Conditions(teacher.manifest.signature.inputs)
    given = conditions.in_turn(1)
    with torch.no_grad():
        denoise = guided(teacher.denoiser, given, conditions.null(given))
        walk = trajectory(denoise, plan.begin(drawn[:, 0]), plan, list(drawn[:, 1:].unbind(1)))
        return teacher.rounded(torch.cat([step.denoised for step in walk])).transpose(0, 2, 3, 1)


def _fits(bundle: Bundle, names: Iterable[str]) -> Iterator[str]:
    """Fitted plans beside the solvers they were fitted from."""
    for name in names:
        entry = bundle.manifest.plans[name]
        record = bundle.manifest.records.plans.get(name)
        if not isinstance(record, Fitted):
            continue
        settings: dict[str, Any] = record.settings
        method = METHODS.get(settings.get("method", ""))
        grid = bundle.manifest.denoisers[entry.denoiser].parametrisation.grid(settings["steps"])
        guidance = Guidance.of({"scale": settings["guidance"], "lo": settings["lo"], "hi": settings["hi"]})
        plain = (method.solver if method else dpmpp_2m)(grid, guidance)
        plans = {"usual": plain, name: entry.plan()}
        caption = f"<b>{escape(name)}</b> {escape(entry.solver)}; the usual grid and weights beside it"
        yield _figure(charts.levels(plans) + charts.coefficients(plans), caption)


def _intervals(bundle: Bundle) -> Iterator[str]:
    for name, entry in bundle.manifest.plans.items():
        record = bundle.manifest.records.plans.get(name)
        if isinstance(record, Searched):
            plan = entry.plan()
            plain = sum(value >= SAME for value in record.similarity)
            caption = (
                f"<b>{escape(name)}</b> {escape(entry.solver)}, the best of {len(record.trials)} guidances; with and "
                f"without the condition, estimates are the same (cosine {SAME} or more) at {plain} of {plan.rows} evaluations"
            )
            levels = np.array([np.inf if level is None else level for level in record.levels])
            yield _figure(charts.interval_map(levels, record.trials), caption)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _image(images: Pictures, alt: str) -> str:
    """A row of images (n, H, W, C) as a PNG inside the page."""
    file = io.BytesIO()
    grid(images, columns=len(images)).save(file, format="PNG")
    width = f"width: {100 * len(images) / SHOWN:g}%"
    return f'<img alt="{escape(alt)}" style="{width}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _evaluated(comparison: Comparison) -> str:
    where = {
        "classifier": "in the features of a classifier trained on the training images",
        "efficientnet": "in the features of EfficientNet-Lite0",
        "values": "by their own numbers, in units of the real ones' deviations, beside what they were made from",
    }
    return (
        f"{comparison.images} samples from each of {comparison.seeds} sets of seeds, against as many held-out ones of "
        f"{comparison.data}, {where.get(comparison.features, 'in the features of Inception-v3')}. "
        f"PSNR is against {comparison.reference} from equal noise."
    )


def _backends(comparison: Comparison) -> str:
    found: Iterable[str] = dict.fromkeys(f"{j.backend}, {j.precision}" for j in comparison.plans.values())
    return "; ".join(found)


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}, {machine['gpu'] or machine['cpu']}, {machine['cores']} cores; {versions}"
