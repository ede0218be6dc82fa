"""One decoder: what a file shows, in a folder, a data set and a stream, and what is said of what it loses."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_cli import fewstep, refused

from fewstep.data import Images, batches, open_images
from fewstep.data.decode import Facts, Traits, decode
from fewstep.data.stream import open_stream

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 4, 3), np.uint8)  # (H, W, C), no two rows alike


def png(color: int, depth: int, values: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG made by hand: Pillow does not write all of them. values (H, W, channels)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] if transparent else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def encoded(image: Any, kind: str = "png", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content)[0])


def opened(root: Path, contents: dict[str, bytes], split: Any = "all", **options: Any) -> Images:
    root.mkdir(exist_ok=True)
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return open_images(str(root), split, **options)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_upright(orientation: int, kind: str) -> None:
    """Truth: the EXIF standard's own words for where row 0 and column 0 of the file are to be seen."""
    seen = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left")}
    seen |= {5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")}
    grey = np.zeros((32, 48), np.uint8)
    grey[:8], grey[:, :8] = 100, 200  # the 0th row and the 0th column
    (exif := Image.Exif())[0x0112] = orientation
    shown = pixels(encoded(Image.fromarray(grey), kind, exif=exif)).astype(int)
    sides = {"top": shown[:6, 8:-8], "bottom": shown[-6:, 8:-8], "left": shown[8:-8, :6], "right": shown[8:-8, -6:]}
    row, column = seen[orientation]
    assert shown.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    assert abs(sides[row].mean() - 100) < 5
    assert abs(sides[column].mean() - 200) < 5


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = RNG.integers(0, 1 << 16, (6, 4, 4))
    for color, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        values = deep[..., :channels].copy()
        if color in (4, 6):
            values[..., -1] = 65535
        picture, facts = decode(png(color, 16, values))
        want = values[..., 0] if color in (0, 4) else values[..., :3]
        assert picture.mode == ("L" if color in (0, 4) else "RGB")
        assert np.abs(np.asarray(picture) - want / 257).max() <= 1
        assert facts.traits == Traits.DEEP | (Traits.COLOR if color in (2, 6) else Traits(0))
    tiff = encoded(Image.fromarray(deep[..., 0].astype(np.uint16)), "tiff")
    assert np.abs(pixels(tiff) - deep[..., 0] / 257).max() <= 1
    images = opened(tmp_path / "data", {"a.png": png(0, 16, deep[..., :1]), "b.png": encoded(Image.new("L", (4, 4)))})
    assert "1 of more than 8 bits a channel, of which the upper 8 are kept" in images.notes[1]


def test_a_grey_of_twelve_bits_is_as_light_as_it_says() -> None:
    values = np.array([[0x000, 0xFFF, 0x800, 0x123]])
    packed = bytes.fromhex("000fff800123")
    fields = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    table = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    content = b"II*\0" + struct.pack("<I", 16) + packed.ljust(8, b"\0") + table + struct.pack("<I", 0)
    assert pixels(content).tolist() == (values >> 4).tolist()


def test_what_is_transparent_is_on_white_however_the_file_says_it() -> None:
    alpha = np.full((6, 4), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    rgba = Image.fromarray(np.dstack([COLORS, alpha]))
    want = np.round(COLORS * (alpha / 255.0)[..., None] + 255 * (1 - alpha / 255.0)[..., None])
    for content in (encoded(rgba), encoded(rgba, "tiff"), encoded(rgba, "webp", lossless=True, exact=True)):
        picture, facts = decode(content)
        assert picture.mode == "RGB"
        assert np.abs(np.asarray(picture) - want).max() <= 1
        assert facts.traits == Traits.COLOR | Traits.TRANSPARENT
    grey = decode(encoded(Image.fromarray(np.dstack([COLORS[..., 0], alpha]))))
    assert grey[0].mode == "L"
    assert np.abs(np.asarray(grey[0]) - np.round(255 + (COLORS[..., 0] - 255.0) * alpha / 255)).max() <= 1
    key = png(2, 8, COLORS, struct.pack(">HHH", *COLORS[2, 1].tolist()))
    assert pixels(key)[2, 1].tolist() == [255] * 3
    for depth in (8, 16):
        values = np.arange(24).reshape(6, 4, 1) * (257 if depth == 16 else 1)
        shown = pixels(png(0, depth, values, struct.pack(">H", int(values[3, 2, 0]))))
        assert shown[3, 2] == 255
        assert np.delete(shown, 14).tolist() == [v for v in range(24) if v != 14]
    palette = Image.fromarray(COLORS).quantize(24)
    hole = palette.getpixel((0, 0))
    known = np.asarray(palette.convert("RGB"))
    shown = pixels(encoded(palette, transparency=hole))
    holes = np.asarray(palette) == hole
    assert (shown[holes] == 255).all()
    assert (shown[~holes] == known[~holes]).all()
    opaque = np.dstack([COLORS, np.full((6, 4), 255, np.uint8)])
    assert decode(encoded(Image.fromarray(opaque)))[1] == Facts(4, 6, Traits.COLOR)


def test_nothing_depends_on_which_file_sorts_first(tmp_path: Path) -> None:
    grey, color = encoded(Image.new("L", (40, 30), 80)), encoded(Image.new("RGB", (12, 14), (200, 10, 10)))
    one = opened(tmp_path / "one", {"a.png": grey, "b.png": color})
    other = opened(tmp_path / "other", {"a.png": color, "b.png": grey})
    assert one.image == other.image
    assert one.image.shape == (3, 12, 12)
    first, second = (next(batches(images, 2))[0] for images in (one, other))
    assert np.array_equal(first, second[::-1])
    assert one.notes[1:] == other.notes[1:]
    assert (first[0] == 80).all()


def test_what_becomes_of_images_is_said_with_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), (i, 90, 9)) for i in range(3)]
    gamma = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    flat = Image.new("RGB", (20, 20), (1, 2, 3))
    contents = {
        "a.gif": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "b.jpg": encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "jpeg"),
        "c.png": encoded(flat, icc_profile=gamma),
        "d.png": encoded(flat, icc_profile=srgb),
        "e.png": encoded(Image.new("L", (20, 30))),
        "f.png": encoded(Image.new("RGBA", (50, 40), (1, 2, 3, 4))),
        "g.png": encoded(flat.resize((8, 8))),
        "h.png": encoded(flat.resize((8, 8))),
    }
    images = opened(tmp_path / "data", contents, resolution=20)
    assert images.notes == (
        f"{tmp_path / 'data'}: 8 images",
        "they become 20x20: 2 cut to their central square; 2 enlarged; 1 grey, among others in color; 1 in CMYK, made RGB "
        "without its profile; 1 of several frames or pages, of which the first is taken; 1 reduced; 1 transparent, laid on "
        "white; 1 with a color profile other than sRGB, which is not applied",
        "1 are byte for byte copies of others",
    )
    shown = dict(zip(sorted(contents), next(batches(images, 8))[0], strict=True))
    assert shown["a.gif"][:, 0, 0].tolist() == [0, 90, 9]
    assert shown["b.jpg"][0].min() > 200 > 50 > shown["b.jpg"][1].max()
    by_itself = opened(tmp_path / "data", contents).notes
    assert "they become 8x8, the smallest one's side (--resolution chooses another): " in by_itself[1]


