"""Configuration: YAML, presets and flags over one set of classes, and mistakes answered with the closest name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest

import edgemim
from edgemim import config as module
from edgemim.config import Config, Presets, load_yaml, parse, suggest, to_yaml
from edgemim.errors import UserError

REPOSITORY = Path(__file__).parent.parent


class Round(Config):
    """A circle."""

    name: Literal["round"] = "round"
    """The kind."""
    radius: float = pydantic.Field(default=1.0, gt=0)
    """Radius in metres."""


class Box(Config):
    """A box."""

    name: Literal["box"] = "box"
    """The kind."""
    sides: tuple[int, int] = (2, 3)
    """Lengths."""
    inner: Round = Round()
    """What it holds."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Box:
        if self.sides[0] > self.sides[1]:
            raise ValueError("sides must grow")
        return self


Shape = Annotated[
    Round | Box,
    pydantic.Field(discriminator="name"),
    Presets({"dot": Round(radius=0.1), "round": Round(), "crate": Box(sides=(5, 6))}),
]


class Order(Config):
    """An order.

    Example: order --shape dot
    """

    count: int = pydantic.Field(default=1, ge=1)
    """How many."""
    colour: Literal["red", "blue"] = "red"
    """Of the paint."""
    urgent: bool = False
    """Send at once."""
    target: Path | None = None
    """Where it goes."""
    shape: Shape = Round()
    """What is made."""
    spare: Shape | None = None
    """What is added."""


class Shelf(Config):
    """A shelf."""

    name: Literal["shelf"] = "shelf"
    """The kind."""
    left: Shape = Round()
    """What stands on the left."""
    far_right: Shape | None = None
    """What stands on the right."""
    row: tuple[Box, ...] = ()
    """What stands between."""


class Room(Config):
    """A room."""

    shelf: Annotated[Shelf, Presets({"shelf": Shelf(), "full": Shelf(left=Box(), row=(Box(), Box(sides=(7, 8))))})] = (
        Shelf()
    )
    """What it holds."""
    spare: Shape | None = None
    """What lies about."""


def from_text(tmp_path: Path, text: str) -> Order:
    (tmp_path / "order.yaml").write_text(text)
    return load_yaml(tmp_path / "order.yaml", Order)


