"""Fuzz what reads bundles and requests, guided by coverage. Run by hand; it needs `pip install atheris`.

    python tests/fuzz_bundle.py --seconds 600                     # every target in turn, its share of the time each
    python tests/fuzz_bundle.py --seconds 600 --target manifest   # one of TARGETS below

The targets and what they promise are in fuzz_targets.py; they start from the files in tests/corpus/ and from a small bundle.
A finding ends its target with a trace and leaves the input in the folder that is printed; once it is mended, the input belongs
in tests/corpus/TARGET/, where test_fuzz.py tries it in every run. Exit code 1 when something was found.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

TARGETS = ("manifest", "graph", "ranges", "comparison", "config", "weights", "arrays", "checkpoint", "golden", "request")
CORPUS = Path(__file__).parent / "corpus"
MEMORY_MIB, INPUT_SECONDS, INPUT_BYTES = 2048, 20, 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--out", type=Path, default=None, help="where findings and the grown corpus go")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="fewstep-fuzz-"))
    if arguments.target:
        fuzz(arguments.target, arguments.seconds, out)
    share = str(max(1, arguments.seconds // len(TARGETS)))
    command = [sys.executable, __file__, "--seconds", share, "--out", str(out), "--target"]
    failed = [name for name in TARGETS if subprocess.run([*command, name], check=False).returncode]
    print(f"findings of {', '.join(failed)} are in {out}" if failed else "nothing was found")
    sys.exit(bool(failed))


def fuzz(target: str, seconds: int, out: Path) -> None:
    """One target, until the time is over or something is found. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["fewstep"]):
        targets = importlib.import_module("fuzz_targets")
    mutations = importlib.import_module("fuzz_mutations")
    run, root, grown = targets.TARGETS[target], targets.home(), out / target
    grown.mkdir(parents=True, exist_ok=True)
    for name, content in targets.seeds(target).items():
        (grown / name).write_bytes(content)
        run(content)  # what is imported on the way is imported here, unwatched

    def once(content: bytes) -> None:
        try:
            with targets.watched(root):
                run(content)
        except (ValueError, FileNotFoundError):
            pass

    def mutate(content: bytes, size: int, seed: int) -> bytes:
        random = Random(seed)
        changed = atheris.Mutate(content, size) if random.random() < 0.3 else mutations.mutated(content, random)
        return changed[:size]

    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={INPUT_SECONDS}"]
    folders = [str(grown), *(str(folder) for folder in [CORPUS / target] if folder.is_dir())]
    settings = [*limits, f"-max_len={INPUT_BYTES}", f"-artifact_prefix={out}/{target}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *settings, *folders], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
