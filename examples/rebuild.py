"""Rebuild examples/digits.bundle and its picture from a full run of the demo: python examples/rebuild.py demo

The shipped bundle is the demo's without what can be made again and would be large: engines, the graphs of other samplers, and
the weights of the two-step generator. The teacher and the one-step generator stay, so that plans can be fitted and exported.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from fewstep.bundle import Bundle

HERE = Path(__file__).parent
KEEP = ("sid1", "sid2")  # plans whose graphs are shipped
DROP = "sid2"  # network whose weights are not


def prune(path: Path) -> None:
    """Leave the networks but DROP, all plans, and the graphs and references of KEEP."""
    bundle = Bundle.load(path)
    golden = np.load(bundle.file("golden.npz"))
    kept = {name: golden[name] for name in golden.files if name.split("/")[0] in KEEP}
    with bundle.edit() as draft:
        draft.remove("engines")
        draft.manifest.engines = {}
        for name, graph in list(draft.manifest.graphs.items()):
            if graph.plan not in KEEP:
                for file in graph.paths:
                    draft.remove(file)
                del draft.manifest.graphs[name]
        draft.remove(f"networks/{DROP}")
        draft.manifest.networks[DROP].directory = None
        np.savez_compressed(draft.new("golden.npz"), **kept)
    Bundle.load(path).verify()


def main(demo: Path) -> None:
    target = HERE / "digits.bundle"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(demo / "digits.bundle", target)
    prune(target)
    for name in ("digits.png", "samplers.png"):
        shutil.copyfile(demo / name, HERE / name)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
