"""The data set of emoji: examples/emoji on packages of a few emoji, in all three formats."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw

EMOJI = ROOT / "examples" / "emoji"
sys.path.append(str(EMOJI))
captions, data, held_out, packages, pictures = map(
    importlib.import_module, ("captions", "data", "held_out", "packages", "pictures")
)

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
NAMES = ("light", "medium-light", "medium", "medium-dark", "dark")
SKINS = ((240, 210, 190), (210, 170, 130), (170, 120, 80), (110, 70, 40), (60, 40, 30))
FOX, HEART, FLAG, SAME = "1F98A", "2764-FE0F", "1F1EA-1F1EC", "1F43A"
FIREFIGHTERS = {"firefighter": "1F9D1{}-200D-1F692", "woman firefighter": "1F469{}-200D-1F692"}
LICENSE = {"version": "1.2.3", "license": "MIT"}

Folder = dict[str, dict[str, Any]]


def disc(color: tuple[int, ...], across: int, side: int) -> Image.Image:
    image = Image.new("RGBA", (side, side))
    low = (side - across) / 2
    ImageDraw.Draw(image).ellipse((low, low, side - low - 1, side - low - 1), fill=color)
    return image


def icon(color: tuple[int, ...], across: int = 28) -> dict[str, str]:
    low = (32 - across) / 2
    fill = "#" + bytes(color).hex()
    return {"body": f'<rect x="{low}" y="{low}" width="{across}" height="{across}" fill="{fill}"/>'}


def shown() -> dict[str, tuple[int, ...]]:
    """Colors of all emoji, by code points as Unicode writes them."""
    colors: dict[str, tuple[int, ...]] = {FOX: (230, 120, 30), HEART: (220, 20, 40), FLAG: (0, 90, 0), SAME: (230, 120, 30)}
    for number, pattern in enumerate(FIREFIGHTERS.values()):
        colors[pattern.format("")] = (250, 200, 50 * number)
        colors |= {pattern.format(f"-{tone}"): (*skin[:2], skin[2] + number) for tone, skin in zip(TONES, SKINS, strict=True)}
    return colors


def person(label: str, pattern: str, order: int) -> dict[str, Any]:
    skins = [
        {"label": f"{label}: {name} skin tone", "hexcode": pattern.format(f"-{tone}")}
        for name, tone in zip(NAMES, TONES, strict=True)
    ]
    tags = ["fire", "firetruck", label.split()[0]]
    return {"label": label, "hexcode": pattern.format(""), "tags": tags, "group": 1, "order": order, "skins": skins}


@pytest.fixture
def npm(tmp_path: Path) -> Path:
    """A folder into which npm has installed the packages."""
    modules = tmp_path / "npm" / "node_modules"
    noto, three_d = modules / packages.NOTO / "img" / "google" / "64", modules / packages.THREE_D / "assets"
    flat, words = modules / packages.FLAT, modules / packages.WORDS / "en"
    for folder in (noto, three_d, flat, words / "shortcodes"):
        folder.mkdir(parents=True)
    for package in packages.ORIGINS:
        (modules / package / "package.json").write_text(json.dumps(LICENSE), "utf-8")
    icons = {}
    for codes, color in shown().items():
        disc(color, 62, 64).save(noto / f"{codes.lower()}.png")
        disc(color, 224, 256).save(three_d / f"{swapped(codes).lower()}.webp", lossless=True)
        icons[codes.lower().replace("-fe0f", "")] = icon(color)
    listed = {"icons": {f"icon-{codes}": each for codes, each in icons.items()}, "width": 32, "height": 32}
    (flat / "icons.json").write_text(json.dumps(listed), "utf-8")
    (flat / "chars.json").write_text(json.dumps({codes: f"icon-{codes}" for codes in icons}), "utf-8")
    found = [
        {"label": "fox", "hexcode": FOX, "tags": ["animal", "Face"], "group": 3, "order": 5},
        {"label": "wolf", "hexcode": SAME, "tags": [], "group": 3, "order": 6},
        {"label": "red heart", "hexcode": HEART, "tags": ["love"], "group": 0, "order": 1},
        {"label": "flag: Egypt", "hexcode": FLAG, "tags": [], "group": 9, "order": 9},
        {"label": "regional indicator E", "hexcode": "1F1EA"},
        *(person(label, pattern, 2 + i) for i, (label, pattern) in enumerate(FIREFIGHTERS.items())),
    ]
    (words / "data.json").write_text(json.dumps(found), "utf-8")
    (words / "shortcodes" / "emojibase.json").write_text(json.dumps({FOX: ["fox", "fox_face"], HEART: "heart"}), "utf-8")
    return tmp_path / "npm"


def swapped(codes: str) -> str:
    """The name under which the 3d package has a picture: two tones are the other way round."""
    return re.sub("1F3F[CD]", lambda tone: "1F3FC" if tone[0] == "1F3FD" else "1F3FD", codes)


def held(names: set[str] = frozenset(), tones: set[tuple[str, str]] = frozenset(), **styles: set[str]) -> Any:
    return held_out.HeldOut(frozenset(names), styles, frozenset(tones))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text("utf-8").splitlines()]


def pixels(out: Path, file: str) -> np.ndarray:
    return np.asarray(Image.open(out / file))


def test_styles_are_joined_by_code_points_and_told_in_words(npm: Path, tmp_path: Path) -> None:
    data.make(npm, tmp_path / "out", held())
    rows = {row["file_name"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 3 * (2 + 12)  # without the flag, and the wolf that looks like the fox
    assert {row["style"] for row in rows.values()} == {"noto", "3d", "flat"}
    assert list(rows)[:3] == ["noto/2764.png", "3d/2764.png", "flat/2764.png"]  # Unicode's order; FE0F or none
    assert rows["flat/1f98a.png"] == {
        "file_name": "flat/1f98a.png",
        "captions": [
            "a fox, flat style",
            "fox, flat style",
            "flat style fox",
            "a fox",
            "an emoji of a fox in flat style",
            "fox, animal, face, flat style",
            "fox, animal, face",
            "fox face, flat style",
        ],
        "style": "flat",
        "name": "fox",
        "codepoints": "1f98a",
        "split": "train",
    }
    toned = rows["3d/1f469-1f3ff-200d-1f692.png"]
    assert toned["name"] == "woman firefighter with dark skin tone"
    assert toned["captions"][0] == "a woman firefighter with dark skin tone, 3d style"
    assert "a dark-skinned woman firefighter, 3d style" in toned["captions"]
    assert "woman firefighter, dark skin tone, fire, firetruck, 3d style" in toned["captions"]
    written = json.loads((tmp_path / "out" / "LICENSES.json").read_text("utf-8"))
    assert [(each["package"], each["version"]) for each in written] == [(name, "1.2.3") for name in packages.ORIGINS]


def test_every_picture_shows_what_its_words_say(npm: Path, tmp_path: Path) -> None:
    """Also where the 3d package has two tones the other way round."""
    data.make(npm, tmp_path / "out", held())
    colors = {codes.lower().replace("-fe0f", ""): color for codes, color in shown().items()}
    for row in rows_of(tmp_path / "out"):
        found = pixels(tmp_path / "out", row["file_name"])
        assert found.shape == (64, 64, 3)
        assert found[32, 32].tolist() == list(colors[row["codepoints"]]), row["file_name"]
        assert found[0, 0].min() > 250


@pytest.mark.parametrize(
    ("file", "shows"),
    [
        ("1f44b-1f3fc", "1f44b-1f3fd"),  # a hand: swapped
        ("1f469-1f3fd-200d-1f4bb", "1f469-1f3fd-200d-1f4bb"),  # a technologist, a couple: right
        ("1f46d-1f3fc", "1f46d-1f3fc"),
        ("1f6b5-1f3fb", "1f6b5-1f3ff"),  # mountain biking: astray, but for men and women
        ("1f6b5-1f3fc-200d-2642-fe0f", "1f6b5-1f3fd-200d-2642"),
        ("1f9cf-1f3fc-200d-2640-fe0f", "1f9cf-1f3fd-200d-2642"),  # deaf women are men
        ("1f98a", "1f98a"),
    ],
)
def test_the_3d_package_names_some_people_wrongly(file: str, shows: str) -> None:
    assert pictures._shown(packages.codes(file)) == packages.codes(shows)


def test_styles_have_one_size(npm: Path, tmp_path: Path) -> None:
    data.make(npm, tmp_path / "out", held())
    for style in ("noto", "3d", "flat"):
        line = pixels(tmp_path / "out", f"{style}/1f98a.png")[32].min(-1)
        assert (np.flatnonzero(line < 200)[[0, -1]] == (1, 62)).all(), style


def test_pictures_of_64_stay_as_they_are_and_nothing_is_cut_off() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (np.asarray(pictures.framed(Image.fromarray(noise), 1.0)) == noise).all()
    wide = Image.new("RGBA", (256, 264))
    ImageDraw.Draw(wide).rectangle((3, 100, 250, 160), fill="black")
    dark = np.asarray(pictures.framed(wide, 62 / 56)).min(-1) < 128
    assert np.flatnonzero(dark.any(0)).size == pytest.approx(64 * 248 / 250, abs=1)
    assert (np.asarray(pictures.framed(Image.new("RGBA", (256, 256)), 62 / 56)) == 255).all()


def test_what_is_held_out_is_in_no_other_split(npm: Path, tmp_path: Path) -> None:
    choice = held({"fox"}, {("firefighter", "dark")}, flat={"red heart"})
    data.make(npm, tmp_path / "out", choice)
    splits: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out"):
        splits.setdefault(row["split"], set()).add(row["file_name"].partition("/")[0] + " " + row["name"])
    styles = ("noto", "3d", "flat")
    assert splits["name"] == {f"{style} fox" for style in styles}
    toned = {f"{style} {who} with dark skin tone" for style in styles for who in FIREFIGHTERS}
    assert splits["combination"] == toned | {"flat red heart"}
    assert len(splits["train"]) == 3 * 14 - 3 - 7


def test_two_runs_give_the_same_bytes(npm: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        data.make(npm, tmp_path / name, held())
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*.*"))]
    assert len(files) == 3 * 14 + 2
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_what_lacks_is_named_and_nothing_is_left(npm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = next((npm / "node_modules" / packages.THREE_D / "assets").iterdir())
    broken.write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify image file"):
        data.make(npm, out, held())
    (npm / "node_modules" / packages.FLAT / "chars.json").unlink()
    with pytest.raises(ValueError, match=r"fluent-emoji-flat 1\.2\.3 has no chars\.json"):
        data.make(npm, out, held())
    assert {path.name for path in tmp_path.iterdir()} == {"npm"}
    out.mkdir()
    with pytest.raises(ValueError, match="out is there already; name a new folder, or remove it"):
        data.make(npm, out, held())
    done = subprocess.run(
        [sys.executable, EMOJI / "data.py", tmp_path / "none", tmp_path / "other"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "emojibase-data is not in" in done.stderr
    assert f"npm install --prefix {tmp_path / 'none'} emoji-datasource-google" in done.stderr


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("grapes", "grapes"),
        ("octopus", "an octopus"),
        ("bread", "bread"),
        ("statue of liberty", "the statue of liberty"),
        ("one o'clock", "one o'clock"),
        ("person lifting weights", "a person lifting weights"),
        ("keycap: #", "a keycap with #"),
        ("woman: dark skin tone, red hair", "a woman with dark skin tone and red hair"),
        ("man: medium skin tone, bald", "a bald man with medium skin tone"),
        ("person with veil: light skin tone", "a person with veil and light skin tone"),
        ("man running: light skin tone, facing right", "a man running facing right with light skin tone"),
        ("family: man, woman, girl, girl", "a family of a man, a woman and two girls"),
        (
            "kiss: woman, man, light skin tone, dark skin tone",
            "a woman and a man kissing with light skin tone and dark skin tone",
        ),
        ("men holding hands: dark skin tone", "men holding hands with dark skin tone"),
        ("woman and man holding hands", "a woman and a man holding hands"),
    ],
)
def test_labels_become_phrases(label: str, said: str) -> None:
    assert captions.with_article(captions.name(label)) == said
    written = captions.captions(label, ["tag"], (), "noto")
    assert written[0] == f"{said}, noto style"
    assert len(set(written)) == len(written) >= 4
    assert all(each == each.lower() for each in written)


def test_variants_are_one_concept() -> None:
    labels = {"cat", "cat face", "clown face"}
    alike = ("man running: dark skin tone, facing right", "woman running", "person running: light skin tone")
    assert {held_out.concept(label, labels) for label in alike} == {"running"}
    assert {held_out.concept(label, labels) for label in ("woman: red hair", "man", "person: bald")} == {"person"}
    assert {held_out.concept(label, labels) for label in ("cat face", "grinning cat", "cat")} == {"cat"}
    assert held_out.concept("clown face", labels) == "clown face"
    assert held_out.concept("men's room", labels) == "men's room"


def test_the_choice_is_the_same_everywhere_and_of_the_sizes_that_are_said() -> None:
    concepts = {f"thing {i}": {"noto", "3d", "flat"} for i in range(400)} | {
        each: {"noto", "3d", "flat"} for each in held_out.PROFESSIONS
    }
    choice = held_out.choose(concepts, {"thing 1", "thing 2"})
    assert choice == held_out.choose(dict(reversed(concepts.items())), {"thing 2", "thing 1"})
    assert len(choice.names) == 42
    assert not choice.names & {"thing 1", "thing 2"}
    assert sorted(len(each) for each in choice.styles.values()) == [4, 4, 5]
    counts = {each: sum(each == profession for profession, _ in choice.tones) for each in held_out.PROFESSIONS}
    assert {each for each, count in counts.items() if count == 2} == set(held_out.PROFESSIONS) - choice.names


def test_what_is_written_down_overlaps_nowhere(tmp_path: Path) -> None:
    written = held_out.HeldOut.load()
    parts = [written.names, *written.styles.values(), {profession for profession, _ in written.tones}]
    assert sum(map(len, parts)) == len(frozenset().union(*parts))
    written.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == held_out.FILE.read_bytes()
