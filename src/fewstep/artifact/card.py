"""card.md: what went into every network of a bundle, for whoever gets it. Written from the manifest, as data allow."""

from __future__ import annotations

from typing import Any

from fewstep.artifact.bundle import CARD, Draft
from fewstep.artifact.draft import digest
from fewstep.artifact.manifest import Manifest
from fewstep.artifact.records import Distilled, Imported, NetworkRecord, Trained

__all__ = ["inherited", "license", "proven", "write_card"]

NOTE = "<!-- Written by fewstep, and anew whenever a network is added, unless you change it: then it is yours and stays. -->"


def write_card(draft: Draft) -> None:
    """Write the card of a draft anew, unless the one that is there is not the one that fewstep wrote last."""
    path = draft.root / CARD
    if not path.exists() or digest(path) == draft.manifest.card_sha256:
        draft.new(CARD).write_text(card(draft.manifest), "utf-8")
        draft.manifest.card_sha256 = digest(path)


def inherited(manifest: Manifest, *networks: str) -> dict[str, str]:
    """The licenses that a network made from these is under besides its own, by the network that each is of.

    Args:
        manifest: whose records say it.
        networks: by name; those without a record add nothing.

    Returns:
        Words of licenses, by network.
    """
    found: dict[str, str] = {}
    for name in networks:
        record = manifest.records.components.get(name)
        if isinstance(record, Trained | Distilled):
            found |= record.inherited_licenses
        if record and record.license:
            found[name] = record.license
    return found


def license(manifest: Manifest, network: str) -> str:
    """What a network is licensed under, and the ones it was made from, in words.

    Args:
        manifest: whose records say it.
        network: by name.
    """
    record = manifest.records.components.get(network)
    own = [record.license] if record and record.license else []
    inherits = record.inherited_licenses if isinstance(record, Trained | Distilled) else {}
    others = [f"{name}: {words}" for name, words in inherits.items() if words not in own]
    return "; ".join([*own, *others]) or "not stated"


def card(manifest: Manifest) -> str:
    """The card as Markdown."""
    output, inputs = manifest.output, manifest.signature.inputs
    made, told = output.tensor.name, "; ".join(each.about for each in inputs) or "none"
    lines = [
        f"# {manifest.name}",
        "",
        _plain(f"{made.capitalize()}: {output.about}. Condition: {told}."),
        "",
        f"| network | estimates | made from | {made} read | license |",
        "|---|---|---|---|---|",
    ]
    records = manifest.records.components
    for name, entry in manifest.denoisers.items():
        record = records.get(name)
        cells = [name, entry.parametrisation.kind, _source(record), _data(record, made), license(manifest, name)]
        lines.append(f"| {' | '.join(map(_plain, cells))} |")
    for name in manifest.denoisers:
        if said := proven(records.get(name)):
            lines += ["", _plain(f"{name}: {said}.")]
    lines += ["", "Settings, seeds and hashes: `records` in bundle.json.", "", NOTE, ""]
    return "\n".join(lines)


def proven(record: NetworkRecord | None) -> str:
    """What the proof of an imported network compared, as a sentence; "" for another."""
    if not isinstance(record, Imported) or not record.proof:
        return ""
    proof = record.proof
    strict, sensitive = ([case for case in proof["cases"] if (case["own"] is None) == alike] for alike in (True, False))
    share = max(case["max_error"] / case["scale"] for case in strict)
    parts = [
        f"last states differ from those of {proof['against']} by {share:.1e} of the largest number "
        f"({', '.join(map(_steps, strict))})"
    ]
    parts += [
        f"with {_steps(case)} by {case['max_error']:.1e}, and that ends {case['own']:.1e} from itself when its noise changes "
        "in the last digit"
        for case in sensitive
    ]
    left = [f"not compared: {', '.join(proof['left_out'])}"] if proof["left_out"] else []
    return "; ".join([*parts, *left])


def _steps(case: dict[str, Any]) -> str:
    """A case of a proof."""
    return f"{case['steps']} steps{'' if case['guidance'] == 1 else ' guided by ' + format(case['guidance'], 'g')}"


def _source(record: NetworkRecord | None) -> str:
    """Where a network is from."""
    match record:
        case Imported():
            return f"the checkpoint {record.source}"
        case Distilled():
            begun = f", begun as {record.start}" if record.start != record.teacher else ""
            return f"the network {record.teacher} ({record.teacher_sha256[:12]}), distilled{begun}"
        case Trained(start=None):
            return "training from nothing"
        case Trained():
            return f"the network {record.start} ({str(record.start_sha256)[:12]}), trained further"
    return "not stated"


def _data(record: NetworkRecord | None, made: str) -> str:
    """What samples were read. Those of a teacher are in its own row. made: what they are called."""
    if isinstance(record, Imported):
        return "not stated by the checkpoint"
    read = [f"{record.samples} of {record.data}"] if record and record.data else []
    if isinstance(record, Distilled):
        if validated := record.validated_on or (f"{made} not stated" if record.validated else ""):
            read.append(f"some of {validated}, to choose the weights")
        read += [f"some of {record.plan_data}, to fit the plan it began as"] if record.plan_data else []
    return "; ".join(read) or ("none" if isinstance(record, Distilled) else "not stated")


def _plain(text: str) -> str:
    """Text that cannot end a cell of the table."""
    return " ".join(text.replace("|", "/").split())
