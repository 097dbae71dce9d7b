"""The browser page gives edgemim's answers, in headless Chromium on real photos (`make test-browser` installs what it needs)."""

import functools
import http.server
import importlib.util
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact
from tiny_tracker import moving_target, tiny_tracker, write_video

from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session
from edgemim.edge.tracking.tracker import Tracker

PAGE = Path(__file__).parent.parent / "export" / "browser"
Visit = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The page beside the packages that npm installed; skips where it did not."""
    packages = os.environ.get("EDGEMIM_NODE_MODULES")
    if not packages or not shutil.which("chromium"):
        pytest.skip("onnxruntime-web or Chromium is not installed: run `make test-browser`")
    site = tmp_path / "site"
    shutil.copytree(PAGE, site, ignore=shutil.ignore_patterns("node_modules", "artifact"))
    (site / "node_modules").symlink_to(Path(packages).resolve())
    return site


@pytest.fixture
def frames() -> dict[int, bytes]:
    """RGBA bytes of the frames that the page saw in its video, by number."""
    return {}


@pytest.fixture
def visit(site: Path, tmp_path: Path, frames: dict[int, bytes]) -> Iterator[Visit]:
    """Open the page with a query; what it reports."""
    spec = importlib.util.spec_from_file_location("serve", PAGE / "serve.py")
    assert spec is not None and spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    reports: queue.Queue[Any] = queue.Queue()

    class Handler(serve.Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if number := parse_qs(urlsplit(self.path).query).get("frame"):
                frames[int(number[0])] = body
            else:
                reports.put(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def opened(**query: str) -> Any:
        url = f"http://127.0.0.1:{server.server_port}/index.html?{urlencode({**query, 'report': 'results'})}"
        browser = [shutil.which("chromium") or "chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]
        log = (tmp_path / "chromium.log").open("w")
        process = subprocess.Popen(
            [*browser, f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0", url],
            stdout=log,
            stderr=log,
        )
        try:
            return reports.get(timeout=120)
        finally:
            process.kill()
            process.wait()
            log.close()

    yield opened
    server.shutdown()


@pytest.fixture
def pictures(photos: Path, site: Path) -> list[str]:
    """Twenty real photos in the site: crops, whole pictures, every orientation, one with transparency."""
    from skimage import data

    for index, path in enumerate(sorted(photos.glob("*/*"))[::18]):
        shutil.copy(path, site / f"crop{index}{path.suffix}")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(site / f"{name}.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(data.coffee()[40:300, 100:500]).save(site / f"turned{orientation}.jpg", exif=exif, quality=85)
    clear = Image.fromarray(data.chelsea()[:77, :201])
    clear.putalpha(Image.fromarray(np.where(np.arange(201) < 90, 0, 255).astype(np.uint8)[None].repeat(77, 0)))
    clear.save(site / "clear.png")
    found = sorted(path.name for pattern in ("*.png", "*.jpg") for path in site.glob(pattern))
    assert len(found) == 20
    return found


@pytest.mark.timeout(240)
def test_the_same_answers_on_twenty_photos(site: Path, visit: Visit, pictures: list[str]) -> None:
    artifact = tiny_artifact(site / "artifact", size=48)
    session, prepare = open_session(artifact, threads=1), artifact.manifest.preprocessing
    found = visit(images=",".join([*pictures, "index.html"]))
    assert "error" in found.pop()
    for name, one in zip(pictures, found, strict=True):
        logits = session.run({"images": prepare(load_image(site / name))[None]})["logits"][0]
        assert one["image"] == name and one["label"] == artifact.manifest.labels[int(logits.argmax())]
        # PNG is the same to the bit; a browser's JPEG decoder differs by a level here and there.
        np.testing.assert_allclose(one["logits"], logits, atol=1e-4 if name.endswith("png") else 0.05, err_msg=name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("form", ["joint", "cached"])
def test_it_follows_what_the_tracker_follows(
    site: Path, visit: Visit, frames: dict[int, bytes], form: Literal["joint", "cached"]
) -> None:
    artifact = tiny_tracker(site / "artifact", form)
    images, boxes = moving_target(frames=12)
    # So narrow that the target begins at the lower border and ends at the right one.
    images = [np.ascontiguousarray(image[:102, :136]) for image in images]
    for number, image in enumerate(images):
        image[:8] = 255 * np.repeat(number >> np.arange(17) & 1, 8)[None, :, None]
    write_video(site / "clip.webm", images, codec="VP80", fps=10)
    found = visit(video="clip.webm", box=",".join(map(str, boxes[0])), fps="10")
    seen = [np.frombuffer(frames[k], np.uint8).reshape(102, 136, 4)[..., :3].copy() for k in range(len(images))]
    # Each frame once and in its place: its number stands in its first rows; colours differ by what the codec loses.
    assert [int((image[4, 4::8, 0] > 127) @ (1 << np.arange(17))) for image in seen] == list(range(len(images)))
    assert max(np.abs(one.astype(int) - image).mean() for one, image in zip(seen, images, strict=True)) < 6
    tracker = Tracker.open(artifact, threads=1)
    tracker.init(seen[0], boxes[0])
    assert len(found) == len(images)
    for one, image in zip(found[1:], seen[1:], strict=True):
        tracked = tracker.update(image)
        np.testing.assert_allclose(one["box"], tracked.box, atol=1e-3)
        assert one["score"] == pytest.approx(tracked.score, abs=1e-3)


@pytest.mark.timeout(240)
def test_what_is_wrong_is_said(site: Path, visit: Visit) -> None:
    artifact = tiny_artifact(site / "artifact", size=48)
    assert "no model 'onnx-int3'" in visit(key="onnx-int3")["error"]
    artifact.file().write_bytes(artifact.file().read_bytes() + b"\0")
    assert "not the file that was exported" in visit()["error"]
    assert "no manifest.json" in visit(artifact="nowhere")["error"]