def test_what_was_found_is_said_when_training_starts(tmp_path: Path) -> None:
    for label in ("bus", "car", "train"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "data" / label / f"{i}.png").write_bytes(encoded(Image.new("RGBA", (8, 8), (i, 0, 0, 9))))
    said = fewstep("train", "--data", tmp_path / "data", "--iterations", 1, "--batch", 2, "--out", tmp_path / "a").stderr
    before, *_ = said.split("train teacher: ")
    assert "30 images in 3 classes: 0 bus (10), 1 car (10), 2 train (10)" in before
    assert "30 transparent, laid on white" in before


def test_a_look_at_many_images_shows_its_progress(tmp_path: Path) -> None:
    seen = list[str]()

    def track(steps: Sequence[int], what: str) -> Sequence[int]:
        seen.append(f"{what} {len(steps)}")
        return steps

    content = encoded(Image.new("L", (8, 8)))
    for count, said in ((500, []), (600, [f"look at {tmp_path / '600'} 10"])):
        opened(tmp_path / str(count), {f"{i}.png": content for i in range(count)}, track=track)
        assert seen == said


def test_no_other_program_and_no_other_format_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG that is PostScript would start Ghostscript, gs in the path."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    whole = {f"{i}.png": encoded(Image.new("L", (8, 8), i)) for i in range(4)}
    with pytest.raises(ValueError, match=r"x\.PNG is not a readable image \(it is none of PNG, JPEG, WEBP, GIF, BMP, TIFF\)"):
        opened(tmp_path / "data", {**whole, "x.PNG": script})
    assert not started.exists()
    for kind in ("ppm", "tga", "ico", "pcx"):
        with pytest.raises(ValueError, match="it is none of PNG"):
            decode(encoded(Image.new("RGB", (16, 16)), kind))


