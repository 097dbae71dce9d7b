"""export/browser/serve.py gives out its own folder and nothing else; no browser is needed for this."""

import functools
import http.client
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVE = Path(__file__).parent.parent / "export" / "browser" / "serve.py"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server of tmp_path/site, with a secret beside it and links of all kinds."""
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    assert spec is not None and spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)

    class Quiet(serve.Handler):
        def log_message(self, format: str, *args: object) -> None: ...

    site = tmp_path / "site"
    (site / "folder").mkdir(parents=True)
    (site / "index.html").write_text("page")
    (site / "folder" / "a.mjs").write_text("script")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (site / "link").symlink_to(tmp_path / "secret" / "key")
    (site / "linked").symlink_to(tmp_path / "secret")
    (site / "inside").symlink_to("folder/a.mjs")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def get(port: int, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_its_own_files(port: int) -> None:
    status, content, headers = get(port, "/")
    assert (status, content) == (200, b"page")
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for path in ("/folder/a.mjs", "/inside"):
        assert get(port, path)[:2] == (200, b"script")
    assert get(port, "/folder/a.mjs")[2]["Content-Type"] == "text/javascript"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret/key",
        "/%2e%2e/secret/key",
        "/..%2fsecret%2fkey",
        "//../secret/key",
        "/folder/../../secret/key",
        "/link",
        "/linked/key",
        "/linked/",
        "/linked",
        "/folder/",
        "/folder",
        "/nothing",
        "/..\\secret\\key",
        "/%00",
    ],
)
def test_nothing_else(port: int, path: str) -> None:
    status, content, _ = get(port, path)
    assert status in (301, 400, 404) and b"secret" not in content and b"a.mjs" not in content
