"""A server on the loopback that speaks S3 (moto's), and refuses, hangs or stalls on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

BUCKET = "bucket"


@dataclass
class Server:
    """The server; it is ended with ``stop``.

    Attributes:
        url: where it listens.
        refusals: how many of the requests to come are answered with 503.
        of: which requests, by method and path.
        stall: seconds before each answer.
        requests: method and path of all that came.
    """

    refusals: int = 0
    of: Callable[[str, str], bool] = lambda method, path: True
    stall: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        time.sleep(self.stall)
        with self._lock:
            self.requests.append((method, path))
            refused = self.refusals > 0 and self.of(method, path)
            self.refusals -= refused
        if not refused:
            return self._app(environ, start)  # type: ignore[no-any-return]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("503 Service Unavailable", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]

    def calm(self) -> None:
        """Answer as a store does."""
        self.refusals, self.of, self.stall = 0, lambda method, path: True, 0.0

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
