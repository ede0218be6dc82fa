"""Data sets as tables: which columns are images and labels, the files of a directory of them. Needs pyarrow; rows, datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.data.listing import Found, shown
from fewstep.data.survey import file_content
from fewstep.system.extras import install

__all__ = ["SAVED", "Columns", "ImageTable", "is_parquet", "label_values", "open_table"]

LABELS = ("label", "labels", "class")  # names that a column may have
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk writes


class Columns(NamedTuple):
    """Columns that are read: the image's, the label's where there is one, with its classes; and those that are not."""

    image: str
    label: str | None
    names: tuple[str, ...]
    unread: tuple[str, ...]

    @classmethod
    def of(cls, where: str, schema: Any) -> Columns:
        """Those of an arrow schema.

        Args:
            where: for the sentence.
            schema: with what `datasets` wrote of its columns, if it did.

        Raises:
            ValueError: where there is no image column, or several of which none is `image`.
        """
        features = _features(schema)
        images = [field.name for field in schema if _is_image(field, features.get(field.name))]
        if not images:
            raise ValueError(f"{where} has no image column, it has {schema.names}; store images as datasets.Image")
        if len(images) > 1 and "image" not in images:
            raise ValueError(f"{where} has several image columns, {', '.join(images)}; name the one that is meant `image`")
        image = "image" if "image" in images else images[0]
        label = next((name for name in LABELS if name in schema.names and name not in images), None)
        given = features.get(label or "", {}).get("names") or ()
        names = tuple(given) if all(isinstance(name, str) for name in given) else ()
        return cls(image, label, names, tuple(name for name in schema.names if name not in (image, label)))

    @classmethod
    def common(cls, schemas: Mapping[str, Any]) -> Columns:
        """Those of several files by their names. Raises ValueError where two have others, or number other classes."""
        found = {name: cls.of(name, schema) for name, schema in schemas.items()}
        first = next(iter(found))
        for name, columns in found.items():
            if columns[:3] != found[first][:3]:
                raise ValueError(f"{name} has other columns or classes than {first}; put them into directories of their own")
        return found[first]

    def notes(self) -> tuple[str, ...]:
        """A line that names the columns that are not read."""
        return (f"columns not read: {shown(', '.join(self.unread))}",) if self.unread else ()


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote of the columns, where it did and it can be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in found.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _is_image(field: Any, feature: dict[str, Any] | None) -> bool:
    """Whether a column holds encoded images: a struct with bytes, which is not called something else, such as Audio."""
    import pyarrow

    kind = field.type
    if not pyarrow.types.is_struct(kind) or (at := kind.get_field_index("bytes")) < 0:
        return False
    binary: bool = pyarrow.types.is_binary(kind.field(at).type) or pyarrow.types.is_large_binary(kind.field(at).type)
    return binary and (feature or {}).get("_type", "Image") == "Image"


def is_parquet(path: str) -> bool:
    """Whether a path below a source is a parquet file, none that is hidden."""
    parts = PurePosixPath(path).parts
    return path.lower().endswith(".parquet") and not any(part.startswith(".") for part in parts)


class ImageTable:
    """Encoded images of a data set's rows. A row holds its bytes, or the path of a file within the data set."""

    def __init__(self, root: Path, rows: Any, column: str) -> None:
        self.root, self.column = root, column
        self.rows = rows.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, i: int) -> bytes:
        item = self._item(i)
        if item.get("bytes"):
            return bytes(item["bytes"])
        if not item.get("path"):
            raise ValueError("it has neither bytes nor a path")
        return file_content(_within(self.root, str(item["path"])))

    def name(self, i: int) -> str:
        path = self._item(i).get("path")
        return f"image {i} of {self.root}{f' ({shown(str(path))})' if path else ''}"

    def named(self) -> set[tuple[str, ...]]:
        """Files below the directory that rows mean instead of holding bytes, by the parts of their paths."""
        items = (self._item(i) for i in range(len(self)))
        return {PurePosixPath(item["path"]).parts for item in items if item.get("path") and not item.get("bytes")}

    def _item(self, i: int) -> dict[str, Any]:
        return self.rows[i : i + 1][self.column][0].as_py() or {}


def _within(root: Path, path: str) -> Path:
    """The file that a row means. Raises ValueError for one outside the data set."""
    found = (root / path).resolve()
    if Path(path).is_absolute() or "://" in path or not found.is_relative_to(root.resolve()):
        raise ValueError(f"it is said to lie at {path}, outside the data set; store images with their bytes")
    return found


def open_table(path: Path, found: Found) -> tuple[ImageTable, Columns, Any, tuple[str, ...]]:
    """The rows of a data set directory, its columns, its labels as an array or None, and lines for people.

    Args:
        path: the directory.
        found: what `listed` found in it.

    Raises:
        ValueError: for one that cannot be read, has no images, or of whose parts none is for training.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"reading a data set needs datasets; {install('train')}") from None
    datasets.disable_progress_bars()
    files = [path.joinpath(*parts) for parts in found.of((".parquet",))]
    try:
        saved = any((path / name).is_file() for name in SAVED)
        data = datasets.load_from_disk(str(path)) if saved else _parquet(datasets, files)
    except Exception as error:  # whatever a reader makes of damaged files
        raise ValueError(f"{path} cannot be read as images: {' '.join(str(error).split())[:300]}") from None
    rows, notes = _split(path, data)
    columns = Columns.of(str(path), rows.features.arrow_schema)
    if not len(rows):
        raise ValueError(f"{path} holds no images; put images into it (one subfolder per class), or a data set")
    values = label_values([rows.with_format("arrow")[columns.label][:]]) if columns.label else None
    return ImageTable(path, rows, columns.image), columns, values, (*notes, *columns.notes())


def label_values(columns: Sequence[Any]) -> npt.NDArray[Any]:
    """Arrow columns of labels as one array."""
    return np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns])


def _split(path: Path, data: Any) -> tuple[Any, tuple[str, ...]]:
    """The rows of a saved data set: of several parts those for training, and a line that names the others."""
    if not isinstance(data, dict):
        return data, ()
    name = "train" if "train" in data else next(iter(data), "")
    others = [f"{other} ({len(rows)} rows)" for other, rows in data.items() if other != name]
    if name != "train" and len(data) != 1:
        raise ValueError(f"{path} has the parts {', '.join(data)}, and none is called train; give the directory of one")
    return data[name], (f"read: the part {name}; not read: {', '.join(others)}",) if others else ()


def _parquet(datasets: Any, files: Sequence[Path]) -> Any:
    """All rows of parquet files, as many as their footers count.

    What `datasets` makes of them is kept under a name that says which files they were, to the moment they were changed: it
    would go by their times alone, which a copy may keep.
    """
    import pyarrow.parquet

    about = [(str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns) for path in files for found in [path.stat()]]
    known_as = hashlib.sha256(repr(about).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    footers = {str(path): pyarrow.parquet.read_metadata(path) for path in files}
    Columns.common({name: footer.schema.to_arrow_schema() for name, footer in footers.items()})
    data = datasets.load_dataset("parquet", known_as, data_files=list(footers), split="train")
    rows = sum(footer.num_rows for footer in footers.values())
    if rows != len(data):
        raise ValueError(f"{rows} rows lie in its parquet files, and {len(data)} were read")
    return data
