"""Serve this folder on this machine, with the headers that let a page compute on several threads.

    npm install && cp -r ARTIFACT artifact && python serve.py      then open http://127.0.0.1:8000/

Standard library only. Links that lead out of the folder are not followed, and folders are not listed.
"""

import functools
import http.server
import io
import sys
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, for a page that is isolated from other origins."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def translate_path(self, path: str) -> str:
        """The file that an address names; one that does not exist where a link leads out of the folder."""
        found, folder = Path(super().translate_path(path)), Path(self.directory).resolve()
        inside = "\0" not in str(found) and found.resolve().is_relative_to(folder)
        return str(found) + "/" * path.endswith("/") if inside else str(folder / "refused")

    def list_directory(self, path: object) -> io.BytesIO | None:
        """No list of what a folder holds."""
        self.send_error(404, "File not found")
        return None

    def end_headers(self) -> None:
        """Add the headers of cross-origin isolation; no other site may embed what is here."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    handler = functools.partial(Handler, directory=Path(__file__).parent)
    print(f"http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    http.server.ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()
