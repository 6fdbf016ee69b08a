"""Which rows are held out, which are targets, which every arm begins with, and which may be chosen."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finescope.demo.docstrings import Docstring, collect_docstrings
from finescope.errors import InputError
from finescope.progress import counted
from finescope.proof.noise import PLANTED, planted
from finescope.proof.plan import ProofPlan
from finescope.storage.files import write_text
from finescope.storage.identity import sha256_json

POOL, TARGETS = "pool.jsonl", "targets.jsonl"
_SPARE = 10
"""Rows of a topic that must be left for the pool, at least."""


@dataclass(frozen=True)
class Split:
    """The rows of a proof by what they are for; none is in two places.

    Attributes:
        pool: rows that may be chosen, and behind them the planted ones.
        targets: by topic, one list a seed.
        held_out: by topic.
        off_topic: of labels that are no topic.
    """

    pool: list[Docstring]
    targets: Mapping[str, list[list[Docstring]]]
    held_out: Mapping[str, list[Docstring]]
    off_topic: list[Docstring]

    @property
    def identity(self) -> str:
        """Hash of all rows and their places."""
        return sha256_json(
            [
                [row.to_dict() for row in self.pool],
                {topic: [[row.id for row in one] for one in sets] for topic, sets in self.targets.items()},
                {topic: [row.to_dict() for row in rows] for topic, rows in self.held_out.items()},
                [row.to_dict() for row in self.off_topic],
            ]
        )

    @property
    def planted(self) -> Any:
        """Which rows of the pool are planted, bool [N]."""
        return np.array([row.label.startswith(PLANTED) for row in self.pool], np.bool_)

    def all_targets(self) -> list[Docstring]:
        """Return the targets of all topics and seeds, in a fixed order."""
        return [row for sets in self.targets.values() for one in sets for row in one]

    def write(self, folder: Path) -> None:
        """Write pool and targets as files that ``finescope curate`` takes."""
        for name, rows in ((POOL, self.pool), (TARGETS, self.all_targets())):
            lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / name, "".join(lines))


def read_corpus(plan: ProofPlan) -> list[Docstring]:
    """Return the labelled rows that a plan is about.

    Raises:
        InputError: the file can't be read, or a row lacks text or label.
    """
    if not plan.corpus:
        return collect_docstrings(min_per_label=plan.min_rows, max_per_label=0)
    from finescope.corpus import lookup, open_corpus

    rows = []
    for row in open_corpus(plan.corpus).rows(columns=[plan.label_column]):
        label = lookup(row.record, plan.label_column)
        if row.empty or label is None:
            raise InputError(f"{row.place}: a row without text or without {plan.label_column}")
        rows.append(Docstring(row.id, row.content, str(label)))
    return rows


def generator(*names: Any) -> np.random.Generator:
    """Return a generator of random numbers that depends on nothing but these names."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def split(plan: ProofPlan, rows: Sequence[Docstring]) -> Split:
    """Deal rows out to held-out texts, targets and pool, the same on every run.

    Raises:
        InputError: the plan names no topic, a topic that has too few rows, or all labels there are.
    """
    if not plan.topics:
        raise InputError("the plan names no topics")
    by_label: defaultdict[str, list[Docstring]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    needed = plan.held_out + plan.targets * plan.seeds + _SPARE
    for topic in plan.topics:
        if len(by_label.get(topic, ())) < needed:
            raise InputError(
                f"topic {topic!r} has {len(by_label.get(topic, ()))} rows and needs {needed}: "
                f"{plan.held_out} held out, {plan.targets * plan.seeds} targets, and some to be found"
            )
    pool: list[Docstring] = []
    held_out, targets, rest = {}, {}, []
    for label in sorted(by_label):
        order = generator(plan.seed, "rows", label).permutation(len(by_label[label]))
        dealt = [by_label[label][place] for place in order]
        if label in plan.topics:
            dealt = dealt[: plan.rows_per_topic]
            held_out[label], dealt = dealt[: plan.held_out], dealt[plan.held_out :]
            sets = [dealt[plan.targets * s : plan.targets * (s + 1)] for s in range(plan.seeds)]
            targets[label] = sets
            pool += dealt[plan.targets * plan.seeds :]
        elif len(dealt) >= plan.min_rows:
            rest.append(dealt[: plan.rows_per_label])
    if not rest:
        raise InputError(
            f"no label beside the {counted(len(plan.topics), 'topic')} has {plan.min_rows} rows (min_rows): "
            "nothing is left to read off topic, or to choose badly; name fewer topics, or lower min_rows"
        )
    off_topic: list[Docstring] = []
    each = -(-plan.off_topic // max(1, len(rest)))
    for dealt in rest:
        off_topic += dealt[:each]
        pool += dealt[each:]
    place = generator(plan.seed, "off topic").permutation(len(off_topic))[: plan.off_topic]
    pool += [row for at, row in enumerate(off_topic) if at not in set(place.tolist())]
    off_topic = [off_topic[at] for at in sorted(place.tolist())]
    pool = [pool[at] for at in generator(plan.seed, "pool").permutation(len(pool))]
    pool += planted(pool, plan.noise, generator(plan.seed, "noise"))
    return Split(pool, {topic: targets[topic] for topic in plan.topics}, held_out, off_topic)
