"""Rebuild examples/digits.bundle and its pictures: python examples/rebuild.py directory

Goes the demo's way from nothing, with enough updates for a good teacher and with the command line's defaults for what is made
of it, about twenty minutes on two cores. The shipped bundle is without what can be made again and would be large: the graphs of
other samplers, and the weights of the two-step generator. The teacher and the one-step generator stay, so that plans can be
fitted and exported.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.golden import GOLDEN, write_golden
from fewstep.calibration.configs import TableConfig
from fewstep.cli.demo import DemoConfig, draw, full, run_demo
from fewstep.evaluation.classifier import ClassifierConfig
from fewstep.evaluation.comparison import FILE
from fewstep.evaluation.features import FITTING
from fewstep.trainer.configs import SidConfig, TeacherConfig

HERE = Path(__file__).parent
KEEP = ("sid1", "sid2")  # plans whose graphs are shipped
DROP = "sid2"  # network whose weights are not


def longer() -> DemoConfig:
    """The demo's settings, but for how long everything learns; no engines."""
    return replace(
        full(),
        teacher=TeacherConfig(iterations=6000),
        one_step=SidConfig(),
        two_steps=SidConfig(steps=2),
        fitting=ClassifierConfig(seed=FITTING),
        table=TableConfig(),
        engines=(),
    )


def prune(path: Path) -> None:
    """Leave the networks but DROP, all plans, and the graphs and references of KEEP; one step is the default."""
    bundle = Bundle.load(path)
    with bundle.edit() as draft:
        for name, graph in list(draft.manifest.graphs.items()):
            if graph.plan not in KEEP:
                for file in graph.paths:
                    draft.remove(file)
                del draft.manifest.graphs[name]
        draft.remove(f"components/{DROP}")
        draft.remove(FILE)
        draft.manifest.default = "sid1"
        draft.manifest.components[DROP].directory = None
        write_golden(draft.new(GOLDEN), bundle.references(*KEEP))
    Bundle.load(path).verify()


def main(demo: Path) -> None:
    run_demo(demo, longer())
    target = HERE / "digits.bundle"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(demo / "digits.bundle", target)
    prune(target)
    draw(target, "sid1", HERE / "digits.png")
    shutil.copyfile(demo / "samplers.png", HERE / "samplers.png")
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
