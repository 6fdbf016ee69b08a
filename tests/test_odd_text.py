"""Characters and types that real corpora hold and files don't: half a surrogate pair, a file name that isn't
UTF-8, a column that changes its type, a token that the model has no row for.

Fails if: one such row ends a run of hours with an error that doesn't name it, or is stored as something else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from finescope.activations import ActivationTap, store_activations
from finescope.config import SaeConfig
from finescope.corpus import Row, open_corpus
from finescope.embeddings import CodeStore, embed_rows
from finescope.errors import InputError, StoreError
from finescope.sae import SparseAutoencoder
from finescope.storage.files import read_json, write_json
from finescope.storage.shards import ShardWriter
from support.tiny_models import WIDTH, make_model, make_tokenizer

HALF = "\ud83d"  # what is left of an emoji that was cut in two


def _tap() -> ActivationTap:
    return ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer())


def _embed(rows: Any, folder: Path, **options: Any) -> CodeStore:
    sae = SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4))
    return embed_rows(sae, _tap(), rows, folder, **options)


def _jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_half_a_surrogate_pair_in_a_text_is_one_unknown_character(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", {"text": f"w1 {HALF} w2"}, {"text": "w1 \N{GRINNING FACE} w2"})
    broken, whole = _tap().run(open_corpus(path))
    assert broken.token_ids.tolist() == whole.token_ids.tolist() == [6, 3, 7]
    talk = [{"role": "user", "content": f"w1 {HALF}"}]
    assert _embed([Row("a", None, messages=talk)], tmp_path / "codes").token_counts().tolist() == [3]


def test_ids_that_no_file_can_hold_are_refused_with_their_place(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", {"id": "fine", "text": "w1"}, {"id": f"x{HALF}", "text": "w1"})
    with pytest.raises(InputError, match=r"a\.jsonl:2: the id .*surrogate"):
        list(open_corpus(path).rows())
    # Rows that no corpus has checked.
    with pytest.raises(StoreError, match=r"id 'x\\ud83d' holds half a surrogate"):
        _embed([Row(f"x{HALF}", "w1")], tmp_path / "codes")
    with pytest.raises(StoreError, match=r"id 'x\\ud83d' holds half a surrogate"):
        store_activations(_tap(), [Row(f"x{HALF}", "w1")], tmp_path / "activations")


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jsonl"))
    try:
        _jsonl(path, {"id": "a", "text": "w1"})
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    for _ in range(2):  # the second finds that the first has done it
        store = _embed(open_corpus(path), tmp_path / "codes")
        assert store.table(["place"])["place"].to_pylist() == ["b?.jsonl:1"]
    store_activations(_tap(), open_corpus(path), tmp_path / "activations")


@pytest.mark.parametrize("value", [HALF, 1 << 70, object()], ids=["surrogate", "large", "object"])
def test_columns_that_parquet_cannot_hold_are_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(StoreError, match="column 'label' can't be kept"):
        _embed([Row("a", "w1", record={"label": value})], tmp_path / "codes", keep_columns=["label"])


def test_a_column_that_changes_its_type_is_found_when_it_does(tmp_path: Path) -> None:
    rows = [Row(str(n), "w1", record={"label": label}) for n, label in enumerate((None, 1, 2.5, "two", 3))]
    options: dict[str, Any] = {"keep_columns": ["label"], "shard_rows": 1}
    for _ in range(2):  # and again by the run that resumes
        with pytest.raises(StoreError, match=r"a column changes its type between rows.*label"):
            _embed(rows, tmp_path / "codes", **options)
    assert len(read_json(tmp_path / "codes" / "manifest.json")["shards"]) == 3
    store = _embed(rows[:3], tmp_path / "numbers", **options)
    assert store.table(["label"])["label"].to_pylist() == [None, 1.0, 2.5]


def test_json_keeps_what_is_not_unicode(tmp_path: Path) -> None:
    value = {"name": "b\udcff", "word": "ü"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_lock_on_a_removed_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening the lock file and locking it, the run that held it may end and remove it."""
    import fcntl

    lock, real = fcntl.flock, fcntl.flock

    def slow(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / ".lock").unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with ShardWriter(tmp_path, "a", {}):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(StoreError, match="another run"):
            ShardWriter(tmp_path, "a", {})
    with ShardWriter(tmp_path, "a", {}):
        pass


def test_unusual_but_valid_ids_come_back_as_they_were(tmp_path: Path) -> None:
    store = _embed([Row("a\N{SNOWMAN}\x00b", "w1"), Row("", "w2 w3")], tmp_path / "codes")
    assert store.ids() == ["a\N{SNOWMAN}\x00b", ""]
