"""Results on their way to the URL that was given for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from finescope.progress import Reporter, counted
from finescope.storage.remote_folder import Remote


@contextlib.contextmanager
def sending(out: str, reporter: Reporter, leave: tuple[str, ...] = ()) -> Iterator[None]:
    """Try whether a URL can be written to; when the work is done, copy what was made for it there.

    Args:
        out: folder or URL; for a folder nothing happens.
        reporter: says what was copied.
        leave: folders that stay on this machine.

    Raises:
        StoreError: the store refuses a file.
    """
    remote = Remote(out)
    remote.try_writing()
    yield
    if remote:
        files, size = remote.send(leave)
        reporter.say(f"copied to {remote.url}: {counted(files, 'file')}, {size / 1e6:,.1f} MB")
