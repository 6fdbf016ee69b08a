"""A stage: one step of a run as a value, with names for what it reads and writes."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finescope.errors import InputError

if TYPE_CHECKING:
    from finescope.workflow.context import Context


class Stage(ABC):
    """One step of a run.

    Subclasses are frozen dataclasses of plain fields, so a stage can be pickled, compared, and sent to where
    it is to run. What it needs to know of the run the context tells it, which it never changes; what it has
    found it writes to the files that it names.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, in messages and in the ledger."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What it reads: files and folders below the run's, or "corpus", "targets" and "model"."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """The files and folders below the run's folder that it makes."""

    @property
    def expensive(self) -> bool:
        """Whether results made of other inputs are kept until the user says ``--restart``."""
        return False

    @abstractmethod
    def work(self, context: Context) -> Mapping[str, Any] | None:
        """Do the stage, going on where a killed run stopped; return facts worth keeping."""

    def decisive(self, context: Context) -> Mapping[str, Any] | None:
        """Return the plain values that decide the result; None if the stage is cheap and always done."""
        return None

    def discard(self, context: Context) -> None:
        """Remove what the stage wrote of other inputs."""
        for name in self.writes:
            path = context.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def run(self, context: Context) -> bool:
        """Do the stage unless it was finished before with the same inputs; return whether it was done now.

        Raises:
            InputError: the folder holds an expensive result of other inputs.
        """
        decisive = self.decisive(context)
        if decisive is None:
            self.work(context)
            return True
        if not self.begin(context, decisive):
            return False
        start = time.monotonic()
        facts = dict(self.work(context) or {})
        seconds = round(time.monotonic() - start, 2)
        context.ledger.finish(self.name, decisive, {**facts, "seconds": seconds})
        return True

    def begin(self, context: Context, decisive: Mapping[str, Any]) -> bool:
        """Note that the stage is begun, and make room for it; return whether there is anything to do.

        Raises:
            InputError: as ``run``.
        """
        ledger = context.ledger
        if ledger.finished(self.name, decisive, self.writes):
            return False
        changes = ledger.changes(self.name, decisive)
        if changes is not None and self.expensive and not context.restart:
            raise InputError(
                f"{context.folder} holds the {self.name} of another run ({changes}); choose another --out, "
                "or add --restart to throw that away and begin again"
            )
        if changes is not None or (context.restart and not ledger.begun(self.name)):
            self.discard(context)
        ledger.begin(self.name, decisive)
        return True
