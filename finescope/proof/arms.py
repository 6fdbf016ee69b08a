"""Rows in the order in which an arm takes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finescope.curation.blocks import IntArray, PickedRows
from finescope.curation.limits import SelectionConfig
from finescope.curation.scoring.evidence import Evidence, Spaces
from finescope.curation.scoring.fitted import Scoring
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.selection import select
from finescope.demo.text import find_model
from finescope.progress import Reporter
from finescope.proof.plan import DOMAIN, FIXED, MATCHED, MIXTURE, RANDOM, Arm, ProofPlan, parse_arm
from finescope.proof.split import POOL, TARGETS, Split, generator
from finescope.storage.files import make_folder
from finescope.storage.lock import FolderLock
from finescope.workflow.job import Job
from finescope.workflow.layout import TARGET_CODES
from finescope.workflow.run import Run

SELECTOR = "selector"
"""Folder of the run whose codes the arms compare."""


class Arms:
    """The orders in which arms take rows of one pool."""

    def __init__(
        self, plan: ProofPlan, split: Split, lengths: Sequence[int], folder: Path, reporter: Reporter
    ):
        """Remember what there is; rows are embedded when the first scorer asks for them.

        Args:
            plan: of the proof.
            split: its rows.
            lengths: N tokens of the pool's rows, as the trained model counts them.
            folder: of the proof.
            reporter: told what is going on.
        """
        self._plan, self._split, self._folder, self._reporter = plan, split, folder, reporter
        self._lengths = np.asarray(lengths, np.int64)
        self._labels = np.array([row.label for row in split.pool])
        self._planted = split.planted
        self._starts = self._targets_of()

    def _targets_of(self) -> dict[tuple[str, int], slice]:
        found, low = {}, 0
        for topic, sets in self._split.targets.items():
            for draw, rows in enumerate(sets):
                found[topic, draw] = slice(low, low + len(rows))
                low += len(rows)
        return found

    @cached_property
    def _run(self) -> Run:
        given = {
            "model": "",
            "targets": str(self._folder / TARGETS),
            "corpus": [str(self._folder / POOL)],
            "out": str(self._folder / SELECTOR),
            **self._plan.selector,
        }
        given["model"] = given["model"] or find_model()
        make_folder(self._folder)
        with FolderLock(self._folder, wait=self._reporter.say):  # other draws want the same run
            self._split.write(self._folder)
            run = Run(Job.from_dict(given), self._reporter)
            run.prepare_scores()
        return run

    @cached_property
    def _spaces(self) -> Spaces:
        return Spaces(self._run.context.evidence)

    @cached_property
    def _seeds(self) -> tuple[Evidence, Any]:
        context = self._run.context
        return context.seeds, context.store(TARGET_CODES).dense()

    def resolved(self, arm: str) -> dict[str, Any]:
        """Return what an arm stands for, with nothing left to a preset: for the record of a run."""
        parsed = parse_arm(arm)
        if not parsed.scorer:
            return {"rows": FIXED[parsed.name]}
        recipe = self._recipe(parsed)
        return {
            "scorer": recipe.scorer,
            "pooling": recipe.pooling,
            "weights": recipe.weights,
            "selection": parsed.selection,
        }

    def _recipe(self, arm: Arm) -> Preset:
        name = "preset" if arm.scorer in PRESETS else "scorer"
        job = self._plan.selector | {name: arm.scorer}
        return Job.from_dict(job).recipe()

    def order(self, arm: str, topic: str, draw: int, *, noisy: bool, exclude: Any) -> IntArray:
        """Return rows of the pool, int64, first those that are taken first: enough for the largest budget.

        Args:
            arm: as it is written in the plan.
            topic: label.
            draw: seed of the run, from 0.
            noisy: whether planted rows may be chosen too.
            exclude: bool [N], rows that may not.
        """
        allowed = ~np.asarray(exclude, np.bool_) & (self._lengths > 1)
        if not noisy:
            allowed &= ~self._planted
        parsed = parse_arm(arm)
        every = generator(self._plan.seed, "random", topic, draw).permutation(len(allowed))
        shuffled: IntArray = every[allowed[every]].astype(np.int64)
        if parsed.name in (RANDOM, MIXTURE):
            return shuffled
        if parsed.name == DOMAIN:
            own: IntArray = shuffled[self._labels[shuffled] == topic]
            return own
        if parsed.name == MATCHED:
            like = self.order(self._plan.primary, topic, draw, noisy=noisy, exclude=exclude)
            return self._matched(like, shuffled)
        return self._chosen(parsed, topic, draw, allowed)

    def _matched(self, like: IntArray, shuffled: IntArray) -> IntArray:
        """Return for each row a random one, none twice, of a length as near to its own as can be had."""
        left = np.ones(len(shuffled), np.bool_)
        lengths, found = self._lengths[shuffled], []
        for row in like.tolist():
            away = np.where(left, np.abs(lengths - self._lengths[row]), np.iinfo(np.int64).max)
            place = int(away.argmin())
            if not left[place]:
                break
            left[place] = False
            found.append(int(shuffled[place]))
        return np.array(found, np.int64)

    def _chosen(self, arm: Arm, topic: str, draw: int, allowed: Any) -> IntArray:
        known, dense = self._seeds
        rows = np.arange(len(self._split.all_targets()))[self._starts[topic, draw]]
        texts = [row.text for row in self._split.targets[topic][draw]]
        targets = Evidence(PickedRows(known.codes, rows), known.pooling, texts, dense[rows])
        scoring = Scoring(self._spaces, targets, self._recipe(arm), seed=self._plan.seed)
        budget = max(self._plan.budgets)
        mean = float(self._lengths[allowed].mean())
        # Whatever else a method does, it takes rows until the largest budget is full.
        count, scores = int(np.ceil(budget / mean)), scoring.score()
        while True:
            config = SelectionConfig(**{"k": count, **arm.selection})
            chosen: IntArray = select(
                scores,
                config,
                targets=scoring.targets,
                scorer=scoring.space,
                exclude=~allowed,
                tokens=self._lengths,
            ).indices
            full = int(self._lengths[chosen].sum()) >= budget
            if full or len(chosen) < count or count >= len(allowed) or "k" in arm.selection:
                return chosen
            count = min(2 * count, len(allowed))
