"""The life of an engine: built once, found again, built anew when anything it depends on changed or the file broke."""

import os
from pathlib import Path

import pytest

from edgemim.edge.runtime import engine_cache
from edgemim.edge.runtime.engine_cache import EngineCache, cache_folder, engine_key
from edgemim.errors import ModelRefused

FACTS = {"device": "NVIDIA H200", "driver": "13.0", "library": ["tensorrt", "11.4"], "model_sha256": "a" * 64}


class Bench:
    """Counts builds and loads; what it loads must be what it built."""

    def __init__(self, cache: EngineCache, answers: list[bool] | None = None) -> None:
        self.cache, self.builds, self.answers = cache, 0, answers or []

    def build(self) -> bytes:
        self.builds += 1
        return b"engine" * 100

    def load(self, content: bytes) -> str | None:
        assert content == b"engine" * 100
        return "ready" if not self.answers or self.answers.pop(0) else None

    def __call__(self, key: str) -> bool:
        engine, built = self.cache.ready(key, build=self.build, load=self.load)
        assert engine == "ready"
        return built


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "NVIDIA Orin"),
        ("driver", "13.1"),
        ("library", ["tensorrt", "11.5"]),
        ("library", ["tensorrt_rtx", "11.4"]),
        ("model_sha256", "b" * 64),
    ],
)
def test_the_key_follows_all_that_an_engine_depends_on(name: str, value: object) -> None:
    assert engine_key(FACTS) == engine_key(dict(reversed(FACTS.items())))
    assert engine_key({**FACTS, name: value}) != engine_key(FACTS)


def test_built_once_and_found_by_another_process(tmp_path: Path) -> None:
    bench = Bench(EngineCache(tmp_path))
    assert bench("key")
    assert not bench("key")
    assert not Bench(EngineCache(tmp_path))("key")
    assert bench("other key")
    assert bench.builds == 2
    assert len(list(tmp_path.iterdir())) == 2  # no leftovers of writing


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"])
def test_a_damaged_file_never_reaches_the_library(tmp_path: Path, damage) -> None:
    cache = EngineCache(tmp_path)
    bench = Bench(cache)
    bench("key")
    cache.path("key").write_bytes(damage(cache.path("key").read_bytes()))
    assert bench("key")
    assert not bench("key")


def test_an_engine_that_the_library_turns_down_is_built_anew(tmp_path: Path) -> None:
    Bench(EngineCache(tmp_path))("key")
    bench = Bench(EngineCache(tmp_path), answers=[False, True])
    assert bench("key")
    with pytest.raises(ModelRefused, match="cannot load it"):
        Bench(EngineCache(tmp_path / "new"), answers=[False])("key")


def test_a_folder_that_takes_nothing_costs_a_build_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = Bench(EngineCache(tmp_path / "file" / "engines"))
    assert bench("key") and bench("key")


def test_the_folder_is_the_users_else_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "edgemim" / "engines"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(engine_cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    found = cache_folder()
    assert found.parent.parent == tmp_path / "tmp" and os.access(found, os.W_OK)
    assert found.stat().st_mode & 0o077 == 0
    # Another user's folder there is not taken.
    monkeypatch.setattr(engine_cache.os, "getuid", lambda: 12345)
    monkeypatch.setattr(engine_cache.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    assert cache_folder() == tmp_path / "edgemim-engines-"
