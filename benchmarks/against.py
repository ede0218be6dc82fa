"""This tree beside an older one, in turns: python benchmarks/against.py COMMIT

Each measures itself in fresh processes with its own code and its own example bundle, by the same interpreter and packages.
Writes benchmarks/results/against.json: medians and the ratio of this tree to the older one, above 1 where it is slower.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from fewstep.system.machine import described

HERE = Path(__file__).parents[1]
RESULT = HERE / "benchmarks" / "results" / "against.json"
ROUNDS, UPDATES = 7, 60

IMPORT = "import time; begin = time.perf_counter(); import fewstep.runtime; print(time.perf_counter() - begin)"
OPEN = """
import time, fewstep.runtime
begin = time.perf_counter()
fewstep.runtime.Generator.open("examples/digits.bundle")(labels=[3], seeds=[0])
print(time.perf_counter() - begin)
"""
GENERATE = """
import time, statistics, fewstep.runtime
generator, times = fewstep.runtime.Generator.open("examples/digits.bundle"), []
for _ in range(400):
    begin = time.perf_counter()
    generator(labels=[3] * COUNT, seeds=range(COUNT))
    times.append(time.perf_counter() - begin)
print(statistics.median(times))
"""


def code(text: str) -> Callable[[Path], float]:
    """What a snippet measures and prints, in a process of a tree."""
    return lambda tree: float(run(tree, "-c", text).split()[-1])


def export(tree: Path) -> float:
    """Seconds of an export of one plan in two precisions, the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = shutil.copytree(tree / "examples" / "digits.bundle", Path(folder) / "digits.bundle")
        return timed(tree, "export", str(bundle), "--plan", "table4")


def train(tree: Path) -> float:
    """Seconds of a training, the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        updates = "--iterations" if "--iterations" in command(tree, "train", "--help") else "--steps"
        return timed(tree, "train", "--out", f"{folder}/digits.bundle", updates, str(UPDATES))


TASKS: dict[str, Callable[[Path], float]] = {
    "import of the runtime": code(IMPORT),
    "open and first image": code(OPEN),
    "generate 1": code(GENERATE.replace("COUNT", "1")),
    "generate 8": code(GENERATE.replace("COUNT", "8")),
    "export": export,
    "train": train,
}


def run(tree: Path, *arguments: str) -> str:
    """stdout of Python with a tree's own code."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=tree, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def command(tree: Path, *arguments: str) -> str:
    """stdout of a tree's fewstep."""
    return run(tree, "-m", "fewstep.cli", *arguments)


def timed(tree: Path, *arguments: str) -> float:
    """Seconds of a command."""
    begin = time.perf_counter()
    command(tree, *arguments)
    return time.perf_counter() - begin


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", sys.argv[1]], cwd=HERE, check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", old, commit], cwd=HERE, check=True)
        try:
            rows = {name: compared(task, old) for name, task in TASKS.items()}
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=HERE, check=True)
    RESULT.write_text(json.dumps({"machine": described(), "against": commit, "rows": rows}, indent=1) + "\n", "utf-8")
    print(f"wrote {RESULT}")


def compared(task: Callable[[Path], float], old: Path) -> dict[str, float]:
    """Both trees in turns, after a first run of each that nobody counts."""
    times: dict[Path, list[float]] = {HERE: [], old: []}
    for i in range(ROUNDS + 1):
        for tree in (HERE, old) if i % 2 else (old, HERE):
            found = task(tree)
            if i:
                times[tree].append(found)
    ratios = [here / there for here, there in zip(times[HERE], times[old], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    row = {"here_s": median(times[HERE]), "there_s": median(times[old]), "ratio": middle, "ratio_p25": low, "ratio_p75": high}
    print({key: round(value, 4) for key, value in row.items()}, flush=True)
    return row


if __name__ == "__main__":
    main()
