"""A Hugging Face dataset on disk: Arrow files of `save_to_disk`, or parquet files, read by pyarrow alone."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemim.data.image_set import ImageSet, fingerprint_of, is_number, number_texts
from edgemim.data.index import FlatIndex
from edgemim.edge.images import ImageError
from edgemim.errors import MissingLibrary, UserError

if TYPE_CHECKING:
    import pyarrow as pa

_LABELS = ("label", "labels", "class", "target")
_IMAGES = ("image", "img", "jpg", "png", "picture")
_KEPT_GROUPS = 4
SLOW_GROUP_BYTES = 64 << 20
"""Row groups of parquet files beyond this make reading single images slow: one is decoded for each."""


class ArrowImages(ImageSet):
    """The rows of Arrow or parquet files; an image is the bytes in its row."""

    def __init__(self, root: Path, index: FlatIndex) -> None:
        super().__init__(root, index)
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_files": {}, "_groups": OrderedDict()}

    def name(self, i: int) -> str:
        number, row = self._row(i)
        return f"{self._index.meta['files'][number]}:row {row}"

    def read(self, i: int) -> bytes:
        number, row = self._row(i)
        column, row = self._column(number, row)
        value = column[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ImageError(self.name(i), "the row holds no image, at most the path of one")
        return data

    def _row(self, i: int) -> tuple[int, int]:
        """File number and row in it."""
        place, starts = self._place(i), self._index.arrays["starts"]
        number = int(np.searchsorted(starts, place, side="right")) - 1
        return number, place - int(starts[number])

    def _column(self, number: int, row: int) -> tuple[Any, int]:
        """The column of images that a row is in, and its place there."""
        name, path = self._index.meta["column"], Path(self._index.meta["files"][number])
        if number not in self._files:
            self._files[number] = open_file(path)
        file = self._files[number]
        if path.suffix != ".parquet":
            return file.column(name), row
        starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        if (number, group) not in self._groups:
            self._groups[number, group] = file.read_row_group(group, columns=[name], use_threads=False).column(name)
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((number, group))
        return self._groups[number, group], row - int(starts[group])


def open_arrow(root: Path, files: Sequence[Path]) -> ArrowImages:
    """The rows of Arrow or parquet files, in their order, as images with labels where they have such.

    The image is in the column of the feature type Image, else in one called image or img; the label in the one of type
    ClassLabel (whose names are the classes), else in one called label.

    Raises:
        UserError: if a file is damaged, or no column holds images.
        MissingLibrary: without pyarrow.
    """
    opened = [(path.absolute(), open_file(path)) for path in files]
    schema = _schema(opened[0][1])
    features = _features(schema, root)
    column = _image_column(root, schema, features)
    for path, file in opened:
        if _schema(file).names != schema.names:
            raise UserError(f"{path} has other columns than {opened[0][0]}; give files of one dataset")
    rows = [_rows(file) for _, file in opened]
    if not sum(rows):
        raise UserError(f"{root} has no rows; give a dataset with images")
    names = [path.name for path, _ in opened]
    labels, facts = _labels(root, [(path.name, file) for path, file in opened], features)
    arrays = {"labels": labels, "starts": np.cumsum([0, *rows])[:-1].astype(np.int64)}
    sizes = np.array([path.stat().st_size for path, _ in opened], np.int64)
    fingerprint = fingerprint_of([*arrays.values(), sizes], [column, *facts["classes"], *names])
    meta = {"files": [str(path) for path, _ in opened], "column": column, "fingerprint": fingerprint, **facts}
    return ArrowImages(root, FlatIndex(arrays, meta))


def open_file(path: Path) -> Any:
    """A memory-mapped table of an Arrow file, or an open parquet file. Raises UserError, MissingLibrary."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingLibrary(f"{path} needs pyarrow: pip install 'edgemim[hf]'") from error
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path, memory_map=True)
        mapped = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(mapped).read_all()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged or no {path.suffix} file ({reason}); download or write it again") from error


