"""A real browser for a test: chromium without a window, told what to do over its own debugging pipe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECONDS = 60


class Browser:
    """One page of a running browser."""

    def __init__(self, write: Any, answers: Queue[dict[str, Any]]):
        self._write, self._answers, self._last = write, answers, 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """Everything that the browser has reported by itself: requests, errors, messages of the console."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _next(self, waiting_for: str) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=SECONDS)
        except Empty:
            raise AssertionError(f"the browser did not answer {waiting_for} within {SECONDS} s") from None
        if "method" in answer:
            self.events.append(answer)
        return answer

    def open(
        self, path: Path, fragment: str = "", *, width: int = 1200, height: int = 900, dark: bool = False
    ) -> None:
        """Show a file in a window of a size and scheme, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        for url in ("about:blank", f"{path.as_uri()}{fragment}"):  # a fragment alone would load nothing
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self._next(f"{url} to load")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page (awaited, where it is a promise)."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def accessible(self) -> list[tuple[str, str]]:
        """Return (role, name) of everything that a screen reader meets, in its order."""
        nodes = {node["nodeId"]: node for node in self.call("Accessibility.getFullAXTree")["nodes"]}
        waiting, found = [next(node for node in nodes.values() if "parentId" not in node)], []
        while waiting:
            node = waiting.pop()
            if not node.get("ignored"):
                found.append((node["role"]["value"], node.get("name", {}).get("value", "")))
            waiting.extend(nodes[child] for child in reversed(node.get("childIds", [])) if child in nodes)
        return found

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG."""
        import base64

        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser; it and all its processes end with the block."""
    assert CHROMIUM is not None, "no chromium is installed"
    down, up = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="finescope-browser-") as profile:
        process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-extensions", "--hide-scrollbars", f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _give(down[0], up[1]),
            close_fds=False,
        )  # fmt: skip
        os.close(down[0])
        os.close(up[1])
        answers: Queue[dict[str, Any]] = Queue()
        reader = threading.Thread(target=_read, args=(up[0], answers), daemon=True)
        reader.start()
        try:
            yield Browser(lambda message: _write_all(down[1], message), answers)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(SECONDS)
            os.close(down[1])
            os.close(up[0])


def _give(reading: int, writing: int) -> None:
    """The browser reads commands from descriptor 3 and writes answers to 4."""
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (reading, writing))  # out of the way
    os.dup2(reading, 3)
    os.dup2(writing, 4)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read(descriptor: int, answers: Queue[dict[str, Any]]) -> None:
    left = b""
    while part := os.read(descriptor, 1 << 20):
        *messages, left = (left + part).split(b"\0")
        for message in messages:
            answers.put(json.loads(message))
