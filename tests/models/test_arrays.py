"""PaddlePaddle's files of arrays: read as Python's unpickler would, and nothing in them is called."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.arrays import read_arrays  # noqa: E402
from edgemim.models.weights import read_tensors  # noqa: E402


class Named:
    """Pickled as PaddlePaddle pickles a tensor: the call of `tuple` on a name and an array."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self.value = name, value

    def __reduce__(self):
        return (tuple, ((self.name, self.value),))


ARRAYS = {
    "matrix": np.arange(6, dtype="float32").reshape(2, 3),
    "fortran": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
    "big_endian": np.arange(5, dtype=">f4"),
    "half": np.linspace(0, 1, 7).astype("float16"),
    "index": np.arange(9).reshape(3, 3),
    "scalar": np.array(2.5, dtype="float32"),
    "empty": np.zeros((0, 3), dtype="float32"),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_out_as_they_went_in(tmp_path: Path, protocol: int) -> None:
    extra = {"named": Named("linear_0.w_0", ARRAYS["matrix"]), "StructuredToParameterName@@": {"a": "b"}, "epoch": 7}
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({**ARRAYS, **extra}, protocol=protocol))
    found = read_arrays(path)
    assert found.keys() == {*ARRAYS, "named"}
    for key, value in ARRAYS.items():
        assert np.array_equal(found[key].numpy(), value), key
        assert found[key].shape == value.shape
    assert np.array_equal(found["named"].numpy(), ARRAYS["matrix"])
    assert read_tensors(path).keys() == found.keys()


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(tmp_path: Path, protocol: int) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.pdparams"
    path.write_bytes(pickle.dumps({"a": ARRAYS["matrix"], "b": Evil(trace)}, protocol=protocol))
    with pytest.raises(UserError, match=r"evil\.pdparams is refused.*posix\.system"):
        read_arrays(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle was harmless: the test shows nothing"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "list"),
        ({"a": np.array([1, "x"], dtype=object)}, "array of objects"),
        ({"a": np.zeros(3, "uint16")}, "type u2"),  # how PaddlePaddle stores bfloat16: the numbers would be others
        ({"a": Path("x")}, "PosixPath"),
        ({"a": {1, 2}}, "EMPTY_SET|set"),
    ],
)
def test_anything_but_arrays_is_refused(tmp_path: Path, content: object, word: str) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=word) as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, share: float) -> None:
    whole = pickle.dumps(ARRAYS)
    path = tmp_path / "x.pdparams"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"x\.pdparams"):
        read_arrays(path)


def test_noise_is_one_sentence(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    whole = pickle.dumps({"matrix": ARRAYS["matrix"]})
    path = tmp_path / "x.pdparams"
    refusals = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 4):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            read_arrays(path)  # a flipped bit inside the numbers shows in none of the names
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all("x.pdparams" in refusal and "\n" not in refusal for refusal in refusals)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pdparams"):
        read_arrays(tmp_path / "absent.pdparams")
