"""A plan for a proof from a finished run, or from a configuration: its recipe, its corpus, its model."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finescope.activations.collect import rank_of
from finescope.curation.limits import SelectionConfig
from finescope.errors import InputError
from finescope.fields import fields_of
from finescope.progress import Reporter, counted
from finescope.proof.plan import DOMAIN, MATCHED, MIXTURE, NONE, RANDOM, ProofPlan
from finescope.storage.files import make_folder, write_text
from finescope.storage.yaml12 import dump_yaml
from finescope.workflow.finished import finished_job
from finescope.workflow.job import Job
from finescope.workflow.labels import label_of
from finescope.workflow.layout import SAE
from finescope.workflow.rows import open_job_corpus, open_rows
from finescope.workflow.setnames import named_files

PLAN, CORPUS = "plan.yaml", "corpus.jsonl"
MOST_TOPICS = 8
MANY_ROWS, FEWEST_ROWS = 160, 20
"""Rows of a topic that are as many as can be used, and without which there is none."""
_HELD = 1000
_PER_TOKEN = 4
"""Characters, about: only how much is trained rests on it."""
_OF_SELECTOR = (
    "model",
    "layer",
    "sae_path",
    "sae_facts",
    "device",
    "dtype",
    "activation_dtype",
    "batch_tokens",
    "max_length",
    "stride",
    "sinks",
    "train_tokens",
    "pooling",
    "weights",
    "coordinates",
    "top_m",
    "top_k_activations",
    "sae",
    "training",
)
"""What of a job decides how rows are seen and compared."""
_OF_ARM = (
    "strategy",
    "per_target",
    "num_clusters",
    "clusters_per_target",
    "near_duplicate",
    "diversity",
    "min_similarity",
)
"""Limits of a selection that mean the same of another corpus. How many rows there are, the budget says."""
_HEAD = "# A plan for {source}, made by finescope prove."
_HOW = """# Change what you like and run
#     finescope prove {plan} --out {out}
# What a change touches is trained anew. Of a label corpus.jsonl holds {held:,} rows at most.
"""


@dataclass
class Labelled:
    """Labelled rows of a corpus.

    Attributes:
        rows: by label, id and text of those that are kept.
        counts: by label, how many there are.
        without: how many rows have no text or no label.
    """

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    without: int = 0

    def tokens(self, label: str, most: int) -> float:
        """Return about how many tokens so many rows of a label have."""
        rows = self.rows[label]
        characters = sum(min(len(text), 160 * _PER_TOKEN) for _, text in rows) / len(rows)
        return min(most, self.counts[label]) * characters / _PER_TOKEN


def is_job(values: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a job and not a plan."""
    own = fields_of(Job).keys() - fields_of(ProofPlan).keys()
    return bool(own & values.keys()) or isinstance(values.get("targets"), str)


def made_for(plan: Path, source: str) -> bool:
    """Return whether there is a plan that was made for a run or a configuration.

    Raises:
        InputError: there is one, for something else.
    """
    if not plan.is_file():
        return False
    head = plan.read_text(encoding="utf-8").partition("\n")[0]
    if head != _HEAD.format(source=source):
        raise InputError(
            f"{plan} isn't a plan for {source}; name another folder with --out, or give the plan itself"
        )
    return True


def plan_of_run(run: str, out: Path, reporter: Reporter, *, label_column: str | None = None) -> None:
    """Write a plan for a finished run, with the codes of its own autoencoder; see ``plan_of_job``.

    Args:
        run: its folder or URL, or those of a target set.
        out: folder of the proof.
        reporter: told what there is to say of the plan.
        label_column: of the corpus, in place of the run's.

    Raises:
        InputError: as ``finished_job`` and ``plan_of_job``.
        StoreError: the run can't be read, or nothing can be written.
    """
    job, set_name = finished_job(run)
    own: dict[str, Any] = {}
    if job.sae_path is None and not job.recipe().coordinates and (job.folder / SAE).is_dir():
        own = {"sae_path": str(job.folder / SAE), "sae": {}, "training": {}, "train_tokens": Job.train_tokens}
    job = Job.from_dict(job.to_dict() | own)
    plan_of_job(job, out, reporter, source=run, label_column=label_column, set_name=set_name)


def plan_of_job(
    job: Job,
    out: Path,
    reporter: Reporter,
    *,
    source: str,
    label_column: str | None = None,
    set_name: str = "",
) -> None:
    """Write a plan for a job, and the rows that it is about, into a folder.

    Topics are labels of the corpus: those of the targets first, then the most frequent, at most half of all.
    The primary arm is the job's recipe, with those of its limits that aren't numbers of rows.

    Args:
        job: names model, corpus and recipe.
        out: folder of the proof.
        reporter: told what there is to say of the plan.
        source: what the job is from, as the user named it.
        label_column: of the corpus, in place of the job's.
        set_name: the target set that is meant, where the job has several.

    Raises:
        InputError: there are no labels, or none with enough rows.
        StoreError: nothing can be written.
    """
    column = label_column or job.label_column
    if not job.corpus:
        raise InputError(f"{source} names no corpus, and a proof is about the rows of one")
    if not column:
        raise InputError(
            f"{source} says nothing of labels, and a proof needs them: of each topic some rows are held out, "
            "and labels say which rows those are; name their column with --label-column"
        )
    found = labelled_rows(job, column)
    topics = choose_topics(found.counts, _labels_of_targets(job, column, set_name), column)
    make_folder(out)
    lines = (
        json.dumps({"id": name, "text": text, "label": label}, ensure_ascii=False) + "\n"
        for label in sorted(found.rows)
        for name, text in found.rows[label]
    )
    write_text(out / CORPUS, "".join(lines))
    primary = arm_of(job)
    values = {
        "topics": topics,
        "corpus": str(out / CORPUS),
        "primary": primary,
        "rivals": [arm for arm in (RANDOM, "tfidf", "dense") if arm != primary],
        "arms": list(dict.fromkeys([NONE, RANDOM, MATCHED, DOMAIN, MIXTURE, "tfidf", "dense", primary])),
        "seeds": 2,
        **sizes(found, topics),
        "blocks": 6,
        "learning_rate": 3e-4,
        "seed": job.seed,
        "selector": selector_of(job),
    }
    ProofPlan.from_dict(values)
    place = out / PLAN
    written = [_HEAD.format(source=source) + "\n", _HOW.format(plan=place, out=out, held=_HELD)]
    write_text(place, "".join([*written, dump_yaml(values)]))
    reporter.say(f"plan: {counted(len(topics), 'topic')}, in {place}")
    if found.without:
        reporter.say(f"left out, for want of text or label: {counted(found.without, 'row')}")
    if len(topics) == 1:
        reporter.say("one topic is an example and proves nothing: no p-value can be below 1")


