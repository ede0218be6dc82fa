"""A result file of training runs: rows are arms, with a value for each seed, written run by run: a stopped one goes on."""

from __future__ import annotations

import json
from statistics import mean, stdev
from typing import Any

from board import RESULTS

from fewstep.system.machine import described

__all__ = ["Runs"]


class Runs:
    """Scores of arms over training seeds. `about` goes into the file as well."""

    def __init__(self, name: str, **about: Any) -> None:
        self.path, self.about = RESULTS / f"{name}.json", {"machine": described(), **about}
        found = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self.scores: dict[str, dict[str, dict[str, Any]]] = found.get("scores", {})

    def has(self, arm: str, seed: int) -> bool:
        return str(seed) in self.scores.get(arm, {})

    def add(self, arm: str, seed: int, scores: dict[str, Any]) -> None:
        """Keep the scores of a run and write the file."""
        self.scores.setdefault(arm, {})[str(seed)] = scores
        self.write()
        shown = {key: round(value, 3) for key, value in scores.items() if isinstance(value, float)}
        print(f"{arm:40} seed {seed} {shown}", flush=True)

    def write(self) -> None:
        """Replace the file."""
        self.path.write_text(json.dumps({**self.about, "rows": self.rows(), "scores": self.scores}, indent=1) + "\n", "utf-8")

    def rows(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Mean and standard deviation of every number, over the seeds of each arm."""
        rows = {}
        for arm, runs in self.scores.items():
            numbers = {key for run in runs.values() for key, value in run.items() if isinstance(value, float)}
            found = {key: [run[key] for run in runs.values()] for key in sorted(numbers)}
            rows[arm] = {key: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None} for key, v in found.items()}
        return rows
