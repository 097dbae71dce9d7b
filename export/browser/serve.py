"""Serve this folder on this machine, with the headers that let a page compute on several threads.

    npm install && cp -r ARTIFACT artifact && python serve.py      then open http://127.0.0.1:8000/

Standard library only.
"""

import functools
import http.server
import sys
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, for a page that is isolated from other origins."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def end_headers(self) -> None:
        """Add the two headers of cross-origin isolation."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    handler = functools.partial(Handler, directory=Path(__file__).parent)
    print(f"http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    http.server.ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()
