"""How much the screens let through to exact scores, on real data beside made-up ones.

What decides is how far the scores of a query's best rows stand out from the rest, against the error of the
screen. Real are MiniLM's sentence embeddings (384 wide, docstrings of installed libraries), its hidden
states, and the codes that ``finescope curate`` makes of such sentences (``--all``, since it trains an
autoencoder on them first).
"""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.functional import normalize

from benchmarks import data, harness, texts
from finescope import Index
from finescope.diagnostics import count_pairs

Q, N, D, CODED = 1000, 20_000, 384, 10_000
KS = (1, 10, 100)


def survivors(benchmark: Any, queries: Any, corpus: Any, k: int) -> None:
    """Search once with the corpus packed, and record what was let through."""
    index = Index(corpus)
    for _ in range(2):  # the second search packs
        index.search(queries[:8], k)
    with count_pairs() as pairs:
        index.search(queries, k)
    assert pairs.all == len(queries) * len(corpus)
    found = {
        "left by the first screen": pairs.passed / pairs.all,
        "scored in float64": pairs.exact / pairs.all,
        "k of N": k / len(corpus),
    }
    harness.shares(benchmark, lambda: index.search(queries, k), found)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("kind", ["sentences", "gaussian", "tokens"])
def bench_survivors_dense(benchmark: Any, kind: str, k: int) -> None:
    if kind == "sentences":
        rows = texts.embeddings(Q + N)
    else:
        rows = normalize(data.rows({"tokens": "real"}.get(kind, kind), Q + N, D))
    survivors(benchmark, rows[:Q], rows[Q:], k)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    "kind", [pytest.param("curated", marks=pytest.mark.big), "made-up"], ids=lambda kind: f"codes-{kind}"
)
def bench_survivors_sparse(benchmark: Any, kind: str, k: int) -> None:
    codes = texts.codes(CODED) if kind == "curated" else data.codes(CODED, 96, 16384)
    survivors(benchmark, codes[: Q // 2], codes[Q // 2 :], k)
