"""Artifacts as a stranger may hand them over: each attack changes the folder of a good one and is refused by every program.

Attacked is the model 'openvino-fp32' (openvino-fp32.xml and .bin).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

KEY = "openvino-fp32"


class Attack(NamedTuple):
    """A way to change an artifact's folder, and what the refusal says."""

    name: str
    do: Callable[[Path], object]
    message: str = ""


def change_manifest(folder: Path, place: str, value: object) -> None:
    """Set a value of manifest.json, its place given with dots; a value that JSON lacks is written as Python does."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    *outer, last = place.split(".")
    inner: dict[str, Any] = manifest
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(manifest))


def entry_path(path: str) -> Callable[[Path], None]:
    """The model lies elsewhere, says the manifest, with the right hash and size."""

    def do(folder: Path) -> None:
        for suffix in (".xml", ".bin"):
            (folder.parent / f"outside{suffix}").write_bytes((folder / f"{KEY}{suffix}").read_bytes())
        change_manifest(folder, f"files.{KEY}.path", path.replace("PARENT", str(folder.parent)))

    return do


def link_out(suffix: str) -> Callable[[Path], None]:
    """A file of the model is a link to one outside."""

    def do(folder: Path) -> None:
        target = (folder / f"{KEY}{suffix}").rename(folder.parent / f"secret{suffix}")
        (folder / f"{KEY}{suffix}").symlink_to(target)

    return do


def flip(suffix: str) -> Callable[[Path], None]:
    """One bit differs."""

    def do(folder: Path) -> None:
        path = folder / f"{KEY}{suffix}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return do


def cut(folder: Path) -> None:
    """Weights that end early, and a manifest that agrees with them: sizes inside the model do not fit."""
    path = folder / f"{KEY}.bin"
    path.write_bytes(path.read_bytes()[:1000])
    change_manifest(folder, f"files.{KEY}.companions", {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def raw_manifest(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_bytes(content)


def huge(folder: Path) -> None:
    with open(folder / "manifest.json", "ab") as file:
        file.truncate(2**34)


def changed(place: str, value: object) -> Callable[[Path], None]:
    return lambda folder: change_manifest(folder, place, value)


ATTACKS = [
    Attack("parent", entry_path("../outside.xml"), "outside.xml"),
    Attack("absolute", entry_path("PARENT/outside.xml"), "outside.xml"),
    Attack("up and down", entry_path("x/../../outside.xml"), "outside.xml"),
    Attack("drive", entry_path("C:\\outside.xml"), "outside.xml"),
    Attack("link", link_out(".xml"), f"{KEY}.xml"),
    Attack("linked weights", link_out(".bin"), f"{KEY}.bin"),
    Attack("unlisted weights", changed(f"files.{KEY}.companions", {}), f"{KEY}."),
    Attack("another model", flip(".xml"), f"{KEY}.xml"),
    Attack("other weights", flip(".bin"), f"{KEY}.bin"),
    Attack("weights cut", cut),
    Attack("missing", lambda folder: (folder / f"{KEY}.xml").unlink(), f"{KEY}.xml"),
    Attack("huge manifest", huge, "manifest"),
    Attack("deep manifest", raw_manifest(b"[" * 100_000)),
    Attack("no JSON", raw_manifest(b"\xff\xfe{")),
    Attack("a list", raw_manifest(b"[1]")),
    Attack("not a number", changed("preprocessing.mean", [float("nan"), 0, 0])),
    Attack("two means", changed("preprocessing.mean", [0, 0])),
    Attack("no deviation", changed("preprocessing.std", [0, 1, 1])),
    Attack("no crop", changed("preprocessing.crop_pct", 0)),
    Attack("huge image", changed("preprocessing.image_size", 2**31 - 1)),
    Attack("a label short", changed("labels", ["a", "b", "c"]), "3 labels"),
]
