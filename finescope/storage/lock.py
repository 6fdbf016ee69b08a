"""One run at a time in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType

from finescope.errors import StoreError
from finescope.storage.files import PathLike


class FolderLock:
    """A hold on a folder that ends with the process, however it ends: exclusive, or shared with its like."""

    def __init__(
        self, directory: PathLike, *, shared: bool = False, wait: Callable[[str], None] | None = None
    ) -> None:
        """Take hold of a folder that exists.

        Args:
            directory: the folder.
            shared: beside others that share it.
            wait: told that the folder is waited for while another run holds it; None: that is refused.

        Raises:
            StoreError: another run holds it, or it can't be written to.
        """
        self._path = os.path.join(directory, ".lock")
        self._file: int | None = None
        self._shared = shared
        try:
            import fcntl
        except ImportError:  # not a POSIX system: two runs in one folder are the user's care
            return
        while self._file is None:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise StoreError(f"can't write to the folder {directory}: {error.strerror}") from error
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if wait is None:
                    os.close(file)
                    raise StoreError(
                        f"another run is writing to {directory}; wait for it, or choose another folder"
                    ) from error
                wait(f"another run is writing to {directory}; waiting for it")
                try:
                    fcntl.flock(file, kind)
                except BaseException:  # Ctrl-C
                    os.close(file)
                    raise
            except OSError:  # a file system without locks
                self._file = file
                return
            if self._is_named(file):
                self._file = file
            else:  # the run before removed the file between our opening and locking it: that lock is no one's
                os.close(file)

    def _is_named(self, file: int) -> bool:
        """Whether the open file is still the one that others will find under its name."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        """Let others have the folder."""
        if self._file is not None:
            if not self._shared:  # others may hold it by the same name
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
