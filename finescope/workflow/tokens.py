"""The tokens of some rows at which latents are strongest: by stored activations, or reading them again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finescope.activations.batches import within
from finescope.progress import counted
from finescope.workflow.layout import ACTIVATIONS, CORPUS_CODES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from finescope.sae import Autoencoder
    from finescope.workflow.context import Context

AROUND = 6
"""Tokens that are shown before and behind one."""


@dataclass(frozen=True)
class StrongToken:
    """A token at which a latent is strong.

    Attributes:
        id: of the row.
        place: of the token among those of its row that were read, from 0.
        token: its text.
        before, after: the text around it.
        value: what the latent is there.
    """

    id: str
    place: int
    token: str
    before: str
    after: str
    value: float


def strongest_tokens(
    context: Context,
    sae: Autoencoder,
    rows: Mapping[int, NDArray[np.int64]],
    count: int,
    *,
    run_model: bool = False,
) -> dict[int, list[StrongToken]]:
    """Return by latent the tokens of some rows of the corpus at which it is strongest, strongest first.

    Attention sinks are left out, as they were of the codes. Of equal values the earlier row, then the earlier
    token comes first. What can't be said without the model is told to the run's reporter.

    Args:
        context: of the run.
        sae: its autoencoder.
        rows: int64 row numbers by latent.
        count: tokens of each, at most.
        run_model: whether the model reads the rows whose activations aren't stored.

    Raises:
        InputError: the model can't be loaded, where it is to run.
        StoreError: stored activations are damaged, or the corpus has changed.
    """
    of_row: dict[int, list[int]] = {}
    for latent, held in rows.items():
        for row in held.tolist():
            of_row.setdefault(row, []).append(latent)
    best: dict[int, list[tuple[float, int, int]]] = {latent: [] for latent in rows}
    tokens: dict[int, Tensor] = {}
    for row, token_ids, activations in _documents(context, sorted(of_row), run_model):
        tokens[row] = token_ids
        with torch.no_grad():
            codes = sae.encode_sparse(activations.to(sae.device))
        indices, values = codes.indices.cpu().numpy(), codes.values.float().cpu().numpy()
        ends = codes.indptr.cpu().numpy()
        for latent in of_row[row]:
            entries = np.flatnonzero(indices == latent)
            places = np.searchsorted(ends, entries, side="right") - 1
            found = zip(values[entries].tolist(), [-row] * len(places), (-places).tolist(), strict=True)
            best[latent] = heapq.nlargest(count, [*best[latent], *found], key=_strength)
    return _told(context, best, tokens)


def _strength(found: tuple[float, int, int]) -> tuple[float, int, int]:
    """What tokens are ordered by; the codes of some architectures have signs."""
    return abs(found[0]), found[1], found[2]


def _documents(
    context: Context, wanted: Sequence[int], run_model: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield row number, token ids [T] and activations [T,D] of rows, without attention sinks."""
    max_norm = context.ledger.facts("sinks").get("max_norm")
    missing: list[int] = []
    for row, token_ids, activations in _stored(context, wanted, missing):
        yield row, *_without_sinks(token_ids, activations, max_norm)
    if not missing:
        return
    if not run_model:
        context.reporter.say(
            f"tokens are not shown of {counted(len(missing), 'row')} of {len(wanted):,} whose activations "
            "aren't stored; with --run-model the model reads them again"
        )
        return
    known = context.store(CORPUS_CODES).known("corpus")
    picked = []
    for row, found in context.corpus.pick(missing):
        known.refuse_changed(row, found)
        picked.append(found)
    origin: Any = context.store(CORPUS_CODES).fingerprint()["origin"]
    tap = context.corpus_tap.rounding_to(origin["tap"]["activation_dtype"])
    for row, document in zip(missing, tap.run(picked), strict=True):
        yield row, *_without_sinks(document.token_ids.cpu(), document.activations, max_norm)


def _stored(
    context: Context, wanted: Sequence[int], missing: list[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield those rows whose activations are stored, and note the others as missing."""
    from finescope.activations import ActivationStore

    folder = context.home / ACTIVATIONS
    if context.job.sae_path is not None or not folder.is_dir():
        missing += wanted
        return
    store = ActivationStore(folder)
    for row in wanted:
        parts = list(store.between(row, row + 1))
        if not parts:
            missing.append(row)
            continue
        yield (
            row,
            torch.cat([part.token_ids for part in parts]),
            torch.cat([part.activations for part in parts]),
        )


def _without_sinks(token_ids: Tensor, activations: Tensor, max_norm: float | None) -> tuple[Tensor, Tensor]:
    if max_norm is None:
        return token_ids, activations
    kept = within(activations, max_norm)
    return token_ids[kept.cpu()], activations[kept]


def _told(
    context: Context, best: Mapping[int, list[tuple[float, int, int]]], tokens: Mapping[int, Tensor]
) -> dict[int, list[StrongToken]]:
    """Put tokens into words."""
    from finescope.activations.models import load_tokenizer

    if not tokens:
        return {latent: [] for latent in best}
    tokenizer = load_tokenizer(context.job.model)
    ids = context.store(CORPUS_CODES).ids()

    def text(token_ids: Tensor) -> str:
        return str(tokenizer.decode(token_ids.tolist(), clean_up_tokenization_spaces=False))

    found: dict[int, list[StrongToken]] = {}
    for latent, strongest in best.items():
        found[latent] = []
        for value, row, place in ((value, -row, -place) for value, row, place in strongest):
            held = tokens[row]
            before, after = held[max(0, place - AROUND) : place], held[place + 1 : place + 1 + AROUND]
            found[latent].append(
                StrongToken(ids[row], place, text(held[place : place + 1]), text(before), text(after), value)
            )
    return found
