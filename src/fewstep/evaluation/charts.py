"""Charts of a report, as SVG that takes its ink from the page. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from fewstep.evaluation.comparison import NAMED, Comparison, Evaluated
from fewstep.sampling.plan import Floats, Plan

__all__ = ["coefficients", "interval_map", "levels", "quality"]

INK, SOFT = "#010203", "#040506"  # stand-ins, replaced by the page's colors
ACCENT, OTHER = "#4c6ef5", "#e8590c"
PLACES = [
    (7, 4),
    (7, -11),
    (-7, 4),
    (-7, -11),
    (7, 15),
    (-7, 15),
    (7, -22),
    (-7, -22),
    (7, 26),
    (-7, 26),
]  # of a name, in points
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fewstep",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": SOFT,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


def quality(comparison: Comparison, key: str, title: str) -> str:
    """Distance against `nfe` or `p50_ms`, with the spread over sets of seeds and the line that nothing beats.

    Args:
        comparison: its plans are the points.
        key: nfe or p50_ms, what stands across.
        title: of that axis.

    Returns:
        An SVG element.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.4), layout="constrained")
        axes = figure.subplots()
        points = sorted(
            (getattr(evaluated, key), evaluated.distance.mean, name, evaluated) for name, evaluated in comparison.plans.items()
        )
        for x, y, _, evaluated in points:
            axes.errorbar(x, y, yerr=_downwards(evaluated), fmt="o", color=_color(evaluated, comparison), capsize=3)
        front = [p for i, p in enumerate(points) if all(p[1] < q[1] for q in points[:i])]
        axes.plot([p[0] for p in front], [p[1] for p in front], color=ACCENT, alpha=0.4, zorder=0)
        axes.axhline(comparison.real[comparison.metric], color=SOFT, linestyle=":", linewidth=1)
        axes.annotate("real training samples", (points[0][0], comparison.real[comparison.metric]), xytext=(0, 4), **_SMALL)
        axes.set(
            xscale="log",
            yscale="log" if comparison.metric == "frechet" else "linear",
            xlabel=title,
            ylabel=f"{NAMED[comparison.metric]} to held-out samples",
        )
        axes.margins(x=0.16)
        _plain_ticks(axes)
        _label(figure, axes, [(x, y, name) for x, y, name, _ in points])
        return _svg(figure)


_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": INK, "alpha": 0.7}


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside their points, each in the first of a few places where it covers no other name or point."""
    figure.draw_without_rendering()
    centres = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    for x, y, name in points:
        for place in PLACES:
            text = axes.annotate(name, (x, y), xytext=place, ha="right" if place[0] < 0 else "left", **_SMALL)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or place is PLACES[-1]:
                taken.append(box)
                break
            text.remove()


def _downwards(evaluated: Evaluated) -> list[list[float]]:
    """Error bars that a logarithmic axis can show."""
    distance = evaluated.distance
    return [[min(distance.std, 0.9 * distance.mean)], [distance.std]]


def _color(evaluated: Evaluated, comparison: Comparison) -> str:
    return OTHER if evaluated is comparison.plans[comparison.reference] else ACCENT


def interval_map(grid: Floats, trials: Sequence[Mapping[str, Any]]) -> str:
    """The best value found for each interval of guided steps: from the first one, down, to the last one, across.

    Args:
        grid: noise levels, (n + 1,).
        trials: of a search, each with first, last, value, nfe, scale; values above 0.

    Returns:
        An SVG element.
    """
    count = len(grid) - 1
    best = np.full((count, count), np.nan)
    for trial in trials:
        cell = int(trial["first"]), int(trial["last"])
        best[cell] = np.fmin(best[cell], trial["value"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.8), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(best, cmap="viridis_r", norm=mpl.colors.LogNorm())
        names = [f"{level:.3g}" for level in grid[:-1]]
        axes.set_xticks(range(count), labels=names, rotation=60)
        axes.set_yticks(range(count), labels=names)
        axes.set(xlabel="noise level of the last guided step", ylabel="of the first guided step")
        middle = (np.nanmin(best) * np.nanmax(best)) ** 0.5  # of a logarithmic scale
        for (row, column), value in np.ndenumerate(best):
            if np.isfinite(value) and count <= 12:
                ink = "white" if value > middle else "black"
                axes.annotate(f"{value:.1f}", (column, row), ha="center", va="center", fontsize=7.5, color=ink)
        bar = figure.colorbar(drawn, label="lowest value found", shrink=0.8)
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        bar.ax.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        return _svg(figure)


def levels(plans: Mapping[str, Plan]) -> str:
    """Where each plan evaluates the network: the noise levels of its rows."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 0.9 + 0.42 * len(plans)), layout="constrained")
        axes = figure.subplots()
        for row, plan in enumerate(plans.values()):
            with np.errstate(divide="ignore"):
                found = plan.sigmas[:-1] / plan.alphas[:-1]
            shown = found[np.isfinite(found)]  # pure noise has no place on the axis
            axes.plot(shown, np.full(len(shown), row), "o-", color=ACCENT if row else OTHER, linewidth=1)
        axes.set_yticks(range(len(plans)), labels=list(plans))
        axes.set(xscale="log", xlabel="noise level sigma / alpha")
        axes.invert_xaxis()
        axes.margins(y=0.3)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(axis="x")
        return _svg(figure)


def coefficients(plans: Mapping[str, Plan]) -> str:
    """The weights b of estimates in each row, plan beside plan."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(plans), 3.4), layout="constrained")
        largest = max(float(np.abs(plan.b).max()) for plan in plans.values())
        for axes, (name, plan) in zip(np.atleast_1d(figure.subplots(1, len(plans))), plans.items(), strict=True):
            drawn = np.where(np.tril(np.ones_like(plan.b)) > 0, plan.b, np.nan)
            axes.imshow(drawn, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axes.set(title=name, xlabel="estimate D", ylabel="row")
            axes.set_xticks(range(plan.rows))
            axes.set_yticks(range(plan.rows))
            for (row, column), value in np.ndenumerate(drawn):
                if np.isfinite(value) and value and plan.rows <= 10:
                    ink = "white" if abs(value) > 0.6 * largest else "black"
                    axes.annotate(f"{value:.2f}", (column, row), ha="center", va="center", fontsize=7.5, color=ink)
        return _svg(figure)


def _plain_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid()


def _svg(figure: Figure) -> str:
    """The figure as an element to stand in a page: as wide as there is room, in the page's colors."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(SOFT, "var(--soft)")
    return re.sub(
        r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"|<svg ([^>]*?)width="[^"]*" ([^>]*?)height="[^"]*"',
        r"<svg \1\2\3\4",
        text,
    )
