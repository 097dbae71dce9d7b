"""Sets of images written by others' means: tar files by Python's tarfile, datasets by pyarrow or `datasets`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Entries = Iterable[tuple[str, bytes]]


def write_tar(path: Path, entries: Entries, *, format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of named contents, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples_of(folder: Path, label: str = "cls") -> list[tuple[str, bytes]]:
    """The images of class folders as WebDataset's members: KEY.png beside KEY.cls (a number), KEY.json or no label."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    entries = []
    for number, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            key = f"{name}-{path.stem}"
            entries.append((f"{key}{path.suffix}", path.read_bytes()))
            if label == "cls":
                entries.append((f"{key}.cls", str(number).encode()))
            elif label == "name":
                entries.append((f"{key}.cls", f"{name}\n".encode()))
            elif label == "json":
                entries.append((f"{key}.json", json.dumps({"label": name, "width": 64}).encode()))
    return entries


def write_table(folder: Path, csv: Path, *, header: bool = True, split: Mapping[int, str] | None = None) -> Path:
    """A CSV file of all images in class folders, paths relative to its own folder."""
    lines = [f"path,label{',split' if split else ''}"] if header else []
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        where = f",{split[number % len(split)]}" if split else ""
        lines.append(f"{path.relative_to(csv.parent)},{path.parent.name}{where}")
    csv.write_text("\n".join(lines) + "\n")
    return csv


def dataset_of(folder: Path, labels: str = "ClassLabel") -> Any:
    """The images of class folders as a `datasets.Dataset`, their encoded bytes untouched."""
    import datasets

    paths = sorted(folder.rglob("*.*"))
    names = sorted({path.parent.name for path in paths})
    values: dict[str, list[Any]] = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels == "ClassLabel":
        values["label"] = [names.index(path.parent.name) for path in paths]
        features["label"] = datasets.ClassLabel(names=names)
    elif labels == "names":
        values["label"] = [path.parent.name for path in paths]
        features["label"] = datasets.Value("string")
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))
