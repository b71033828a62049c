"""Serving the page of the playground on this machine."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

__all__ = ["SITE", "make_server"]

SITE: Final = Path(__file__).parent / "site"


class _Handler(SimpleHTTPRequestHandler):
    """Serves files without a word on the terminal, and never from a cache: a bundle may be made anew."""

    # Browsers run no module of another type, and what Windows says of types is whatever was installed last.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".safetensors": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


def make_server(port: int, site: Path = SITE) -> ThreadingHTTPServer:
    """A server of the page that only this machine can reach; ``serve_forever()`` begins to serve.

    Args:
        port: The port; 0 for any that is free, which ``server_port`` tells.
        site: The folder of the page.

    Raises:
        ValueError: The port is taken, or not for everybody.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(site)))
    except OSError as error:
        raise ValueError(f"port must be free to listen on; got {port}: {error.strerror}. Use 0 for any.") from None
