"""A Ray cluster: actors that embed, on whatever machines it has.

Only descriptions of shards and what is noted of finished ones go through Ray; rows come from their files and
codes go to the run's folder, which every machine must see by the same name. There are no reading tasks that
actors could leave no room for: an actor reads its own shards.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finescope.corpus.plan import Shard
from finescope.errors import InputError
from finescope.workflow.engines.crew import (
    Answer,
    Failed,
    Gone,
    Ready,
    Task,
    answer,
    at_work,
    failure,
    here,
    opened,
)
from finescope.workflow.engines.engine import Result, Work
from finescope.workflow.engines.raymetrics import Metrics

_NAMES = ("CPU", "GPU")
_PATIENCE = 60.0
"""Seconds without a worker that is ready, after which that is said."""
_GROUP = "ray.io/node-group"
"""The label of nodes that a launcher has started, of the group that they are of: it may start more."""
_STATUS = b"__autoscaling_status"
"""Where Ray's first autoscaler keeps its report; that of a cluster without one lists nodes by number."""
_NUMBERED = "node_"


@dataclass(frozen=True)
class Ray:
    """Shards go to whichever actor is free. An actor that finds no room waits for it, while others work.

    Attributes:
        workers: how many actors.
        address: of the cluster; None takes the one that RAY_ADDRESS names, else the one that was started on
            this machine last; if there is none, or for "local", one of this machine is started.
        cpus, gpus: of each actor; of GPUs None means one, where the cluster has any and the job may use them,
            or must.
        device: where the job runs.
        say: told when there is no room for all actors, when they run on CPU for want of GPUs, of actors that
            are lost and of shards that are tried again.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    device: str = "auto"
    say: Callable[[str], None] = print

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """See ``Engine``.

        Raises:
            InputError: Ray isn't installed, the cluster can't be reached, or none of its machines has what an
                actor asks for, and no others will join.
        """
        if not shards:
            return iter(())
        return at_work(_Actors(work, self, shards), work, shards, self.workers, self.say)


class _Hand:
    """Works on shards, in an actor."""

    def __init__(self) -> None:
        self._do: Any = None

    def open(self, work: Any, threads: int) -> Answer:
        try:
            import torch

            torch.set_num_threads(threads)
        except (
            Exception
        ) as error:  # a machine without it, or with a broken one: raised above, it would be lost
            return failure(error)
        self._do = opened(work)
        return self._do if isinstance(self._do, Failed) else Ready(here())

    def do(self, task: Task) -> Answer:
        return answer(self._do, task)


@dataclass(eq=False)
class _Actor:
    handle: Any
    pending: Any
    shard: Shard | None = None
    ready: bool = False


class _Actors:
    """The crew: each worker is an actor, and what it is at is a reference to its answer."""

    def __init__(self, work: Any, asked: Ray, shards: Sequence[Shard]) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError(
                "--engine ray needs a package that isn't installed: pip install 'finescope[ray]'"
            ) from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=asked.address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"the Ray cluster {asked.address or ''} can't be reached: {error}"
                ) from error
        self._all: list[_Actor] = []
        self._metrics = Metrics(shards, getattr(work, "tokens", lambda result: 0))
        self._say = asked.say
        try:
            gpus = self._gpus(asked)
            self._check(asked, gpus)
            self._hand = ray.remote(_Hand).options(num_cpus=asked.cpus, num_gpus=gpus, max_restarts=0)
            self._work = ray.put(work)
        except BaseException:
            self.dismiss()
            raise
        self._threads = max(1, int(asked.cpus))

    def _gpus(self, asked: Ray) -> float:
        if asked.gpus is not None:
            return asked.gpus
        if asked.device != "auto":
            return 1.0 if asked.device.startswith("cuda") else 0.0
        if self._ray.cluster_resources().get("GPU", 0) > 0:
            return 1.0
        asked.say(
            "ray: no machine of the cluster has a GPU now, so workers run on CPUs; if machines with GPUs are "
            "to join, ask for them with --worker-gpus 1"
        )
        return 0.0

    def _check(self, asked: Ray, gpus: float) -> None:
        """Hold what is asked for against what there is.

        Raises:
            InputError: no machine has it, and the cluster doesn't grow.
        """
        wanted = dict(zip(_NAMES, (asked.cpus, gpus), strict=True))
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most = [
            min((int(has.get(name, 0) / amount) for name, amount in wanted.items() if amount), default=1)
            for has in machines
        ]
        words = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount) or "nothing"
        if not any(most):
            has = "; ".join(", ".join(f"{m.get(name, 0):g} {name}" for name in wanted) for m in machines)
            lack = f"a worker asks for {words}, and no machine of the cluster has that (they have: {has})"
            less = "ask for less with --worker-cpus and --worker-gpus"
            if not self._grows():
                raise InputError(f"{lack}; {less}")
            asked.say(f"ray: {lack}; waiting for one to join. If the cluster starts none such, {less}")
        elif sum(most) < asked.workers:
            asked.say(
                f"ray: there is room for {sum(most)} of {asked.workers} workers of {words} each; the others "
                "begin when machines join"
            )

    def _grows(self) -> bool:
        """Return whether machines may join by themselves when work waits for them."""
        from ray.experimental.internal_kv import _internal_kv_get

        if any(node.get("Labels", {}).get(_GROUP) for node in self._ray.nodes()):
            return True
        try:
            nodes = json.loads(_internal_kv_get(_STATUS) or b"{}")["autoscaler_report"]["active_nodes"]
        except (ValueError, KeyError):
            return False
        return not all(name.startswith(_NUMBERED) for name in nodes)

    def start(self) -> _Actor:
        handle = self._hand.remote()
        worker = _Actor(handle, handle.open.remote(self._work, self._threads))
        self._all.append(worker)
        return worker

    def give(self, worker: _Actor, task: Task) -> None:
        worker.pending, worker.shard = worker.handle.do.remote(task), task.shard
        self._metrics.begun()

    def answers(self, workers: Sequence[_Actor]) -> list[tuple[_Actor, Answer]]:
        waiting = {worker.pending: worker for worker in workers if worker.pending is not None}
        timeout = None if any(worker.ready for worker in waiting.values()) else _PATIENCE
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=timeout)
        if not ready:
            free = ", ".join(f"{self._ray.available_resources().get(name, 0):g} {name}" for name in _NAMES)
            self._say(
                f"ray: no worker is ready yet; they load, or wait for room: of the cluster are free {free}"
            )
        return [(waiting[reference], self._counted(waiting[reference])) for reference in ready]

    def _counted(self, worker: _Actor) -> Answer:
        found, shard, worker.shard = self._answer(worker), worker.shard, None
        if shard is not None:
            self._metrics.answered(shard, found)
        return found

    def _answer(self, worker: _Actor) -> Answer:
        reference, worker.pending = worker.pending, None
        try:
            found: Answer = self._ray.get(reference)
            worker.ready = True
            return found
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
            self.end(worker)
            return Gone(f"was lost with its process or its machine ({str(error).splitlines()[0]})")
        except Exception as error:  # what Ray itself raises: an answer that can't be fetched, no memory
            return failure(error)

    def end(self, worker: _Actor) -> None:
        self._all.remove(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(worker.handle)

    def dismiss(self) -> None:
        for worker in list(self._all):
            self.end(worker)
        self._metrics.over()
        if self._ours:
            self._ray.shutdown()
