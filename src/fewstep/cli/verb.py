"""What every verb has: --config, a TOML file of its options, and --dry-run, which shows what it would do with.

Settings of long work are fields of a frozen dataclass; a verb has an option for each of them, of which --help shows a few and
--dry-run all.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from fewstep.system.console import print_json
from fewstep.system.json_object import read_object

__all__ = ["SHARED", "verb"]

MAX_BYTES = 1 << 20
SHARED = ("config_file", "dry_run", "help", "as_json")  # options of every verb; the rest are its own
Verb = Callable[..., None]


def verb(
    app: typer.Typer,
    name: str | None = None,
    *,
    panel: str,
    configs: Sequence[type] = (),
    visible: Sequence[str] = (),
    choose: Callable[[Mapping[str, Any]], type] | None = None,
) -> Callable[[Verb], Verb]:
    """Register a function as a verb of the command.

    Args:
        app: the command.
        name: of the verb, where not the function's.
        panel: of the list of verbs that it stands in.
        configs: classes that the function's argument `config` may be of, frozen dataclasses whose fields stand in their Args.
        visible: fields that --help lists.
        choose: which of the classes it is, from all options; the first one unless given. A setting that it has not is refused.
    """
    settings: dict[str, _Setting] = {}
    for kind in configs:
        settings = _settings_of(kind) | settings

    def decorate(function: Verb) -> Verb:
        asked = inspect.signature(function, eval_str=True).parameters
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for key, p in asked.items() if key != "config"]

        def resolved(params: Mapping[str, Any]) -> dict[str, Any]:
            """The function's arguments."""
            rest = {p.name: params[p.name] for p in own}
            if not configs:
                return rest
            given = {key: setting.value(params[key]) for key, setting in settings.items() if params[key] is not None}
            kind = choose(params) if choose else configs[0]
            if foreign := sorted(given.keys() - {f.name for f in fields(kind)}):
                raise ValueError(f"{_flag(foreign[0])} does not go with the other options that are given; leave it out")
            return rest | {"config": kind(**given)}

        @functools.wraps(function)
        def run(ctx: typer.Context, *, config_file: Path | None, dry_run: bool, **params: Any) -> None:
            del config_file  # its callback has read it
            arguments = resolved(params)
            if not dry_run:
                return function(**arguments)
            config = arguments.pop("config", None)
            of_config = {f.name: getattr(config, f.name) for f in fields(config)} if config else {}
            of_config |= {key: params[key] for key in of_config if settings[key].is_object}
            names = {param.name: name for name, param in _by_option(ctx).items()}
            options = {names[key]: value for key, value in (arguments | of_config).items() if key in names}
            return print_json(_plain_values(options)) if params.get("as_json") else print(_as_toml(options), end="")

        options = [setting.parameter(hidden=key not in visible) for key, setting in settings.items()]
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        hidden = len(options) > len(visible) or any(map(_is_hidden, own))
        parameters = [context, *own, *options, *_shared(hidden=hidden)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, rich_help_panel=panel)(run)
        return function

    return decorate


def _shared(*, hidden: bool) -> list[inspect.Parameter]:
    """--config and --dry-run. hidden: there are options that --help does not list."""
    more = "; there are more than are listed here" if hidden else ""
    file = typer.Option(
        "--config",
        is_eager=True,
        callback=_read_file,
        show_default=False,
        help="A TOML file with options of this verb; those on the command line count more.",
    )
    dry = typer.Option("--dry-run", help=f"Show every option as it would be used, as such a file, and do nothing{more}.")
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter("config_file", keyword, default=None, annotation=Annotated[Path | None, file]),
        inspect.Parameter("dry_run", keyword, default=False, annotation=Annotated[bool, dry]),
    ]


