"""The compiled sparse_cosine_topk against brute force over dictionaries: scores and ids, exactly.

The screen may only save time. So the data are made to mislead it: ties by the hundred, rows that float32
cannot represent, latents that all rows share, scores closer together than bfloat16 can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope.ops import native
from support.backends import op

pytestmark = pytest.mark.requires_native

INF = float("inf")
Rows = list[dict[int, float]]


def csr(rows: Rows, index: torch.dtype, value: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    indptr = torch.tensor([0] + [len(row) for row in rows]).cumsum(0)
    latents = [latent for row in rows for latent in sorted(row)]
    values = [row[latent] for row in rows for latent in sorted(row)]
    # Through int64: torch builds no uint16 tensor from a list of Python numbers on every release.
    return indptr, torch.tensor(latents, dtype=torch.int64).to(index), torch.tensor(values, dtype=value)


def rounded(rows: Rows, value: torch.dtype) -> Rows:
    """The numbers that a dtype holds for these rows."""
    return [
        {latent: torch.tensor(v, dtype=torch.float64).to(value).double().item() for latent, v in row.items()}
        for row in rows
    ]


def norm(row: dict[int, float]) -> float:
    total = 0.0
    for latent in sorted(row):
        total += row[latent] * row[latent]
    return math.sqrt(total) if total >= 0 else total


def brute(
    queries: Rows, corpus: Rows, k: int, cosine: bool, allowed: Any = lambda q, n: True
) -> list[list[tuple]]:
    """The k best (score, row) of each query: float64 sums in ascending latents; ties to the lower row."""
    found = []
    norms = [norm(row) for row in corpus]
    for q, query in enumerate(queries):
        scored = []
        length = norm(query)
        for n, row in enumerate(corpus):
            if not (math.isfinite(length) and math.isfinite(norms[n]) and allowed(q, n)):
                continue
            dot = 0.0
            for latent in sorted(row):
                if latent in query:
                    dot += query[latent] * row[latent]
            if cosine:
                dot = dot / (length * norms[n]) if length * norms[n] > 0 else 0.0
            scored.append((-dot, n))
        found.append([(-score, n) for score, n in sorted(scored)[:k]])
    return found


def ways() -> Iterator[str]:
    """Searches of packed codes go over rows, then over lists, then over what takes less time."""
    module = native.module("cpu")
    if module is None:
        yield "sooner"
        return
    try:
        for way in ("rows", "lists", "sooner"):
            module.set_sparse_way(way)
            yield way
    finally:
        module.set_sparse_way("sooner")


def pack(rows: tuple[Tensor, Tensor, Tensor], F: int) -> Tensor:
    return torch.ops.finescope.pack_sparse_rows(*rows, F)


def check(
    queries: Rows,
    corpus: Rows,
    F: int,
    k: int,
    *,
    index: torch.dtype = torch.int32,
    value: torch.dtype = torch.float32,
    metrics: tuple[str, ...] = ("cosine", "ip"),
    allowed: Any = lambda q, n: True,
    **options: Any,
) -> None:
    queries, corpus = rounded(queries, value), rounded(corpus, value)
    for metric in metrics:
        scores, ids = op.sparse_cosine_topk(
            *csr(queries, index, value), *csr(corpus, index, value), F, k, metric, **options
        )
        packed = pack(csr(corpus, index, value), F)
        for way in ways():
            again = torch.ops.finescope.sparse_cosine_topk_packed(
                *csr(queries, index, value), *csr(corpus, index, value), F, packed, k, metric, **options
            )
            assert torch.equal(again[0], scores), f"{metric}, packed, {way}"
            assert torch.equal(again[1], ids), f"{metric}, packed, {way}"
        want = brute(queries, corpus, k, metric == "cosine", allowed)
        offset = options.get("id_offset", 0)
        want_ids = torch.tensor([[n + offset for _, n in row] + [-1] * (k - len(row)) for row in want])
        want_scores = torch.tensor(
            [[score for score, _ in row] + [-INF] * (k - len(row)) for row in want], dtype=torch.float64
        ).to(scores.dtype)
        assert torch.equal(ids, want_ids.reshape(ids.shape)), metric
        assert torch.equal(scores, want_scores.reshape(scores.shape)), metric
        assert scores.dtype == (torch.float64 if value == torch.float64 else torch.float32)


def random_rows(count: int, F: int, most: int, seed: int, signed: bool = True) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    rows: Rows = []
    for _ in range(count):
        length = int(torch.randint(0, most + 1, (), generator=generator))
        latents = torch.randperm(F, generator=generator)[:length].tolist()
        values = torch.randn(length, generator=generator)
        rows.append(dict(zip(latents, (values if signed else values.abs()).tolist(), strict=True)))
    return rows


@pytest.mark.parametrize("Q", [1, 2, 3, 16, 17, 31, 33, 65, 130])
def test_number_of_queries(isa: str, Q: int) -> None:
    check(random_rows(Q, 90, 40, 1), random_rows(150, 90, 40, 2), 90, 7)


@pytest.mark.parametrize("index", [torch.uint16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("value", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("Q", [1, 5])
def test_dtypes(isa: str, index: torch.dtype, value: torch.dtype, Q: int) -> None:
    check(random_rows(Q, 60, 20, 3), random_rows(70, 60, 20, 4), 60, 5, index=index, value=value)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 47, 64])
def test_row_lengths(isa: str, length: int) -> None:
    corpus = [{latent: 0.1 + (latent * n) % 7 for latent in range(length)} for n in range(30)]
    check(random_rows(3, 64, 64, 5), corpus, 64, 6)


def test_ties_and_duplicates_go_to_the_lower_row(isa: str) -> None:
    """More copies of the best row than candidates are kept for: bounds agree, so exact scores decide."""
    best, other = {1: 1.0, 2: 2.0, 5: 1.0}, {1: 1.0, 7: 3.0}
    corpus = [dict(other) if n % 5 == 0 else dict(best) for n in range(3000)]
    check([dict(best), {7: 1.0}, {40: 1.0}], corpus, 64, 12)
    check([dict(best)], corpus, 64, 12)


def test_scores_closer_than_the_screen_can_tell(isa: str) -> None:
    corpus = [{0: 1.0, 1: 1.0 + n * 2.0**-22} for n in torch.randperm(2000).tolist()]
    check([{0: 1.0, 1: 0.3}, {1: 1.0}, {0: -1.0, 1: 1.0}], corpus, 2, 20)


@pytest.mark.parametrize("value", [torch.float32, torch.float64], ids=str)
def test_magnitudes_that_float32_squares_cannot_hold(isa: str, value: torch.dtype) -> None:
    tiny, huge = (1e-30, 1e30) if value == torch.float32 else (1e-170, 1e170)
    corpus = random_rows(60, 30, 10, 6)
    for n in range(0, 60, 3):
        corpus[n] = {latent: v * tiny for latent, v in corpus[n].items()}
    for n in range(1, 60, 3):
        corpus[n] = {latent: v * huge for latent, v in corpus[n].items()}
    queries = random_rows(4, 30, 10, 7)
    queries[1] = {latent: v * tiny for latent, v in queries[1].items()}
    queries[2] = {latent: v * huge for latent, v in queries[2].items()}
    check(queries, corpus, 30, 9, value=value)


def test_nan_and_infinity(isa: str) -> None:
    corpus = random_rows(40, 20, 8, 8)
    corpus[3], corpus[9] = {0: float("nan"), 1: 1.0}, {2: INF}
    queries = random_rows(4, 20, 8, 9)
    queries[1], queries[2] = {1: float("nan")}, {1: -INF, 2: 1.0}
    check(queries, corpus, 20, 40)


def test_zero_rows_score_zero(isa: str) -> None:
    corpus: Rows = [{}, {1: 0.0}, {2: -1.0}, {}, {2: 1.0}, {3: 0.0, 4: 0.0}, {5: float("nan")}]
    check([{}, {2: 0.0}, {2: 1.0}, {9: 1.0}], corpus, 10, 5)
    check([{2: 1.0}], corpus, 10, 9)


@pytest.mark.parametrize("k", [0, 1, 149, 150, 151, 400])
def test_every_k(isa: str, k: int) -> None:
    check(random_rows(3, 40, 12, 10), random_rows(150, 40, 12, 11), 40, k)


def test_top_k_is_nested() -> None:
    queries, corpus = random_rows(9, 50, 20, 12, signed=False), random_rows(4000, 50, 20, 13, signed=False)
    rows = (*csr(queries, torch.int32, torch.float32), *csr(corpus, torch.int32, torch.float32), 50)
    hundred = op.sparse_cosine_topk(*rows, 100)
    ten = op.sparse_cosine_topk(*rows, 10)
    assert all(torch.equal(left, right[:, :10]) for left, right in zip(ten, hundred, strict=True))


def test_filters(isa: str) -> None:
    queries, corpus = random_rows(4, 40, 12, 14), random_rows(200, 40, 12, 15)
    queries[2] = {}
    mask = torch.rand(200) < 0.6
    exclude = torch.randint(-1, 200, (4, 30)) + 1000
    exclude[exclude == 999] = -1
    gone = [set((row[row >= 0] - 1000).tolist()) for row in exclude]

    def allowed(q: int, n: int) -> bool:
        return bool(mask[n]) and n not in gone[q]

    check(queries, corpus, 40, 30, allowed=allowed, mask=mask, exclude=exclude, id_offset=1000)
    check(queries[:1], corpus, 40, 30, allowed=allowed, mask=mask, exclude=exclude[:1], id_offset=1000)


def test_ids_past_two_to_the_31() -> None:
    check(random_rows(2, 20, 8, 16), random_rows(30, 20, 8, 17), 20, 3, id_offset=1 << 33)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_min_score(isa: str, metric: str) -> None:
    queries, corpus = random_rows(5, 40, 12, 18), random_rows(200, 40, 12, 19)
    rows = (*csr(queries, torch.int32, torch.float32), *csr(corpus, torch.int32, torch.float32), 40)
    scores, ids = op.sparse_cosine_topk(*rows, 200, metric)
    # At a score that occurs, just above it, and far outside.
    for floor in (float(scores[0, 20]), math.nextafter(float(scores[0, 20]), INF), -1e9, 1e9, math.nan):
        kept = op.sparse_cosine_topk(*rows, 200, metric, "auto", floor)
        stays = scores.double() >= floor
        assert torch.equal(kept[0], scores.masked_fill(~stays, -INF))
        assert torch.equal(kept[1], ids.masked_fill(~stays, -1))


@pytest.mark.skipif(native.module("cpu") is None, reason="only the compiled CPU operations choose")
def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="go over 'rows', 'lists' or what is 'sooner', got 'both'"):
        native.module("cpu").set_sparse_way("both")


def test_weights_are_found_for_every_set_of_eight_entries(isa: str) -> None:
    """Rows of eight latents of which queries hold every subset: those entries are moved together."""
    corpus: Rows = [{latent: 1.0 + latent + n % 5 for latent in range(8)} for n in range(20)]
    queries: Rows = [
        {latent: 2.0 - latent for latent in range(8) if held >> latent & 1} for held in range(256)
    ]
    for first in range(0, 256, 64):
        check(queries[first : first + 64], corpus, 8, 5)
    check([queries[held] for held in (0, 1, 128, 255)], corpus, 8, 5)
    for held in range(0, 256, 5):
        check([queries[held]], corpus, 8, 5, metrics=("cosine",))


def test_same_bytes_for_every_thread_count() -> None:
    queries, corpus = random_rows(40, 64, 24, 20, signed=False), random_rows(6000, 64, 24, 21, signed=False)
    rows = (*csr(queries, torch.uint16, torch.float16), *csr(corpus, torch.uint16, torch.float16), 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op.sparse_cosine_topk(*rows, 50))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], other, strict=True))


@pytest.mark.names_bad_data
@pytest.mark.parametrize("bad", [-1, 20, 1 << 30])
@pytest.mark.parametrize("Q", [1, 4])
def test_latent_out_of_range_is_named(isa: str, bad: int, Q: int) -> None:
    queries, corpus = random_rows(Q, 20, 8, 22), random_rows(50, 20, 8, 23)
    good, wrong = csr(queries, torch.int32, torch.float32), csr(corpus, torch.int32, torch.float32)
    row = 31
    while wrong[0][row] == wrong[0][row + 1]:
        row += 1
    wrong[1][wrong[0][row]] = bad
    with pytest.raises(IndexError, match=rf"c_indices holds {bad} in row {row}, which is outside 0..19"):
        op.sparse_cosine_topk(*good, *wrong, 20, 3)
    with pytest.raises(IndexError, match=rf"q_indices holds {bad} in row {row}, which is outside 0..19"):
        op.sparse_cosine_topk(*wrong, *good, 20, 3)


@pytest.mark.names_bad_data
def test_pointers_that_do_not_rise_are_refused() -> None:
    rows = csr(random_rows(4, 20, 8, 24), torch.int32, torch.float32)
    with pytest.raises(ValueError, match="q_indptr must rise from 0 to nnz="):
        op.sparse_cosine_topk(rows[0] + 1, *rows[1:], *rows, 20, 3)
    with pytest.raises(ValueError, match="c_indptr must rise from 0 to nnz="):
        op.sparse_cosine_topk(*rows, rows[0].flip(0), *rows[1:], 20, 3)


def test_refused() -> None:
    rows = csr(random_rows(4, 20, 8, 24), torch.int32, torch.float32)
    search = op.sparse_cosine_topk
    cases: list[tuple[Any, str]] = [
        (
            lambda: search(*rows, rows[0], rows[1].float(), rows[2], 20, 3),
            "c_indices must be uint16, int32 or int64",
        ),
        (lambda: search(*rows, rows[0], rows[1], rows[2][:-1], 20, 3), "c_values must have shape"),
        (lambda: search(*rows, *rows, 20, -1), "k must be at least 0, got -1"),
        (lambda: search(*rows, *rows, 20, 3, "dot"), "metric must be one of 'cosine', 'ip', got 'dot'"),
        (lambda: search(*rows, *rows, 20, 3, "ip", "fp4"), "screen must be one of .* got 'fp4'"),
        (
            lambda: search(*rows, *rows, 20, 3, mask=torch.ones(3, dtype=torch.bool)),
            r"mask \[3\] must",
        ),
        (
            lambda: search(*rows, *rows, 20, 3, exclude=torch.zeros(3, 1, dtype=torch.int64)),
            r"exclude \[3, 1\] must have shape \[4, E\]",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def loose_scores(query: dict[int, float], latents: list[list[int]], values: list[list[float]]) -> list[float]:
    """Cosines as the contract has them for rows in any order: sums in the order of storage, float64."""
    length, found = norm(query), []
    for row, held in zip(latents, values, strict=True):
        dot = square = 0.0
        for latent, value in zip(row, held, strict=True):
            dot += query.get(latent, 0.0) * value
            square += value * value
        found.append(dot / (length * math.sqrt(square)))
    return found


@pytest.mark.parametrize("Q", [1, 5])
@pytest.mark.parametrize("repeated", [False, True])
def test_latents_in_any_order_and_twice(isa: str, Q: int, repeated: bool) -> None:
    """Twice the same latent breaks the bound of the screen: such rows must be scored exactly all the same."""
    generator = torch.Generator().manual_seed(25)
    latents, values = [], []
    for _ in range(300):
        row = torch.randperm(12, generator=generator)[:6].tolist()
        latents.append(row + [row[0]] * 5 if repeated else row)
        values.append(torch.rand(len(latents[-1]), generator=generator).tolist())
    corpus = (
        torch.tensor([0] + [len(row) for row in latents]).cumsum(0),
        torch.tensor([latent for row in latents for latent in row], dtype=torch.int32),
        torch.tensor([value for row in values for value in row], dtype=torch.float32),
    )
    queries = rounded(random_rows(Q, 12, 8, 26, signed=False), torch.float32)
    queries[0] = {latents[0][0]: 1.0}
    rows, packed = (*csr(queries, torch.int32, torch.float32), *corpus, 12), pack(corpus, 12)
    results = [torch.ops.finescope.sparse_cosine_topk(*rows, 9)]
    results += [torch.ops.finescope.sparse_cosine_topk_packed(*rows, packed, 9) for _ in ways()]
    for scores, ids in results:
        for q, query in enumerate(queries):
            if not query:
                continue
            want = sorted((-score, n) for n, score in enumerate(loose_scores(query, latents, values)))[:9]
            assert ids[q].tolist() == [n for _, n in want]
            assert torch.equal(scores[q], torch.tensor([-score for score, _ in want]))


def test_rows_longer_than_the_sums_have_room_for(isa: str) -> None:
    F = 50_000
    row = {latent: 1.0 + latent % 3 for latent in range(45_000)}
    corpus: Rows = [row, {5: 1.0}, dict.fromkeys(range(0, F, 2), 1.0), {}, {7: -2.0, 49_999: 1.0}]
    check([dict(row), {7: 1.0}, {5: -1.0}], corpus, F, 4)


def test_many_windows_and_lists_of_every_length(isa: str) -> None:
    """Latents on all, many, few and no rows, over windows with an odd last one."""
    generator = torch.Generator().manual_seed(27)
    chance = 0.9 ** torch.arange(60)
    held = torch.rand(5003, 60, generator=generator) < chance
    dense = torch.rand(5003, 60, generator=generator) * held
    corpus: Rows = [{int(latent): float(row[latent]) for latent in row.nonzero()} for row in dense]
    check(corpus[:4], corpus, 60, 25, metrics=("cosine",))


@pytest.mark.skipif(native.module("cpu") is None, reason="only the compiled CPU operations pack")
def test_packed_rows_of_another_corpus_are_refused() -> None:
    rows = csr(random_rows(50, 30, 12, 28), torch.int32, torch.float32)
    other = csr(random_rows(51, 30, 12, 29), torch.int32, torch.float32)
    packed = pack(rows, 30)
    assert packed.numel() > 0
    op = torch.ops.finescope.sparse_cosine_topk_packed
    for wrong in (packed[:-1].clone(), pack(other, 30), torch.zeros(100, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="packed does not hold 50 rows packed from this corpus"):
            op(*rows, *rows, 30, wrong, 3)
    with pytest.raises(ValueError, match="packed must be a contiguous uint8 tensor"):
        op(*rows, *rows, 30, packed.float(), 3)


@pytest.mark.names_bad_data
def test_latents_changed_after_packing_are_named(isa: str) -> None:
    rows = csr([{1: 1.0, 2: 1.0}, {1: 2.0}], torch.int32, torch.float32)
    packed = pack(rows, 20)
    rows[1][0] = 1000
    for _ in ways():
        with pytest.raises(IndexError, match=r"c_indices holds 1000 in row 0, which is outside 0..19"):
            torch.ops.finescope.sparse_cosine_topk_packed(
                *csr([{2: 1.0}], torch.int32, torch.float32), *rows, 20, packed, 2
            )


@pytest.mark.names_bad_data
@pytest.mark.parametrize("bad", [-1, 20])
def test_latent_out_of_range_is_named_when_packing_and_scoring(isa: str, bad: int) -> None:
    rows = csr([{1: 1.0}, {2: 1.0, 3: 1.0}], torch.int32, torch.float32)
    rows[1][2] = bad
    with pytest.raises(IndexError, match=rf"c_indices holds {bad} in row 1, which is outside 0..19"):
        pack(rows, 20)
    with pytest.raises(IndexError, match=rf"c_indices holds {bad} in row 1, which is outside 0..19"):
        torch.ops.finescope.sparse_pair_scores(
            *csr([{1: 1.0}], torch.int32, torch.float32), *rows, 20, torch.tensor([[0, 1]])
        )