def _bomb() -> bytes:
    return png(0, 8, np.zeros((1, 1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 12_000, 12_000))


def _crc(content: bytes) -> bytes:
    """The same PNG with the right checksum of its header."""
    return content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]


def test_what_cannot_be_read_is_named_before_a_run(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(COLORS).resize((64, 64)))
    bad = {
        "1.png": (whole[: len(whole) // 2], "truncated"),
        "2.png": (b"", "it is empty"),
        "3.png": (b"no image at all", "it is none of PNG"),
        "4.png": (_crc(_bomb()), "12000x12000 pixels are more than"),
        "5.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "tiff"), "do not say what is black"),
        "6.tif": (encoded(Image.fromarray(np.ones((8, 8), np.int32)), "tiff"), "do not say what is black"),
        "7.png": (png(2, 16, np.zeros((4, 4, 3)), struct.pack(">HHH", 1, 2, 3)), "transparent color has 16 bits"),
    }
    assert len(opened(tmp_path / "data", {f"{i}0.png": whole for i in range(1, 6)})) == 5
    for name, (content, reason) in bad.items():
        with pytest.raises(ValueError, match=rf"data/{name} is not a readable image \(.*{reason}.*\); repair or remove"):
            opened(tmp_path / "data", {name: content})
        (tmp_path / "data" / name).unlink()
    for name, (content, _) in bad.items():
        (tmp_path / "data" / name).write_bytes(content)
    message = refused("train", "--data", tmp_path / "data", "--out", tmp_path / "a")
    assert "1.png is not a readable image (" in message
    assert "nor are 6 others, such as" in message


def test_an_image_that_goes_while_it_is_needed_is_named(tmp_path: Path) -> None:
    images = opened(tmp_path / "data", {f"{i}.png": encoded(Image.new("L", (8, 8), i)) for i in range(5)})
    assert len(images[np.arange(5)][0]) == 5
    (tmp_path / "data" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png was an image when it was opened, and is not any more"):
        images[np.arange(5)]


def _rows() -> dict[str, bytes]:
    (exif := Image.Exif())[0x0112] = 6
    turned = encoded(Image.fromarray(COLORS).resize((8, 12)), "jpeg", exif=exif, quality=95)
    clear = encoded(Image.fromarray(np.dstack([COLORS, COLORS[..., 0]])))
    return {
        "a.jpg": turned,
        "b.png": clear,
        "c.png": png(0, 16, RNG.integers(0, 1 << 16, (8, 8, 1))),
        "d.png": encoded(Image.fromarray(COLORS).quantize(8)),
        "e.png": encoded(Image.new("L", (5, 5), 7)),
    }


def test_folders_data_sets_and_streams_show_the_same(tmp_path: Path) -> None:
    import datasets

    rows = _rows()
    folder = opened(tmp_path / "folder", rows, resolution=8)
    features = datasets.Features({"image": datasets.Image()})
    items = [{"bytes": content, "path": None} for content in rows.values()]
    data = datasets.Dataset.from_dict({"image": items}, features=features)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "a.parquet")
    others = [open_images(str(tmp_path / name), "all", resolution=8) for name in ("saved", "parquet")]
    stream = open_stream(f"file://{tmp_path / 'parquet'}", resolution=8)
    want = next(batches(folder, 9))[0]
    assert want.shape == (5, 3, 8, 8)
    for other in others:
        assert np.array_equal(next(batches(other, 9))[0], want)
        assert other.notes[1:] == folder.notes[1:]
    assert np.array_equal(stream[np.arange(4)][0], want[:4])
    assert "no other was looked at yet" in stream.notes[1]


def test_a_stream_says_once_what_it_could_not_know(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    contents = [encoded(Image.new("L", (8, 8))), *(encoded(Image.new("RGB", (8, 8), (9, i, 9))) for i in range(9))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [{"bytes": b, "path": None} for b in contents]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    stream = open_stream(f"file://{tmp_path}")
    assert "they become 8x8 in grey, as the first of them is" in stream.notes[1]
    stream[np.arange(8)]
    said = capfd.readouterr().err
    assert said.count("in color, made grey") == 1
    assert "image 1 of row group 0 of" in said
