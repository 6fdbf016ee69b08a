"""Conversations that the chat template refuses, as a pass over the rows meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finescope.progress import counted

if TYPE_CHECKING:
    from finescope.activations.rendering import Renderer
    from finescope.corpus.row import Row


@dataclass
class Refused:
    """Conversations that the chat template refuses."""

    rows: int = 0
    first: str = ""
    """Place of the first."""
    reason: str = ""
    """Why it was refused."""

    def see(self, row: Row, renderer: Renderer) -> None:
        """Try one row.

        Raises:
            InputError: it is refused, and the job says that this stops the run.
        """
        reason = renderer.refusal(row)
        if reason is not None:
            self.first, self.reason = self.first or row.place, self.reason or reason
            self.rows += 1

    @property
    def words(self) -> str:
        """What is to be said of them, or an empty string."""
        if not self.rows:
            return ""
        return (
            "read as plain lines, because the chat template refuses them: "
            f"{counted(self.rows, 'conversation')}, the first at {self.first} ({self.reason})"
        )
