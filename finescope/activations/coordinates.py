"""Coordinates of a layer that depend most on what is read (FineScope paper, arXiv 2505.00624 v3).

For coordinate j of a layer's activations a, and the embeddings e of the tokens that the model reads, the
paper takes the norm of a row of the Jacobian, s_j = ‖∂a_j/∂e‖, pooled over a reference corpus, and keeps the
K_act coordinates of the largest s_j: one set for all texts. The autoencoder is trained on those alone.
Attention sinks, which it isn't trained on, may be left out here too.

The Jacobian is never made. For v of independent random signs the mean of (J v)_j² is s_j² (Hutchinson), and
J v comes out of one forward pass that carries v along (forward-mode differentiation). Pooled is the mean of
s_j² over tokens; what the paper pools by isn't said where we could read it.
"""

from __future__ import annotations

import hashlib
import heapq
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from finescope.activations.batches import within
from finescope.activations.collect import rank_of
from finescope.errors import InputError

if TYPE_CHECKING:
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row

REFERENCE_ROWS = 128
"""Rows of the corpus, drawn by a hash of their ids, that the norms are pooled over."""
PROBES = 2
"""Random v a row; the paper tries 1, 2 and 4."""


def jacobian_norms(
    tap: ActivationTap,
    rows: Iterable[Row],
    seed: int,
    probes: int = PROBES,
    *,
    max_norm: float | None = None,
) -> Tensor:
    """Estimate s_j of every coordinate, float64 [D]: the root of the mean over tokens of squared row norms.

    Args:
        tap: model and layer.
        rows: the reference corpus; of long texts the first window is read.
        seed: of the directions.
        probes: random directions that are tried of each row.
        max_norm: tokens of a larger norm are left out, as attention sinks. None: none are.

    Raises:
        InputError: rows without a token, or a model whose embeddings aren't a module.
    """
    held, squares = list(rows), torch.zeros(tap.width, dtype=torch.float64)
    for probe in range(probes):
        signs = partial(_signs, f"{seed}\0{probe}\0".encode())
        squares += pooled_norms(tap, held, signs, max_norm=max_norm).square()
    return (squares / probes).sqrt()


def input_embeddings(tap: ActivationTap) -> nn.Module:
    """Return the module of a model whose outputs coordinates are chosen by.

    Raises:
        InputError: the model has none.
    """
    embeddings: nn.Module | None = getattr(tap.model, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise InputError(
            f"{type(tap.model).__name__} has no module of input embeddings, which the coordinates are chosen "
            "by; choose another preset"
        )
    return embeddings


def pooled_norms(
    tap: ActivationTap,
    rows: Iterable[Row],
    direction: Callable[[Tensor], Tensor],
    *,
    max_norm: float | None = None,
) -> Tensor:
    """Pool (J v)² over tokens and take the root, float64 [D].

    Args:
        tap: model and layer.
        rows: the reference corpus.
        direction: given embeddings [rows,T,E], returns v of their shape.
        max_norm: as in ``jacobian_norms``.

    Raises:
        InputError: as ``jacobian_norms``.
    """
    embeddings = input_embeddings(tap)
    short = tap.truncating()
    squares, tokens = torch.zeros(tap.width, dtype=torch.float64), 0

    def carry(_module: Any, _given: Any, output: Tensor) -> Tensor:
        dual: Tensor = forward_ad.make_dual(output, direction(output))  # type: ignore[no-untyped-call]
        return dual

    handle = embeddings.register_forward_hook(carry)
    try:
        # The fused kernels of attention don't carry a direction along.
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its scripted rules
            for batch in short.batches(list(rows)):
                found, moved = forward_ad.unpack_dual(batch.activations)  # type: ignore[no-untyped-call]
                if moved is not None:
                    if max_norm is not None:
                        moved = moved[within(found, max_norm)]
                    squares += moved.double().square().sum(dim=0).cpu()
                    tokens += len(moved)
    finally:
        handle.remove()
    if tokens == 0:
        raise InputError("the reference rows give no token, so no coordinates can be chosen by them")
    return (squares / tokens).sqrt()


def choose_coordinates(
    tap: ActivationTap, rows: Iterable[Row], count: int, *, seed: int = 0, max_norm: float | None = None
) -> list[int]:
    """Return the coordinates of the ``count`` largest s_j, ascending; all where there are no more.

    Args:
        tap: model and layer.
        rows: a corpus; ``REFERENCE_ROWS`` of its rows are read.
        count: K_act.
        seed: of the rows and directions.
        max_norm: as in ``jacobian_norms``.

    Raises:
        InputError: as ``jacobian_norms``.
    """
    if count >= tap.width:
        return list(range(tap.width))
    full = (row for row in rows if not row.empty)
    reference = heapq.nsmallest(REFERENCE_ROWS, full, key=lambda row: rank_of(seed, row.id))
    norms = jacobian_norms(tap, reference, seed=seed, max_norm=max_norm)
    return sorted(torch.argsort(norms, descending=True, stable=True)[:count].tolist())


class OnCoordinates:
    """The tokens of a store, some of their coordinates only, as the trainer reads them.

    Attributes:
        width: how many coordinates.
        num_tokens: tokens.
    """

    def __init__(self, store: Any, coordinates: list[int]) -> None:
        """Look at some coordinates of a store of activations, or of one without its sinks."""
        self._store, self._kept = store, torch.tensor(coordinates)
        self.width, self.num_tokens = len(coordinates), store.num_tokens

    def batches(self, batch_size: int, *, seed: int, epoch: int = 0) -> Iterator[Tensor]:
        """Yield all tokens once, shuffled as the store does it, in batches [b,width]."""
        for rows in self._store.batches(batch_size, seed=seed, epoch=epoch):
            yield rows[:, self._kept]


def _signs(seed: bytes, given: Tensor) -> Tensor:
    """Return random signs for embeddings [rows,T,E].

    Each row's are drawn by what it holds: rows of other texts get others, and batches and threads, which
    decide what rows come together, have no say in it.
    """
    held = given.detach().cpu().contiguous().view(torch.uint8).numpy()
    drawn = []
    for row in held:
        digest = hashlib.blake2b(seed + row.tobytes(), digest_size=8).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn.append(torch.randint(0, 2, given.shape[1:], generator=random))
    return (2 * torch.stack(drawn) - 1).to(given)
