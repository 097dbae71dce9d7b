"""YAML files and command-line flags over the same frozen, typed classes."""

from __future__ import annotations

import difflib
import inspect
import re
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
    changes one key of it, `--method.decoder linear` a value inside it that has presets of its own. The path of a
    YAML file (from the current folder) stands for the value that the file describes; it begins with its `name`.
    """

    def __init__(self, table: Mapping[str, Config]) -> None:
        self.table = dict(table)

    def pick(self, value: object) -> object:
        """Replace a name by its preset and a YAML file's path by what it describes; anything else passes through.

        Raises ValueError on an unknown name, UserError on a file at fault.
        """
        if not isinstance(value, str):
            return value
        if value.endswith((".yaml", ".yml")):
            return self._read(Path(value))
        if value not in self.table:
            raise ValueError(_unknown(value, self.table))
        return self.table[value]

    @property
    def names(self) -> str:
        """What NAME may be, for help and messages."""
        return f"one of {', '.join(self.table)}"

    def _read(self, path: Path) -> Config:
        data = read_mapping(path)
        kinds = {cls.model_fields["name"].default: cls for cls in map(type, self.table.values())}
        if "name" not in data:
            known = ", ".join(kinds)
            raise UserError(f"{path} does not say its 'name', one of {known}; a whole recipe is given with --config")
        if data["name"] not in kinds:
            raise UserError(f"{path}: 'name': {_unknown(data['name'], kinds)}")
        return from_mapping(data, kinds[data["name"]], where=str(path))

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_before_validator_function(self.pick, handler(source))


def _unknown(name: object, known: Iterable[str]) -> str:
    return f"unknown name {name!r}{suggest(str(name), known)}; known: {', '.join(known)}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest known word, or an empty string."""
    # The same word is known elsewhere, a level higher or lower: to repeat it would help nobody.
    close = difflib.get_close_matches(word, [other for other in known if other != word], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load_yaml(path: Path, cls: type[ConfigT]) -> ConfigT:
    """Read a YAML file into `cls`. Raises UserError that names the file, the key and the closest known key."""
    return from_mapping(read_mapping(path), cls, where=str(path))


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain types, of which a key that stands twice is a mistake and not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping. Raises UserError if it is missing, unreadable or something else."""
    try:
        data = yaml.load(path.read_text(), _StrictLoader)
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
            message = _message(fault)
            faults.append(f"'{key}': {message}" if key else message)
    return "; ".join(faults)


_SHAPES = {
    "tuple_type": "must be a list",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a name, or a mapping of keys to values",
}


def _message(fault: Mapping[str, Any]) -> str:
    """pydantic's sentence for one fault, with the closest of the words that it would have taken."""
    context = fault.get("ctx", {})
    if fault["type"] == "union_tag_invalid":
        return _unknown(context["tag"], re.findall(r"'([^']+)'", context["expected_tags"]))
    if fault["type"] == "union_tag_not_found":
        return "its 'name' is missing"
    if fault["type"] in _SHAPES:
        return _SHAPES[fault["type"]]
    if fault["type"] == "literal_error":
        return fault["msg"] + suggest(str(fault["input"]), re.findall(r"'([^']+)'", context["expected"]))
    return fault["msg"].removeprefix("Value error, ")


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
    """Build `cls` from `--config FILE`, then names of presets, outer ones first, then flags; later ones win.

    Raises UserError on a bad value; an unknown flag prints the closest known ones and exits 2.
    """
    chosen, rest = _take_flags(argv, {"config", *_presets(cls)})
    file = chosen.pop("config", None)
    data = read_mapping(Path(file)) if file else {}
    default, rest = _pick_inside(from_mapping({**data, **chosen}, cls, where=file or "flags"), rest)
    _refuse_flags_of_nothing(default, rest)
    description = (inspect.getdoc(cls) or "") + _selector_help(_choices(default))
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_unvalidated)
    with registry:
        parsed = tyro.cli(
            tyro.conf.AvoidSubcommands[cls], default=default, args=rest, prog=prog, description=description
        )
    return from_mapping(parsed.model_dump(warnings=False), cls, where="flags")


def _choices(config: Config, prefix: str = "") -> dict[str, tuple[Presets, object]]:
    """Flags of the fields that a name may stand for, in a configuration and in those that it holds, outer ones first:
    each with its presets and its present value."""
    presets = _presets(type(config))
    found = {prefix + flag: (mark, getattr(config, flag.replace("-", "_"))) for flag, mark in presets.items()}
    for name in type(config).model_fields:
        value, flag = getattr(config, name), prefix + name.replace("_", "-")
        parts = enumerate(value) if isinstance(value, tuple) else ()
        for path, part in ((flag, value), *((f"{flag}.{i}", part) for i, part in parts)):
            if isinstance(part, Config):
                found |= _choices(part, path + ".")
    return dict(sorted(found.items(), key=lambda item: item[0].count(".")))


def _pick_inside(config: ConfigT, words: list[str]) -> tuple[ConfigT, list[str]]:
    """Replace values inside the configuration by the presets that flags name; what was picked may hold further ones."""
    for flag, (mark, _) in _choices(config).items():
        taken, rest = _take_flags(words, {flag})
        for path, name in taken.items():
            try:
                changed = _replaced(config, path.split("."), mark.pick(name))
            except ValueError as error:
                raise UserError(f"flags: '{path}': {error}") from error
            return _pick_inside(changed, rest)
    return config, words


def _replaced(holder: Any, path: Sequence[str], value: object) -> Any:
    head, *rest = path
    if isinstance(holder, tuple):
        place = int(head)
        return (*holder[:place], _replaced(holder[place], rest, value) if rest else value, *holder[place + 1 :])
    return holder.model_copy(update={head: _replaced(getattr(holder, head), rest, value) if rest else value})


def _refuse_flags_of_nothing(config: Config, words: Sequence[str]) -> None:
    """Raise UserError on a flag for a key of something that is not chosen, such as --teacher.stage without --teacher."""
    for flag, (mark, value) in _choices(config).items():
        stray = [word.partition("=")[0] for word in words if word.replace("_", "-").startswith(f"--{flag}.")]
        if value is None and stray:
            raise UserError(f"{stray[0]} changes nothing, for there is no {flag} yet; add --{flag} NAME ({mark.names})")


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
        if not word.startswith("--") or name.replace("_", "-") not in names:
            rest.append(word)
            continue
        if not equals:
            value = next(words, "")
        if not value or (not equals and value.startswith("--")):
            raise UserError(f"--{name} needs a value")
        taken[name.replace("-", "_")] = value
    return taken, rest


def _selector_help(choices: Mapping[str, tuple[Presets, object]]) -> str:
    lines = ["", "", "--config FILE: read a YAML file first; flags then change single keys."]
    lines[-1] += " Where NAME stands, a YAML file of one such thing will do, too." if choices else ""
    lines += [f"--{flag} NAME: {mark.names}." for flag, (mark, _) in choices.items() if not re.search(r"\.\d", flag)]
    return "\n".join(lines)
