"""YAML files and command-line flags over the same frozen, typed classes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import tyro
import yaml
from pydantic_core import core_schema

from edgemim.errors import UserError


class Config(pydantic.BaseModel):
    """Base of every configuration class: frozen, keyword-only, unknown keys refused.

    Every field has a default, so that a bare command works; what a verb cannot do without is checked when it runs.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Config)


class Presets:
    """Annotates a config field so that a bare name stands for a whole value, in YAML and on the command line.

    `method: mae` in YAML and `--method mae` as a flag both pick `table["mae"]`; `--method.mask-ratio 0.6` then
    changes one key of it.
    """

    def __init__(self, table: Mapping[str, Config]) -> None:
        self.table = dict(table)

    def pick(self, value: object) -> object:
        """Replace a name by its preset; anything else passes through. Raises ValueError on an unknown name."""
        if not isinstance(value, str):
            return value
        if value not in self.table:
            raise ValueError(f"unknown name {value!r}{suggest(value, self.table)}; known: {', '.join(self.table)}")
        return self.table[value]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_before_validator_function(self.pick, handler(source))


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load_yaml(path: Path, cls: type[ConfigT]) -> ConfigT:
    """Read a YAML file into `cls`. Raises UserError that names the file, the key and the closest known key."""
    return from_mapping(read_mapping(path), cls, where=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping. Raises UserError if it is missing, unreadable or something else."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"cannot read config {path}: {error.strerror or error}; give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a mapping of keys to values")
    return data


def from_mapping(data: Mapping[str, Any], cls: type[ConfigT], where: str) -> ConfigT:
    """Validate a mapping as `cls`; `where` names its origin in the error message. Raises UserError."""
    try:
        return cls.model_validate(dict(data))
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {describe(error, cls)}") from error


def describe(error: pydantic.ValidationError, cls: type[pydantic.BaseModel]) -> str:
    """One sentence for all faults of a validation, each with its key and the closest known key."""
    faults = []
    names = field_names(cls)
    for fault in error.errors():
        # pydantic puts the tags of unions between the keys; users do not write those.
        parents = [str(part) for part in fault["loc"][:-1] if isinstance(part, int) or part in names]
        key = ".".join([*parents, *map(str, fault["loc"][-1:])])
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown key '{key}'{suggest(str(fault['loc'][-1]), names)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            faults.append(f"'{key}': {message}" if key else message)
    return "; ".join(faults)


def field_names(cls: type[pydantic.BaseModel]) -> set[str]:
    """All keys of a config class and of the config classes that its fields hold."""
    names: set[str] = set()
    for name, field in cls.model_fields.items():
        names.add(name)
        for part in _classes_in(field.annotation):
            names |= field_names(part)
    return names


def _classes_in(annotation: Any) -> Iterable[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _classes_in(part)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_yaml` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse(cls: type[ConfigT], argv: Sequence[str], *, prog: str) -> ConfigT:
    """Build `cls` from `--config FILE`, then names of presets, then flags; later ones win.

    Raises UserError on a bad value; an unknown flag prints the closest known ones and exits 2.
    """
    presets = _presets(cls)
    chosen, rest = _take_flags(argv, {"config", *presets})
    file = chosen.pop("config", None)
    data = read_mapping(Path(file)) if file else {}
    default = from_mapping({**data, **chosen}, cls, where=file or "flags")
    description = (inspect.getdoc(cls) or "") + _selector_help(presets)
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_unvalidated)
    with registry:
        parsed = tyro.cli(
            tyro.conf.AvoidSubcommands[cls], default=default, args=rest, prog=prog, description=description
        )
    return from_mapping(parsed.model_dump(warnings=False), cls, where="flags")


def _unvalidated(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Have tyro build config classes without validation: the whole is validated once, with sentences of our own."""
    if not (isinstance(info.type, type) and issubclass(info.type, Config)):
        return None
    hints = get_type_hints(info.type, include_extras=True)
    fields = []
    for name, field in info.type.model_fields.items():
        default = getattr(info.default, name, field.default)
        kind: Any = hints[name]
        if isinstance(default, Config):  # of a union, the member that was picked
            kind = type(default)
        elif default is None and any(_classes_in(field.annotation)):  # none was picked: it has no flags
            kind = tyro.conf.Suppress[None]
        elif metavar := _metavar(name, kind):
            kind = Annotated[kind, tyro.conf.arg(metavar=metavar)]
        fields.append(
            tyro.constructors.StructFieldSpec(name=name, type=kind, default=default, helptext=field.description)
        )
    return tyro.constructors.StructConstructorSpec(instantiate=info.type.model_construct, fields=tuple(fields))


def _metavar(name: str, kind: Any) -> str | None:
    """What help shows for a value: the name of a positional one, and the type of an optional one without its None."""
    if tyro.conf.Positional in getattr(kind, "__metadata__", ()):
        several = get_origin(get_args(kind)[0]) is tuple
        return f"[{name.upper()} ...]" if several else f"[{name.upper()}]"
    parts = [part for part in get_args(kind) if part is not type(None)]
    optional = len(parts) == 1 and type(None) in get_args(kind)
    return {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}.get(parts[0]) if optional else None


def _presets(cls: type[Config]) -> dict[str, Presets]:
    found = {}
    for name, field in cls.model_fields.items():
        # The mark of an optional field stands inside its union with None.
        marks = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in get_args(part))]
        for mark in marks:
            if isinstance(mark, Presets):
                found[name.replace("_", "-")] = mark
    return found


def _take_flags(argv: Sequence[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--name VALUE` and `--name=VALUE` of the given names from the other arguments."""
    taken: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        if not equals:
            value = next(words, "")
        if not value or (not equals and value.startswith("--")):
            raise UserError(f"--{name} needs a value")
        taken[name.replace("-", "_")] = value
    return taken, rest


def _selector_help(presets: Mapping[str, Presets]) -> str:
    lines = ["", "", "--config FILE: read a YAML file first; flags then change single keys."]
    lines += [f"--{name} NAME: one of {', '.join(mark.table)}." for name, mark in presets.items()]
    return "\n".join(lines)