def slowest_group_bytes(files: Sequence[Path]) -> int:
    """Largest row group of parquet files, in bytes as decoded; 0 for Arrow files, any row of which is mapped."""
    parquet = [open_file(path).metadata for path in files if path.suffix == ".parquet"]
    sizes = [facts.row_group(group).total_byte_size for facts in parquet for group in range(facts.num_row_groups)]
    return max(sizes, default=0)


def _schema(file: Any) -> pa.Schema:
    return file.schema_arrow if hasattr(file, "schema_arrow") else file.schema


def _rows(file: Any) -> int:
    return file.metadata.num_rows if hasattr(file, "schema_arrow") else file.num_rows


def _features(schema: pa.Schema, root: Path) -> dict[str, Any]:
    """The dataset's own description of its columns, from the schema or from dataset_info.json; {} without."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        try:
            content = json.loads((root / "dataset_info.json").read_text())["features"]
        except (OSError, KeyError, ValueError, TypeError):
            return {}
    return content if isinstance(content, dict) else {}


def _of_type(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, facts in features.items() if isinstance(facts, dict) and facts.get("_type") == kind]


def _image_column(root: Path, schema: pa.Schema, features: dict[str, Any]) -> str:
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            kind = next((field.type for field in kind if field.name == "bytes"), pa.null())
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    able = [field.name for field in schema if holds_bytes(field.type)]
    typed = [name for name in _of_type(features, "Image") if name in able]
    found = next((name for name in _IMAGES if name in (typed or able)), None)
    if found or len(typed or able) == 1:
        return found or (typed or able)[0]
    if able:
        raise UserError(f"{root} has several columns of images ({', '.join(able)}); call one of them 'image'")
    raise UserError(
        f"{root} has no column of images (it has {', '.join(schema.names)}); "
        "a column 'image' must hold encoded bytes, or a struct with a field 'bytes', as datasets.Image() does"
    )


def _labels(
    root: Path, files: Sequence[tuple[str, Any]], features: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """int32 [n] and what the index's meta says of them."""
    import pyarrow as pa

    count, schema = sum(_rows(file) for _, file in files), _schema(files[0][1])
    none = np.full(count, -1, np.int32)
    typed = [name for name in _of_type(features, "ClassLabel") if name in schema.names]
    named = [name for name in _LABELS if name in schema.names]
    column = next((name for name in named if name in typed or not typed), typed[0] if len(typed) == 1 else None)
    if column is None:
        reason = f"several label columns ({', '.join(typed)}); call one 'label'" if typed else "no column 'label'"
        return none, {"classes": (), "unlabelled": f"{root} has {reason}"}
    values: list[Any] = []
    for name, file in files:
        data = (file.read(columns=[column]) if hasattr(file, "schema_arrow") else file).column(column)
        if not (pa.types.is_integer(data.type) or pa.types.is_string(data.type) or pa.types.is_large_string(data.type)):
            return none, {"classes": (), "unlabelled": f"{root}: column {column!r} holds neither numbers nor names"}
        part = data.to_pylist()
        bare = next((row for row, value in enumerate(part) if value in (None, "", -1)), None)
        if bare is not None:
            return none, {"classes": (), "unlabelled": f"{name}:row {bare} in {root} has no label; give each row one"}
        values += part
    names = features.get(column, {}).get("names") if column in typed else None
    if names:
        return _by_number(root, column, values, [str(name) for name in names])
    labels, classes = number_texts([str(value) for value in values])
    return labels, {"classes": classes, "numbered": all(map(is_number, classes))}


def _by_number(root: Path, column: str, values: list[int], names: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    labels = np.array(values, np.int64)
    if labels.min() < 0 or labels.max() >= len(names):
        row = int(np.argmax((labels < 0) | (labels >= len(names))))
        raise UserError(
            f"{root}, row {row}: {column} is {labels[row]}, but the dataset names {len(names)} classes (0 to {len(names) - 1})"
        )
    return labels.astype(np.int32), {"classes": tuple(names)}
