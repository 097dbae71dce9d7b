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
from hostile_artifacts import change_manifest
from small_artifact import answers, small_artifact
from tiny_artifact import tiny_artifact
from tiny_tracker import moving_target, tiny_tracker, write_video
from twenty_images import twenty_images

from edgemim.edge.artifact import Artifact
from edgemim.edge.tracking.tracker import Tracker

PAGE = Path(__file__).parent.parent / "export" / "browser"
Visit = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The page beside the packages that npm installed; skips where it did not."""
    packages = Path(os.environ.get("EDGEMIM_NODE_MODULES", "nowhere"))
    if not packages.is_dir() or not shutil.which("chromium"):
        pytest.skip("onnxruntime-web or Chromium is not installed: run `make test-browser`")
    site = tmp_path / "site"
    shutil.copytree(PAGE, site, ignore=shutil.ignore_patterns("node_modules", "artifact"))
    # Copied: what lies outside of its folder is not served.
    (site / "node_modules/onnxruntime-web/dist").mkdir(parents=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        path = Path("onnxruntime-web/dist", name)
        shutil.copy(packages / path, site / "node_modules" / path)
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.getbasetemp())


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("key", "lossless", "jpeg"), [("onnx-fp32", 1e-4, 0.05), ("onnx-int8", 0.01, 0.06)])
def test_the_same_answers_on_twenty_pictures(
    site: Path, visit: Visit, trained: Artifact, key: str, lossless: float, jpeg: float
) -> None:
    shutil.copytree(trained.folder, site / "artifact")
    pictures = twenty_images(site / "pictures")
    found = visit(key=key, images=",".join([*(f"pictures/{path.name}" for path in pictures), "index.html"]))
    assert "error" in found.pop()
    for path, one, logits in zip(pictures, found, answers(trained, key, "onnxruntime", pictures), strict=True):
        assert one["image"] == f"pictures/{path.name}" and one["label"] == trained.manifest.labels[int(logits.argmax())]
        # PNG is the same to the bit; a browser's JPEG decoder differs by a level here and there.
        np.testing.assert_allclose(
            one["logits"], logits, atol=lossless if path.suffix == ".png" else jpeg, err_msg=path.name
        )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("form", ["joint", "cached"])
def test_it_follows_what_the_tracker_follows(
    site: Path, visit: Visit, frames: dict[int, bytes], form: Literal["joint", "cached"]
) -> None:
    artifact = tiny_tracker(site / "artifact", form, size_rate=0.1 if form == "cached" else 1.0)
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
def test_what_is_wrong_is_said(site: Path, visit: Visit, tmp_path: Path) -> None:
    artifact = tiny_artifact(site / "artifact", size=48)
    good = (artifact.folder / "manifest.json").read_bytes()
    shutil.copy(artifact.file(), site / "outside.onnx")
    shutil.copy(artifact.file(), tmp_path / "secret.onnx")
    (artifact.folder / "link.onnx").symlink_to(tmp_path / "secret.onnx")
    assert "no model 'onnx-int3'" in visit(key="onnx-int3")["error"]
    for place, value, message in [
        ("files.onnx-fp32.path", "../outside.onnx", "../outside.onnx leaves the artifact"),
        ("files.onnx-fp32.path", "%2e%2e/outside.onnx", "leaves the artifact"),
        ("files.onnx-fp32.path", "https://example.org/x.onnx", "leaves the artifact"),
        ("files.onnx-fp32.path", "link.onnx", "link.onnx is missing"),
        ("files.onnx-fp32.sha256", "0" * 64, "not the file that was exported"),
        ("preprocessing.image_size", 2**31, "preprocessing makes no sense"),
        ("preprocessing.mean", [float("nan"), 0, 0], "manifest.json makes no sense"),
        ("files", None, "manifest.json makes no sense"),
    ]:
        change_manifest(artifact.folder, place, value)
        assert message in visit()["error"], (place, value)
        (artifact.folder / "manifest.json").write_bytes(good)
    assert "no manifest.json" in visit(artifact="nowhere")["error"]
    change_manifest(artifact.folder, "labels", ["a", "b", "c"])
    twenty_images(site / "pictures")
    assert "4 logits for 3 labels" in visit(images="pictures/face.jpg")[0]["error"]
