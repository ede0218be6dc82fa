"""card.md: what went into every network of a bundle, for whoever gets it. Written from the manifest, as data allow."""

from __future__ import annotations

from typing import Any

from fewstep.artifact.bundle import CARD, Draft
from fewstep.artifact.draft import digest
from fewstep.artifact.manifest import Manifest

__all__ = ["inherited", "license", "proven", "write_card"]

NOTE = "<!-- Written by fewstep, and anew whenever a network is added, unless you change it: then it is yours and stays. -->"


def write_card(draft: Draft) -> None:
    """Write the card of a draft anew, unless the one that is there is not the one that fewstep wrote last."""
    path = draft.root / CARD
    if not path.exists() or digest(path) == draft.manifest.card_sha256:
        draft.new(CARD).write_text(card(draft.manifest), "utf-8")
        draft.manifest.card_sha256 = digest(path)


def inherited(manifest: Manifest, *networks: str) -> dict[str, str]:
    """The licenses that a network made from these is under besides its own, by the network that each is of."""
    found: dict[str, str] = {}
    for name in networks:
        about = manifest.records.components.get(name)
        found |= about.get("inherited_licenses", {})
        if about.get("license"):
            found[name] = about["license"]
    return found


def license(manifest: Manifest, network: str) -> str:
    """What a network is licensed under, and the ones it was made from, in words."""
    about = manifest.provenance.networks.get(network, {})
    own = [about["license"]] if about.get("license") else []
    others = [f"{name}: {words}" for name, words in about.get("inherited_licenses", {}).items() if words not in own]
    return "; ".join([*own, *others]) or "not stated"


def card(manifest: Manifest) -> str:
    """The card as Markdown."""
    image, condition = manifest.image, manifest.condition
    named = f" ({', '.join(f'{i} {_plain(name)}' for i, name in enumerate(condition.names))})" if condition.names else ""
    classes = f"{condition.classes} classes{named}"
    of = {"labels": classes, "embeddings": f"{condition.tokens} tokens of text", "none": "none"}
    lines = [
        f"# {manifest.name}",
        "",
        f"Images: {image.height}x{image.width}, {image.channels} channels. Condition: {of[condition.kind]}.",
        "",
        "| network | estimates | made from | images read | license |",
        "|---|---|---|---|---|",
    ]
    for name, network in manifest.networks.items():
        about = manifest.records.components.get(name)
        cells = [name, network.parametrisation.kind, _source(about), _data(about), license(manifest, name)]
        lines.append(f"| {' | '.join(map(_plain, cells))} |")
    for name in manifest.networks:
        if said := proven(manifest.records.components.get(name)):
            lines += ["", _plain(f"{name}: {said}.")]
    lines += ["", "Settings, seeds and hashes: `provenance` in bundle.json.", "", NOTE, ""]
    return "\n".join(lines)


def proven(about: dict[str, Any]) -> str:
    """What the proof of an imported network compared, as a sentence; "" for another."""
    proof = about.get("proof")
    if not isinstance(proof, dict):
        return ""
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


def _source(about: dict[str, Any]) -> str:
    """Where a network is from."""
    if "imported" in about:
        return f"the checkpoint {about['imported']}"
    if "teacher" in about:
        begun = f", begun as {about['start']}" if about.get("start", about["teacher"]) != about["teacher"] else ""
        return f"the network {about['teacher']} ({str(about.get('teacher_sha256'))[:12]}), distilled{begun}"
    return "training from nothing" if "data" in about else "not stated"


def _data(about: dict[str, Any]) -> str:
    """What images were read. Those of a teacher are in its own row."""
    if "imported" in about:
        return "not stated by the checkpoint"
    read = [f"{about['images']} of {about['data']}"] if about.get("data") else []
    if validated := about.get("validated_on") or ("images not stated" if about.get("validated") else ""):
        read.append(f"some of {validated}, to choose the weights")
    read += [f"some of {about['plan_data']}, to fit the plan it began as"] if about.get("plan_data") else []
    return "; ".join(read) or ("none" if "teacher" in about else "not stated")


def _plain(text: str) -> str:
    """Text that cannot end a cell of the table."""
    return " ".join(text.replace("|", "/").split())