def flags(*words: str) -> Order:
    return parse(Order, words, prog="order")


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    order = from_text(tmp_path, "count: 3\nshape: {name: box, sides: [1, 9]}\ntarget: a/b\nspare: dot\n")
    assert order == Order(count=3, shape=Box(sides=(1, 9)), target=Path("a/b"), spare=Round(radius=0.1))
    assert from_text(tmp_path, "# nothing\n") == Order()
    assert from_text(tmp_path, "shape: {name: round, radius: 2e-1}\n").shape == Round(radius=0.2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuont: 3", ["order.yaml", "unknown key 'cuont'", "did you mean 'count'?"]),
        ("shape: {name: box, sidse: [1, 2]}", ["'shape.sidse'", "did you mean 'sides'?"]),
        ("shape: {name: box, inner: {radios: 1}}", ["'shape.inner.radios'", "did you mean 'radius'?"]),
        ("spare: {name: round, radios: 1}", ["'spare.radios'", "did you mean 'radius'?"]),
        ("zzz: 1", ["unknown key 'zzz'"]),
        ("1: 2", ["order.yaml", "1"]),
        ("count: many", ["'count'", "integer"]),
        ("count: 0", ["'count'", "greater than or equal to 1"]),
        ("colour: green", ["'colour'", "red", "blue"]),
        ("shape: crat", ["'shape'", "unknown name 'crat'", "did you mean 'crate'?", "dot, round, crate"]),
        ("spare: crat", ["'spare'", "did you mean 'crate'?"]),
        ("shape: {name: ball}", ["'shape'", "unknown name 'ball'; known: round, box"]),
        ("shape: {name: bxo}", ["'shape'", "did you mean 'box'?"]),
        ("shape: {radius: 1}", ["'shape'", "its 'name' is missing"]),
        ("colour: bleu", ["'colour'", "did you mean 'blue'?"]),
        ("shape: {name: box, sides: [3, 1]}", ["'shape", "sides must grow"]),
        ("count: 0\ncolour: green", ["'count'", "'colour'"]),
        ("- a\n- b", ["order.yaml", "list"]),
        ("shape: {name: box, sides: 4}", ["'shape.sides'", "must be a list"]),
        ("shape: {name: box, inner: 4}", ["'shape.inner'", "must be a mapping"]),
        ("shape: 4", ["'shape'", "must be a name, or a mapping"]),
        ("count: 1\nurgent: true\ncount: 2", ["order.yaml", "key 'count' stands twice", "line 1"]),
        ("shape: {name: box, name: round}", ["key 'name' stands twice"]),
        ("count: [", ["order.yaml", "not valid YAML"]),
        ("just words", ["order.yaml", "str"]),
        ("count: !!python/object/apply:os.system ['true']", ["not valid YAML"]),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        from_text(tmp_path, text)
    message = str(error.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert "pydantic" not in message


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml.*No such file"):
        load_yaml(tmp_path / "absent.yaml", Order)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b\.yaml"):
        load_yaml(tmp_path / "b.yaml", Order)
    with pytest.raises(UserError, match="cannot read"):
        load_yaml(tmp_path, Order)


def test_flags_change_what_they_name() -> None:
    assert flags() == Order()
    assert flags("--count", "3", "--urgent", "--target", "x") == Order(count=3, urgent=True, target=Path("x"))
    assert flags("--shape.radius", "2.5").shape == Round(radius=2.5)
    assert flags("--count=4", "--no-urgent").count == 4


def test_a_name_picks_a_whole_value_and_flags_change_keys_of_it() -> None:
    assert flags("--shape", "crate").shape == Box(sides=(5, 6))
    assert flags("--shape=crate", "--shape.inner.radius", "7").shape == Box(sides=(5, 6), inner=Round(radius=7))
    assert flags("--shape.sides", "1", "8", "--shape", "crate").shape == Box(sides=(1, 8))
    assert flags("--spare", "dot", "--spare.radius", "3").spare == Round(radius=3)
    assert flags("--spare", "dot").shape == Round()


def room(*words: str) -> Room:
    return parse(Room, words, prog="room")


def test_a_name_picks_a_value_inside_a_value() -> None:
    assert room("--shelf.left", "crate").shelf.left == Box(sides=(5, 6))
    assert room("--shelf.left=crate", "--shelf.left.sides", "1", "2").shelf.left == Box(sides=(1, 2))
    # Outer ones first, whatever the order; dashes and underscores alike.
    order = room("--shelf.far_right.radius", "3", "--shelf.far-right", "dot", "--shelf.left", "dot", "--shelf", "full")
    assert order.shelf == Shelf(left=Round(radius=0.1), far_right=Round(radius=3), row=(Box(), Box(sides=(7, 8))))
    assert room("--shelf", "full", "--shelf.row.1.inner.radius", "9").shelf.row[1].inner == Round(radius=9)


def test_a_file_stands_for_a_value_wherever_a_name_does(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("name: box\nsides: [2, 9]\n")
    assert flags("--shape", str(file), "--shape.inner.radius", "4").shape == Box(sides=(2, 9), inner=Round(radius=4))
    assert room("--shelf.far_right", str(file)).shelf.far_right == Box(sides=(2, 9))
    assert from_text(tmp_path, f"spare: {file}").spare == Box(sides=(2, 9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: bx\n", ["shape.yaml", "unknown name 'bx'", "did you mean 'box'?"]),
        ("sides: [2, 9]\n", ["shape.yaml does not say its 'name'", "round, box"]),
        ("name: box\nsidse: [2, 9]\n", ["shape.yaml", "unknown key 'sidse'", "did you mean 'sides'?"]),
        ("name: box\nsides: [9, 2]\n", ["shape.yaml", "sides must grow"]),
        ("- 1\n", ["shape.yaml", "list"]),
        (None, ["shape.yaml", "No such file"]),
    ],
)
def test_a_file_at_fault_is_named(tmp_path: Path, text: str | None, words: list[str]) -> None:
    if text is not None:
        (tmp_path / "shape.yaml").write_text(text)
    for command in (("--shape", str(tmp_path / "shape.yaml")), ("--spare", str(tmp_path / "shape.yaml"))):
        with pytest.raises(UserError) as error:
            flags(*command)
        assert [word for word in words if word not in str(error.value)] == []
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ("--spare.radius", "3"),
            "--spare.radius changes nothing, for there is no spare yet; add --spare NAME (one of",
        ),
        (("--shelf.far_right.radius=3",), "add --shelf.far-right NAME (one of dot, round, crate)"),
        (("--shelf.left", "crat"), "'shelf.left': unknown name 'crat' (did you mean 'crate'?)"),
        (("--shelf.left", "--spare.radius", "3"), "--shelf.left needs a value"),
    ],
)
def test_flags_inside_that_cannot_be_are_one_sentence(words: tuple[str, ...], part: str) -> None:
    with pytest.raises(UserError) as error:
        room(*words)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_help_names_the_presets_of_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        room("--shelf", "full", "--help")
    text = capsys.readouterr().out
    assert "--shelf.left NAME: one of dot, round, crate." in text
    assert "--shelf.row.0.sides" in text


