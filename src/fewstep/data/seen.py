"""What is known of image files that were decoded before, so that they are not decoded again to be checked.

One file for each source, in the cache folder: the hash of its rows, then the rows. A row is known by the hash of an image's
bytes, never by name or time, so a cache that is old, damaged or of another machine costs time and no more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.data.decode import VERSION, Facts
from fewstep.system.caches import default_folder

__all__ = ["ROW", "Seen"]

ROW = np.dtype([("sha256", "V32"), ("width", "<u4"), ("height", "<u4"), ("traits", "<u4")])
MAX_BYTES = 256 << 20  # of all sources together, six million images
PREFIX = "images-"
HASH = 32  # bytes


class Seen:
    """Facts of a source's images, by the hashes of their bytes."""

    def __init__(self, source: str) -> None:
        import PIL

        about = repr((str(Path(source).resolve()), VERSION, PIL.__version__))
        self.path = (
            default_folder() / f"{PREFIX}{hashlib.sha256(about.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.rows"
        )
        self.rows = self._read()
        self.facts = dict(
            zip(self.rows["sha256"].tolist(), map(Facts._make, self.rows[list(Facts._fields)].tolist()), strict=True)
        )

    def _read(self) -> npt.NDArray[np.void]:
        with suppress(OSError, ValueError):
            content = self.path.read_bytes()
            if content[:HASH] == hashlib.sha256(content[HASH:]).digest():
                os.utime(self.path)  # used last
                return np.frombuffer(content, ROW, offset=HASH)
        return np.empty(0, ROW)

    def keep(self, rows: npt.NDArray[np.void]) -> None:
        """Replace what is kept, beside first and then renamed, unless all was known; sources used longest ago make room."""
        if self.facts.keys() >= set(rows["sha256"].tolist()):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows.tobytes())
            self._make_room()
        except OSError as error:
            logging.getLogger(__name__).warning(
                "images are decoded anew each time they are opened, for lack of a cache: %s", error
            )

    def _write(self, content: bytes) -> None:
        descriptor, beside = tempfile.mkstemp(dir=self.path.parent, prefix=PREFIX, suffix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(beside, self.path)
        except OSError:
            Path(beside).unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        kept = [(path.stat(), path) for path in self.path.parent.glob(f"{PREFIX}*")]
        kept.sort(key=lambda item: -item[0].st_mtime_ns)
        total = 0
        for about, path in kept:
            total += about.st_size
            if total > MAX_BYTES and path != self.path:
                path.unlink(missing_ok=True)