def _is_hidden(param: inspect.Parameter) -> bool:
    """Whether --help does not list an option."""
    return any(getattr(about, "hidden", False) for about in get_args(param.annotation)[1:])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Options of a file as the defaults of those on the command line."""
    if path is None:
        return path
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there; name a TOML file for --config") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no TOML file that can be read ({' '.join(str(error).split())})") from None
    known, ctx.default_map = _by_option(ctx), {}
    for key, value in found.items():
        asked = key.replace("-", "_")
        if asked not in known:
            near = difflib.get_close_matches(asked, known, 1)
            raise ValueError(f"{path} has {key!r}, no option of {ctx.info_name}" + (f"; is {near[0]!r} meant?" if near else ""))
        ctx.default_map[str(known[asked].name)] = _as_given(f"{path}: {key}", value, known[asked])
    return path


def _by_option(ctx: typer.Context) -> dict[str, Any]:
    """A verb's own options, and its arguments, by the names that a file has for them."""
    own = [param for param in ctx.command.params if param.name not in SHARED]
    return {max(param.opts, key=len).lstrip("-").replace("-", "_"): param for param in own}


def _as_given(what: str, value: Any, param: Any) -> Any:
    """A value of a file as the command line would have it, so that it is checked alike: 2.5 is no whole number.

    Raises ValueError for a table, or a list of lists.
    """
    several = getattr(param, "multiple", False) or param.nargs == -1
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        texts = [str(each) for each in value]
        return texts if several else ",".join(texts)
    if isinstance(value, list | dict):
        kind = "a table" if isinstance(value, dict) else "a list of lists or tables"
        raise ValueError(f"{what} is {kind}; options are numbers, text, truth values and lists of them")
    if several:
        return [str(value)]
    return value if isinstance(value, bool) and getattr(param, "is_flag", False) else str(value)


def _plain_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, which knows no paths and no infinity."""
    plain = (int, list, tuple, type(None))
    return {
        key: value if isinstance(value, plain) or (isinstance(value, float) and isfinite(value)) else str(value)
        for key, value in settings.items()
    }


def _as_toml(settings: Mapping[str, Any]) -> str:
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items() if value is not None and value != ()]
    unset = [name for name, value in settings.items() if value is None or value == ()]
    return "\n".join([*lines, *(f"# {name}: not set" for name in unset)]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) + '"'


@dataclass(frozen=True)
class _Setting:
    """A field of a configuration as an option."""

    name: str
    kind: Any
    default: Any
    help: str

    def parameter(self, *, hidden: bool) -> inspect.Parameter:
        """Of a verb; None is "not said"."""
        simple = self.kind if self.kind in (int, float, bool, Path) else str
        flag = _flag(self.name)
        shown = False if self.default in (None, (), {}) else _shown(self.default)
        decls = [f"{flag}/--no-{flag[2:]}"] if simple is bool else [flag]
        option = typer.Option(*decls, help=self.help, hidden=hidden, show_default=shown)
        annotation = Annotated[simple | None, option]  # type: ignore[valid-type]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def value(self, given: Any) -> Any:
        """Of an option, as the configuration takes it."""
        if get_origin(self.kind) is tuple and isinstance(given, str):
            of = get_args(self.kind)[0]
            try:
                return tuple(of(part) for part in given.split(","))
            except ValueError:
                raise ValueError(f"{self.name} are numbers with commas between, such as 32,64, got {given!r}") from None
        return read_object(Path(given)) if self.is_object else given

    @property
    def is_object(self) -> bool:
        """Whether it is a JSON object, which an option names the file of."""
        origin = get_origin(self.kind)
        return inspect.isclass(origin) and issubclass(origin, Mapping)


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _settings_of(kind: type) -> dict[str, _Setting]:
    hints, helps = get_type_hints(kind), _helps(kind)
    return {
        f.name: _Setting(f.name, _plain(hints[f.name]), None if f.default is MISSING else f.default, helps.get(f.name, ""))
        for f in fields(kind)
    }


def _plain(kind: Any) -> Any:
    """A type without "or None"."""
    rest = [each for each in get_args(kind) if each is not type(None)]
    if type(None) in get_args(kind) and len(rest) == 1:
        return rest[0]
    return str if get_origin(kind) is Literal else kind


def _helps(kind: type) -> dict[str, str]:
    """What the Args: of a class and of those above it say of each field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.getdoc(each) or ""
        block = text.partition("Args:\n")[2].split("\n\n")[0]
        for names, meaning in re.findall(r"^ {4}(\w[\w, ]*): ((?:.|\n(?: {8}))+)", block, re.MULTILINE):
            said = " ".join(meaning.split()).rstrip(".")
            found |= {name.strip(): f"{said[:1].upper()}{said[1:]}." for name in names.split(",")}
    return found