def test_later_ones_win_file_then_names_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "order.yaml"
    file.write_text("count: 5\ncolour: blue\nshape: {name: round, radius: 4}\n")
    assert flags("--config", str(file)) == Order(count=5, colour="blue", shape=Round(radius=4))
    order = flags("--count", "6", f"--config={file}", "--shape", "crate", "--shape.sides", "7", "8")
    assert order == Order(count=6, colour="blue", shape=Box(sides=(7, 8)))
    assert flags("--config", str(file), "--shape.radius", "5").shape == Round(radius=5)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--shape", "crat"), "did you mean 'crate'?"),
        (("--shape",), "--shape needs a value"),
        (("--shape", "--urgent"), "--shape needs a value"),
        (("--config=",), "--config needs a value"),
        (("--config", "absent.yaml"), "absent.yaml"),
        (("--count", "0"), "'count'"),
        (("--shape", "crate", "--shape.sides", "9", "1"), "sides must grow"),
        (("--shape.radius", "-1"), "'shape.radius'"),
    ],
)
def test_bad_values_of_flags_are_one_sentence(words: tuple[str, ...], part: str) -> None:
    with pytest.raises(UserError) as error:
        flags(*words)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--cuont", "3"), "--count"),
        (("--shape.radios", "3"), "--shape.radius"),
        (("--colour", "green"), "blue"),
        (("--count", "many"), "--count"),
        (("surplus",), "surplus"),
    ],
)
def test_unknown_flags_exit_2_with_the_closest(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        flags(*words)
    assert stop.value.code == 2
    assert part in capsys.readouterr().err


def test_help_shows_every_field_its_meaning_and_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        flags("--shape", "crate", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "--count",
        "How many.",
        "--shape.sides",
        "--shape.inner.radius",
        "Radius in metres.",
        "(default: 5 6)",
    ):
        assert part in text
    assert "--shape NAME: one of dot, round, crate." in text
    assert "--config FILE" in text
    assert "\nExample: order --shape dot" in text  # not indented as in the source


def test_suggestions() -> None:
    assert suggest("epocs", ["epochs", "seed"]) == " (did you mean 'epochs'?)"
    assert suggest("zzz", ["epochs", "seed"]) == ""
    assert suggest("epochs", ["epochs", "seed"]) == ""


def test_a_config_is_frozen_and_keyword_only() -> None:
    order = Order()
    with pytest.raises(pydantic.ValidationError):
        order.count = 2  # pyright: ignore
    with pytest.raises(TypeError):
        Order(3)  # pyright: ignore


def config_classes() -> Iterator[type[Config]]:
    """Every configuration class that the package defines, once each module has been imported."""
    for found in pkgutil.walk_packages(edgemim.__path__, "edgemim."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    waiting = [Config]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith("edgemim."):
                yield cls


def test_every_config_class_of_the_package(tmp_path: Path) -> None:
    """What a verb reads is built bare, explains each key, and survives YAML."""
    pytest.importorskip("torch")
    classes = sorted(set(config_classes()), key=lambda cls: cls.__qualname__)
    read_by_verbs = set()
    waiting = [cls for cls in classes if cls.__module__.startswith("edgemim.commands.")]
    while waiting:
        cls = waiting.pop()
        read_by_verbs.add(cls)
        waiting += [
            p for f in cls.model_fields.values() for p in module._classes_in(f.annotation) if p not in read_by_verbs
        ]
    seen = 0
    for cls in classes:
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        if cls in read_by_verbs:
            silent = [name for name, field in cls.model_fields.items() if not field.description]
            assert (required, silent) == ([], []), f"{cls.__name__}: fields without default, without docstring"
        if required:  # entries of a record, such as a manifest's files
            continue
        value = cls()
        (tmp_path / "x.yaml").write_text(to_yaml(value))
        assert load_yaml(tmp_path / "x.yaml", cls) == value, cls.__name__
        seen += 1
    assert seen >= 15


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs").rglob("*.y*ml")), ids=lambda file: str(file.relative_to(REPOSITORY))
)
def test_every_recipe_survives_a_round_trip(tmp_path: Path, file: Path) -> None:
    pytest.importorskip("torch")
    from tests.test_house import config_class_of

    cls = config_class_of(file)
    value = load_yaml(file, cls)
    (tmp_path / "resolved.yaml").write_text(to_yaml(value))
    assert load_yaml(tmp_path / "resolved.yaml", cls) == value
    assert value != cls()  # it says something


def test_the_module_names_no_library_of_training() -> None:
    assert not hasattr(module, "torch")
