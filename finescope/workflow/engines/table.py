"""The engines by name: what is asked for on the command line becomes one of them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finescope.errors import InputError
from finescope.workflow.engines.engine import Engine
from finescope.workflow.engines.local import Local
from finescope.workflow.engines.processes import Processes
from finescope.workflow.engines.ray import Ray


@dataclass(frozen=True)
class Asked:
    """What is asked of an engine.

    Attributes:
        workers: how many work at a time.
        device: where the job runs.
        address: of a cluster.
        cpus, gpus: of each worker in a cluster.
        say: told what a user should know.
    """

    workers: int = 1
    device: str = "auto"
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    say: Callable[[str], None] = print


ENGINES: dict[str, Callable[[Asked], Engine]] = {
    "local": lambda asked: Local(asked.say),
    "processes": lambda asked: Processes(asked.workers, asked.device, asked.say),
    "ray": lambda asked: Ray(asked.workers, asked.address, asked.cpus, asked.gpus, asked.device, asked.say),
}


def engine_for(asked: Asked, name: str | None = None) -> Engine:
    """Return an engine by name; without one, processes if there are to be several workers.

    Raises:
        InputError: several workers of this process.
    """
    if name == "local" and asked.workers > 1:
        raise InputError("--engine local is one worker, this process; leave --engine or --workers out")
    return ENGINES[name or ("local" if asked.workers == 1 else "processes")](asked)