def labelled_rows(job: Job, column: str) -> Labelled:
    """Read the rows of a job's corpus that have a text and a label; of many of one label a sample is kept.

    Raises:
        InputError: the corpus can't be read.
    """
    found = Labelled()
    held: dict[str, list[tuple[int, int, str, str]]] = {}
    for number, row in enumerate(open_job_corpus(job).rows(columns=[column])):
        label = label_of(row, column)
        if row.empty or not label:
            found.without += 1
            continue
        found.counts[label] += 1
        kept = held.setdefault(label, [])
        entry = (-rank_of(job.seed, row.id), number, row.id, row.content)
        if len(kept) < _HELD:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    found.rows = {
        label: [(name, text) for _, _, name, text in sorted(kept, key=lambda entry: entry[1])]
        for label, kept in held.items()
    }
    return found


def _labels_of_targets(job: Job, column: str, set_name: str) -> list[str]:
    """The labels that a job is about: those it names, else those of its targets, if these can be read."""
    targets = named_files(job.target_sets).get(set_name) or job.targets
    if job.target_labels or not targets:
        return list(job.target_labels)
    try:
        rows = open_rows(job, targets, empty="error", lenient=True)
        labels = Counter(label_of(row, column) for row in rows.rows(columns=[column]))
    except InputError:  # a finished run needs its targets no more
        return []
    return [label for label, _ in labels.most_common() if label]


def choose_topics(counts: Mapping[str, int], wanted: Sequence[str], column: str) -> list[str]:
    """Return the labels that are topics: those wanted first, then the most frequent.

    Labels that nobody wanted must have half as many rows as the first topic, or all that can be used, for the
    smallest topic decides how much is held out; and some are left over, which forgetting is measured on.

    Args:
        counts: rows by label.
        wanted: labels that the run is about, the first foremost.
        column: where they are from, for messages.

    Raises:
        InputError: no label has enough rows beside another.
    """
    first = {label: place for place, label in enumerate(wanted)}
    order = sorted(counts, key=lambda label: (first.get(label, len(first)), -counts[label], label))
    found: list[str] = []
    for label in order:
        enough = FEWEST_ROWS
        if label not in first and found:
            enough = max(enough, min(MANY_ROWS, counts[found[0]] // 2))
        most = min(MOST_TOPICS, len(counts) - 1, max(1, len(counts) // 2, len(wanted)))
        if counts[label] >= enough and len(found) < most:
            found.append(label)
    if not found:
        common = ", ".join(f"{label} ({counts[label]:,})" for label in order[:8]) or "none"
        raise InputError(
            f"a proof needs a label with {FEWEST_ROWS} rows or more, and rows of another label beside; "
            f"column {column!r} has {common}"
        )
    return found


def sizes(found: Labelled, topics: Collection[str]) -> dict[str, Any]:
    """Return how many rows are held out and are targets, and how many tokens are trained on.

    With enough rows these are the sizes of the committed proof; with fewer, all shrink alike.

    Args:
        found: the rows.
        topics: labels.
    """
    least = min(found.counts[topic] for topic in topics)
    others = [label for label in found.counts if label not in topics]
    pool = sum(found.tokens(topic, 200) * 0.5 for topic in topics)
    pool += sum(found.tokens(label, 80) for label in others)
    warm_up = max(64, min(8192, int(pool) // 4))
    step = warm_up // 8
    return {
        "min_rows": min(30, max(found.counts[label] for label in others)),
        "targets": max(2, min(10, least // 12)),
        "held_out": max(4, min(40, least // 4)),
        "off_topic": max(1, min(60, sum(min(80, found.counts[label]) for label in others) // 4)),
        "budgets": [step, 3 * step],
        "curve": [step, 3 * step, 9 * step, 27 * step],
        "warm_up": warm_up,
        "batch_tokens": max(16, min(256, warm_up // 32)),
    }


def arm_of(job: Job) -> str:
    """Return a job's recipe as an arm of a plan, with its limits behind @."""
    limits, usual = job.selection_config().to_dict(), SelectionConfig().to_dict()
    changed = [f"{name}={limits[name]}" for name in _OF_ARM if limits[name] != usual[name]]
    return " @ ".join([job.scorer or job.preset, *([" ".join(changed)] if changed else [])])


def selector_of(job: Job) -> dict[str, Any]:
    """Return how a job sees rows and compares them, as far as it isn't usual."""
    given, usual = job.to_dict(), Job().to_dict()
    found = {name: given[name] for name in _OF_SELECTOR if given[name] != usual[name]}
    if job.scorer and job.preset != Job.preset:
        found["preset"] = job.preset
    if job.recipe().coordinates:
        found["coordinates"] = job.recipe().coordinates
    return found
