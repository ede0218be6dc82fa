"""Classes by name or by number: what a request asks for, and what is said where a bundle has no such class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CLASS_NAME", "Classes", "Labels", "check_class_names", "class_names_of", "listed"]

Labels = Sequence[int | str] | npt.NDArray[np.int64]
MAX_CLASS_NAME = 255  # characters; folders have no longer names
SHOWN = 10  # names that a sentence lists
WIDTH = 60  # characters of each
SEARCHED = 1_000  # names that are compared with a wrong one; a request must not take seconds to refuse


class Classes:
    """So many classes, and what they are called, where they have names.

    Text is a name where it is one exactly, else a number. Where a name reads as the number of another class, as of folders 1 to
    10 (which sort as 1, 10, 2), text is a name only. Numbers that are no text are numbers always.
    """

    def __init__(self, count: int, names: Sequence[str] = ()) -> None:
        self.count, self.names = count, tuple(names)
        self.numbers = {name: i for i, name in enumerate(names)}
        self.plain = all(_whole(name) in (None, i) for name, i in self.numbers.items())

    def number(self, given: int | str) -> int:
        """The number of a class. Raises ValueError, which lists what there is, for one that is not there."""
        if isinstance(given, str) and given in self.numbers:
            return self.numbers[given]
        whole = _whole(given) if isinstance(given, str) and self.plain else given
        if not isinstance(whole, int | np.integer) or not 0 <= whole < self.count:
            raise ValueError(self._refusal(given if whole is None else whole))
        return int(whole)

    def read(self, text: str) -> list[int]:
        """The numbers of a list with commas between; where names hold commas themselves, the longest that fits is taken."""
        parts, found, at = text.split(","), [], 0
        most = max((name.count(",") for name in self.names), default=0)
        while at < len(parts):
            spans = (",".join(parts[at:end]) for end in range(min(at + most + 1, len(parts)), at, -1))
            name = next((span for long in spans for span in (long, long.strip()) if span in self.numbers), parts[at].strip())
            found.append(self.number(name))
            at += name.count(",") + 1
        return found

    def called(self, number: int) -> str:
        """The name of a class, or its number where classes have none."""
        return self.names[number] if self.names else str(number)

    def matched(self, labels: npt.NDArray[np.int64], names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The numbers of classes that a source of images numbers by itself, (N,), and calls by names where it has some.

        By name where both have names, or the source's are numbers: folders are numbered as they sort, so equal numbers may mean
        different classes.

        Args:
            labels: the source's numbers, (N,).
            names: by those numbers; empty where the source has none.

        Returns:
            Numbers of these classes, (N,).

        Raises:
            ValueError: for classes there are not, and for numbers alone where the classes have names.
        """
        known = self.numbers or {str(i): i for i in range(self.count)}
        used: list[int] = np.unique(labels).tolist()
        called = [names[i] if names else str(i) for i in used]
        if not self.names and any(_whole(name) is None for name in called):
            called = [str(i) for i in used]  # only numbers are known here
        if strange := [name for name in called if name not in known]:
            if not self.names:
                raise ValueError(f"there are {self.count}, and it has more of them")
            theirs = f"it has {listed(strange)} besides" if names else "it has numbers alone, which may mean others"
            raise ValueError(f"there are {listed(self.names)}, and {theirs}; call its classes as they are called there")
        return np.array([known[name] for name in called])[np.searchsorted(used, labels)]

    def _refusal(self, given: int | str) -> str:
        numbers = f"0 to {self.count - 1}" if self.plain or not isinstance(given, str) else ""
        known = " or ".join(filter(None, (listed(self.names), numbers)))
        named = "" if numbers else " by name"
        return f"a label of this bundle is {known}{named}, got {_short(given)}{self._meant(given)}"

    def _meant(self, given: int | str) -> str:
        """The name that is most like a wrong one, as a question."""
        if not isinstance(given, str) or not given or _whole(given) is not None or len(self.names) > SEARCHED:
            return ""
        wrong, alike = given[:WIDTH].casefold(), {name.casefold(): name for name in self.names}
        near = get_close_matches(wrong, alike, 1) or [name for name in alike if wrong in name]
        return f"; did you mean {_short(alike[near[0]])}?" if near else ""


def check_class_names(names: Sequence[str], classes: int) -> None:
    """Raises ValueError unless there are no names, or one for each class that a terminal can show, no two alike.

    Args:
        names: in the order of their numbers.
        classes: how many there are.
    """
    if names and len(names) != classes:
        raise ValueError(f"each of the {classes} classes has a name, or none has, got {len(names)} names")
    for name in names:
        if not name.isprintable() or not name.strip() or len(name) > MAX_CLASS_NAME:
            raise ValueError(f"the name of a class is 1 to {MAX_CLASS_NAME} printable characters, got {name[:80]!r}; change it")
    if len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise ValueError(f"two classes are called {twice!r}; give each a name of its own")


def class_names_of(count: int, id2label: object) -> tuple[str, ...]:
    """The names that a pipeline gives its classes; a name of two (crane) has the number behind it.

    Args:
        count: classes of the network.
        id2label: of model_index.json as a DiT pipeline has it, names by numbers as text.

    Raises:
        ValueError: for one that does not name each class.
    """
    wanted = [str(i) for i in range(count)]
    if not isinstance(id2label, dict) or sorted(id2label) != sorted(wanted):
        raise ValueError(
            f"id2label in model_index.json does not name the {count} classes of the network by their numbers; "
            "correct it, or remove it to import without names"
        )
    names = [str(id2label[i]) for i in wanted]
    often = Counter(names)
    names = [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]
    check_class_names(names, count)
    return tuple(names)


def listed(names: Sequence[str]) -> str:
    """Names with commas between, as many as a sentence bears."""
    shown = ", ".join(name if len(name) <= WIDTH else f"{name[:WIDTH]}..." for name in names[:SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _whole(text: str) -> int | None:
    """The whole number that a text is, None for other text."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _short(given: int | str) -> str:
    return repr(given[:WIDTH] if isinstance(given, str) else given)
