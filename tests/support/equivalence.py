"""When a top-k answer is right, said as a relation that does not depend on the order of any summation.

Byte comparisons against the fixed-order oracle are stronger where they apply; this is for truths computed
otherwise (exact arithmetic, a library). ``test_equivalence.py`` shows that wrong answers are rejected.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def assert_same_bytes(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], what: str = "") -> None:
    """Equal dtypes, shapes and bits, NaN and the sign of zero included."""
    assert len(got) == len(wanted)
    for place, (left, right) in enumerate(zip(got, wanted, strict=True)):
        assert left.dtype == right.dtype, f"{what} output {place}: {left.dtype} is not {right.dtype}"
        assert left.shape == right.shape, f"{what} output {place}: {left.shape} is not {right.shape}"
        if left.dtype == torch.bfloat16:  # which NumPy lacks
            left, right = left.view(torch.int16), right.view(torch.int16)
        a, b = left.detach().contiguous().numpy(), right.detach().contiguous().numpy()
        if a.tobytes() != b.tobytes():
            differ = np.argwhere(
                a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}") if a.dtype.kind == "f" else a != b
            )
            at = tuple(differ[0])
            raise AssertionError(
                f"{what} output {place}: {len(differ)} of {a.size} differ, "
                f"first at {at}: {a[at]!r} is not {b[at]!r}"
            )


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bits; unlike ==, tells -0 from +0 and lets equal NaNs be equal."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.numel():
        return True
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def assert_topk_equivalent(
    scores: Tensor, ids: Tensor, truth: np.ndarray, k: int, *, tolerance: float = 1e-12
) -> None:
    """Check a search result against true scores.

    Args:
        scores: [Q,k] as returned.
        ids: int64 [Q,k] as returned, -1 for padding.
        truth: float64 [Q,N], -inf for pairs that may not be returned.
        k: what was asked for.
        tolerance: true scores closer than this, relative to the largest of the query, may change places.
    """
    assert scores.shape == ids.shape == (truth.shape[0], k), f"shapes {scores.shape}, {ids.shape}"
    assert ids.dtype == torch.int64
    for q, row in enumerate(truth):
        possible = int(np.isfinite(row).sum())
        wanted = min(k, possible)
        found = ids[q, :wanted].tolist()
        values = scores[q].double().numpy()
        assert (ids[q, wanted:] == -1).all(), f"query {q}: ids after the last possible result"
        assert (values[wanted:] == -np.inf).all(), f"query {q}: scores after the last possible result"
        assert all(0 <= n < len(row) for n in found), f"query {q}: ids outside the corpus {found}"
        assert len(set(found)) == wanted, f"query {q}: an id twice"
        if not wanted:
            continue
        exact = row[found]
        assert np.isfinite(exact).all(), f"query {q}: a result that may not be returned"
        slack = tolerance * max(1e-300, float(np.abs(row[np.isfinite(row)]).max()))
        unit = np.spacing(np.abs(exact).astype(scores.numpy().dtype)).astype(np.float64)
        assert (np.abs(values[:wanted] - exact) <= unit + slack).all(), (
            f"query {q}: not the scores of the ids"
        )
        assert (np.diff(values[:wanted]) <= 0).all(), f"query {q}: scores rise"
        for place in range(wanted - 1):
            if exact[place] == exact[place + 1]:
                assert found[place] < found[place + 1], f"query {q}: a tie out of order at {place}"
            assert exact[place + 1] <= exact[place] + slack, f"query {q}: out of order at {place}"
        others = np.delete(row, found)
        if others.size:
            best = others.max()
            assert best <= exact.min() + slack, f"query {q}: {best} was left out for {exact.min()}"
            tied = [n for n in np.flatnonzero(row == exact[-1]) if n not in found]
            same = [n for n in found if row[n] == exact[-1]]
            assert not tied or max(same) < min(tied), f"query {q}: a tie at the edge went to the later id"
