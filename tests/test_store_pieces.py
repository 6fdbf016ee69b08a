"""A run that is killed in the middle of a shard loses what it did since the last piece, and no more.

Fails if documents that a piece holds go through the model again, if the finished store differs from that of a
run that was never disturbed, if pieces of other work or damaged ones are believed, or if any are left over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.activations import ActivationTap, store_activations
from finescope.activations.layer import Layer
from finescope.config import SaeConfig
from finescope.corpus import open_corpus
from finescope.embeddings import embed_rows
from finescope.sae import SparseAutoencoder
from finescope.storage import pieces
from support.tiny_models import WIDTH, make_model, make_rows, make_tokenizer

RECORDS = [{"id": row.id, "text": row.text} for row in make_rows(60, longest=12)]
SHARD_ROWS, SHARD_TOKENS = 40, 150
MAX_NORM = 3.6
"""A fifth of the tokens have a larger one."""


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(autouse=True)
def at_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SECONDS", 0.0)


def _tap() -> ActivationTap:
    return ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=32)


def _embed(folder: Path, records: list[dict[str, str]] = RECORDS, **options: Any) -> None:
    torch.manual_seed(1)
    sae = SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4), seed=1)
    embed_rows(sae, _tap(), open_corpus(records), folder, shard_rows=SHARD_ROWS, **options)


def _collect(folder: Path, records: list[dict[str, str]] = RECORDS, **options: Any) -> None:
    store_activations(_tap(), open_corpus(records), folder, shard_tokens=SHARD_TOKENS, **options)


def _embed_some(folder: Path, records: list[dict[str, str]] = RECORDS, **options: Any) -> None:
    """Leave out tokens, some of every length of text; how many is noted beside each shard."""
    _embed(folder, records, max_norm=MAX_NORM, **options)


RUNS = pytest.mark.parametrize("run", [_embed, _embed_some, _collect])


class Passes(list[int]):
    """Passes so far, and how many there may be."""

    limit = 10**9


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """The model's passes from here on."""
    real = Layer.__call__
    monkeypatch.setattr("finescope.activations.tap._ORDERED_ROWS", 1)
    seen = Passes()

    def counted(self: Layer, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.shape != self._probe.shape:
            if len(seen) >= seen.limit:
                raise Killed
            seen.append(ids.shape[0])
        return real(self, ids, mask)

    monkeypatch.setattr(Layer, "__call__", counted)
    return seen


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _kill(run: Callable[..., None], folder: Path, passes: Passes, after: int, **options: Any) -> None:
    passes.clear()
    passes.limit = after
    with pytest.raises(Killed):
        run(folder, **options)
    passes.clear()
    passes.limit = Passes.limit


@RUNS
@pytest.mark.parametrize("after", [5, 8, 11])
def test_what_a_piece_holds_is_not_done_again(
    tmp_path: Path, passes: Passes, run: Callable[..., None], after: int
) -> None:
    run(tmp_path / "straight")
    whole = len(passes)
    assert whole >= 12
    folder = tmp_path / "killed"
    _kill(run, folder, passes, after)
    _kill(run, folder, passes, 2)  # and again, two passes later
    assert list(folder.glob("piece-*"))
    run(folder)
    assert len(passes) <= whole - after - 2 + 2  # those that broke off
    assert _contents(folder) == _contents(tmp_path / "straight")


@RUNS
def test_pieces_of_other_work_and_damaged_ones_are_not_believed(
    tmp_path: Path, passes: Passes, run: Callable[..., None]
) -> None:
    run(tmp_path / "straight")
    whole = len(passes)
    other = [{"id": row["id"], "text": row["text"] + " a"} for row in RECORDS]
    _kill(run, tmp_path / "killed", passes, 8, records=other)
    run(tmp_path / "killed")  # of another corpus, before its first shard: nothing was promised
    assert len(passes) == whole
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "straight")

    _kill(run, tmp_path / "damaged", passes, 6)
    found = sorted((tmp_path / "damaged").glob("piece-*"))
    found[1].write_bytes(found[1].read_bytes()[:-7])
    run(tmp_path / "damaged")
    assert whole - 6 < len(passes) < whole
    assert _contents(tmp_path / "damaged") == _contents(tmp_path / "straight")

    _kill(run, tmp_path / "again", passes, 6)
    run(tmp_path / "again", mode="overwrite")
    assert _contents(tmp_path / "again") == _contents(tmp_path / "straight")


def test_overwriting_forgets_the_pieces_of_rows_that_are_no_corpus(tmp_path: Path, passes: Passes) -> None:
    def collect(folder: Path, rows: list[Any], **options: Any) -> None:
        store_activations(_tap(), rows, folder, shard_tokens=SHARD_TOKENS, **options)

    rows = make_rows(20, longest=12)
    _kill(collect, tmp_path / "acts", passes, 3, rows=rows)
    assert list((tmp_path / "acts").glob("piece-*"))
    collect(tmp_path / "acts", rows[::-1], mode="overwrite")
    collect(tmp_path / "straight", rows[::-1])
    assert _contents(tmp_path / "acts") == _contents(tmp_path / "straight")


@RUNS
def test_none_is_written_before_its_time(
    tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    monkeypatch.setattr(pieces, "SECONDS", 3600.0)
    _kill(run, tmp_path / "killed", passes, 6)
    assert not list((tmp_path / "killed").glob("piece-*"))


def test_activations_that_are_stored_already_are_no_work_to_keep(tmp_path: Path, passes: Passes) -> None:
    from finescope.activations import ActivationStore

    def tap() -> ActivationTap:
        return ActivationTap(
            make_model("llama"),
            "layers.1",
            tokenizer=make_tokenizer(),
            batch_tokens=32,
            activation_dtype="float16",
        )

    def embed(folder: Path) -> None:
        sae = SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4), seed=1)
        embed_rows(sae, tap(), open_corpus(RECORDS), folder, shard_rows=SHARD_ROWS, stored=stored)

    store_activations(tap(), open_corpus(RECORDS), tmp_path / "stored", max_tokens=90)
    stored = ActivationStore(tmp_path / "stored")
    assert 0 < len(stored) < len(RECORDS)
    embed(tmp_path / "straight")
    _kill(lambda folder: embed(folder), tmp_path / "killed", passes, 4)
    assert list((tmp_path / "killed").glob("piece-*"))
    embed(tmp_path / "killed")
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "straight")
