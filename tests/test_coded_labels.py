"""Labels of very many rows: a number a row, and the numbers of a selection as they are of all rows at once.

Fails if: a label comes back as another, whatever the sizes of blocks and shards and wherever the codes lie; a
metric differs in its last bit from that of the whole ranking; a labelled corpus costs a Python object a row.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.codes import SparseCodes
from finescope.curation import domain_distribution, precision_at_k, recall_at_k
from finescope.curation.scoring.table import ScoreTable
from finescope.embeddings import CodeStore, CodeStoreWriter, store
from finescope.storage import coded, spill
from finescope.storage.coded import CodedStrings
from finescope.workflow import scored as of_scores
from finescope.workflow.labels import Labels, stored_labels
from finescope.workflow.scored import ScoredRows
from finescope.workflow.stages.evaluate import label_metrics

STRINGS = st.lists(st.sampled_from(["", "a", "b", "sky", "a\0", "é"]), max_size=40)


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded, "BLOCK", 7)
    monkeypatch.setattr(store, "BLOCK", 7)
    monkeypatch.setattr(of_scores, "ROWS", 5)
    if request.param == "file":
        monkeypatch.setattr(spill, "HELD_BYTES", 0)


@pytest.mark.usefixtures("place")
def test_strings_come_back_as_they_were() -> None:
    @given(STRINGS, st.data())
    @settings(max_examples=60, deadline=None)
    def check(strings: list[str], data: st.DataObject) -> None:
        found = CodedStrings.of(iter(strings), len(strings))
        assert list(found) == list(CodedStrings.of(strings)) == strings
        assert found.names == tuple(dict.fromkeys(strings))
        assert [found[at] for at in range(-len(strings), len(strings))] == strings * 2
        assert found[2:9:3] == strings[2:9:3]
        assert dict(zip(found.names, found.counts().tolist(), strict=True)) == {
            name: strings.count(name) for name in strings
        }
        low = data.draw(st.integers(0, len(strings)))
        high = data.draw(st.integers(low, len(strings)))
        expected = [name in ("a", "sky", "nowhere") for name in strings]
        assert found.are(["a", "sky", "nowhere"]).tolist() == expected
        assert found.are(["a", "sky", "nowhere"], low, high - low).tolist() == expected[low:high]
        rows = data.draw(st.permutations(range(len(strings))))[:high]
        assert [found.names[code] for code in found.codes(np.array(rows, np.int64))] == [
            strings[row] for row in rows
        ]

    check()


def test_more_or_fewer_strings_than_announced_are_refused() -> None:
    for rows in (2, 4):
        with pytest.raises(ValueError, match="strings"):
            CodedStrings.of(iter("abc"), rows)
    with pytest.raises(IndexError):
        CodedStrings.of("abc")[3]


def scored_rows(rows: int, random: np.random.Generator) -> ScoredRows:
    return ScoredRows(
        ScoreTable(
            random.integers(0, 5, rows) / 4,
            np.zeros(rows, np.int64),
            random.random(rows),
            random.random(rows) < 0.9,
            "contrast",
        ),
        [str(row) for row in range(rows)],
        ["t"],
        np.ones(rows, np.int64),
        random.random(rows) < 0.1,
        {},
    )


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("rows", [1, 6, 7, 61])
@pytest.mark.parametrize("wanted", [["a"], ["a", "c"], ["nowhere"]])
def test_metrics_are_those_of_the_whole_ranking(rows: int, wanted: list[str]) -> None:
    random = np.random.default_rng(rows)
    for share in (0.0, 0.3, 1.0):
        scored = scored_rows(rows, random)
        names = random.choice(["a", "b", "c", ""], rows).tolist()
        allowed = np.flatnonzero(scored.table.valid & ~scored.is_target)
        selected = random.permutation(allowed)[: round(share * allowed.size)]
        found = label_metrics(Labels("topic", CodedStrings.of(names), wanted), scored, selected)
        relevant = np.isin(names, wanted)
        ranking = np.concatenate([selected, np.setdiff1d(scored.table.ranking(), selected)])
        ranking = ranking[~scored.is_target[ranking]]

        def number(value: float) -> float | None:
            return None if np.isnan(value) else value

        assert found == {
            "column": "topic",
            "target_labels": wanted,
            "relevant_rows": int((relevant & ~scored.is_target & scored.table.valid).sum()),
            "selected_precision": number(precision_at_k(selected, relevant, len(selected))),
            "selected_recall": number(recall_at_k(ranking, relevant, len(selected))),
            "distribution": domain_distribution(names, selected),
        }
        expected = [(name, names.count(name), [names[row] for row in selected].count(name)) for name in names]
        assert {(name, line["count"]) for name, line in found["distribution"].items()} == {
            (name, chosen) for name, _, chosen in expected
        }
        for name, total, chosen in expected:
            line = found["distribution"][name]
            part = chosen / selected.size if selected.size else 0.0
            assert (line["share"], line["corpus_share"]) == (part, total / rows)
            assert line["lift"] == part / (total / rows)


def codes_of(rows: int) -> SparseCodes:
    return SparseCodes.from_dense(torch.ones(rows, 2))


def write_store(folder: Path, shards: list[list[str]], **facts: Any) -> CodeStore:
    with CodeStoreWriter(folder, 2, facts=facts) as writer:
        at = 0
        for names in shards:
            ids = [str(row) for row in range(at, at + len(names))]
            writer.write(codes_of(len(names)), ids, labels=names)
            at += len(names)
        writer.finish()
    return CodeStore(folder)


@pytest.mark.usefixtures("place")
def test_labels_beside_codes_are_counted_shard_by_shard(tmp_path: Path) -> None:
    shards = [["b", "a", "", "b"], ["c"] * 9, ["a", "d"]]
    written = write_store(tmp_path / "codes", shards, label_column="topic")
    found = stored_labels(written, "topic")
    assert found is not None
    names, count = found
    everything = [name for shard in shards for name in shard]
    assert list(names) == written.labels("topic") == everything
    assert dict(count.counts) == {name: everything.count(name) for name in everything}
    assert stored_labels(written, "other") is None


def test_labels_of_many_rows_are_not_held_as_objects() -> None:
    rows, block = 6 << 20, np.zeros(1 << 20, np.int32)
    tracemalloc.start()
    try:
        names = CodedStrings(rows, ((["sky", "law"], block) for _ in range(6)))
        assert int(names.are(["law"]).sum()) == 0
        assert names.counts().tolist() == [rows, 0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * rows  # less than the codes themselves: they lie in a file
