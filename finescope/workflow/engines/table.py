"""The engines by name: what is asked for on the command line becomes one of them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finescope.workflow.engines.engine import Engine
from finescope.workflow.engines.local import Local
from finescope.workflow.engines.processes import Processes


@dataclass(frozen=True)
class Asked:
    """What is asked of an engine.

    Attributes:
        workers: how many work at a time.
        device: where the job runs.
    """

    workers: int = 1
    device: str = "auto"


ENGINES: dict[str, Callable[[Asked], Engine]] = {
    "local": lambda asked: Local(),
    "processes": lambda asked: Processes(asked.workers, asked.device),
}


def engine_for(asked: Asked, name: str | None = None) -> Engine:
    """Return an engine by name; without one, processes if there are to be several workers."""
    return ENGINES[name or ("local" if asked.workers == 1 else "processes")](asked)
