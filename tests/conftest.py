"""Fixtures shared by all tests: real images, the shared material, and no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection off this machine fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test never touch the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared material (golden values, data); skips where it is absent. The one place that names it."""
    folder = Path(os.environ.get("EDGEMIM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared material at {folder} (set EDGEMIM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 crops of 64 x 64 pixels of four real photos in four class folders, JPEG and PNG; needs scikit-image."""
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = getattr(data, name)()
        folder = root / name
        folder.mkdir()
        for i in range(30):
            top, left = (int(generator.integers(0, side - 96)) for side in image.shape[:2])
            crop = Image.fromarray(image[top : top + 96, left : left + 96]).resize((64, 64))
            crop.save(folder / f"{i:02d}.{'jpg' if i % 2 else 'png'}", **({"quality": 95} if i % 2 else {}))
    return root
