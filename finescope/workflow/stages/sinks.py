"""Finding attention sinks, which are left out of everything that comes after."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.errors import StoreError
from finescope.progress import counted
from finescope.storage.files import read_json, reading, write_json
from finescope.workflow.layout import ACTIVATIONS, SINKS_BESIDE
from finescope.workflow.stage import Stage

if TYPE_CHECKING:
    from finescope.activations import ActivationStore, ActivationTap
    from finescope.activations.sinks import Sinks
    from finescope.corpus import Corpus
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.sae.sources import TokenStore
    from finescope.workflow.context import Context

_ROWS = 4096


@dataclass(frozen=True)
class FindSinks(Stage):
    """Measures above which norm a token of this layer is an attention sink."""

    name = "sinks"
    reads = (ACTIVATIONS, "corpus", "model")
    writes = ()

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the activations that are looked at, and whether sinks matter."""
        job = context.job
        if job.sinks == "keep" or job.sae_path is None:
            return {"sinks": job.sinks, "activations": context.ledger.key("activations")}
        return {
            "sinks": job.sinks,
            "tap": context.tap_identity,
            "sae": context.sae_identity,
            "corpus": context.fingerprints["corpus"],
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Look at the stored activations; where none are stored, at the first rows."""
        job = context.job
        if job.sinks == "keep":
            return {}
        if job.sae_path is not None:
            tap, corpus = context.corpus_tap, context.corpus
            return {"max_norm": norm_limit(context.sae_place, tap, corpus, context.reporter)}
        from finescope.activations import ActivationStore

        return asdict(find_in(ActivationStore(context.folder / ACTIVATIONS), context.reporter))


def find_in(store: ActivationStore, reporter: Reporter) -> Sinks:
    """Find the sinks of a store, and say how many there are."""
    from finescope.activations.sinks import sinks_of_store

    found = sinks_of_store(store)
    if found.sinks:
        reporter.say(f"{found.words}; training and pooling leave them out (--sinks keep does not)")
    return found


def tokens_of(store: ActivationStore, found: Mapping[str, Any]) -> TokenStore:
    """Return what is trained on: a store, without the sinks that were ``found`` in it, if any."""
    from finescope.activations.sinks import WithoutSinks

    return WithoutSinks(store, found["max_norm"], found["sinks"]) if found.get("sinks") else store


def norm_limit(place: Path, tap: ActivationTap, corpus: Corpus, reporter: Reporter) -> float | None:
    """Return the norm above which a token is a sink, the same for all codes of one SAE.

    It stands beside the SAE. Where it doesn't yet, it is measured on the rows that are embedded first and
    noted there: codes of corpus and targets are comparable only if the same tokens are left out of both.

    Args:
        place: folder or file of the SAE.
        tap: the model at the SAE's layer.
        corpus: rows to measure on.
        reporter: told if it can't be noted.

    Raises:
        InputError: as ``sinks_of_rows``.
        StoreError: what stands beside the SAE is damaged.
    """
    from finescope.activations.sinks import sinks_of_rows

    beside = _beside(place)
    if beside.is_file():
        with reading(beside, "remove it, and the limit is measured anew"):
            return _limit(read_json(beside))
    limit = sinks_of_rows(tap, itertools.islice(corpus.rows(records=False), _ROWS)).max_norm
    try:
        note_beside(place, limit)
    except StoreError as error:
        reporter.say(f"the limit of attention sinks, {limit:,g}, can't be noted beside the SAE: {error}")
    return limit


def _beside(place: Path) -> Path:
    return place.with_name(f"{place.name}.{SINKS_BESIDE}") if place.is_file() else place / SINKS_BESIDE


def _limit(found: Any) -> float:
    limit = found.get("max_norm") if isinstance(found, dict) else None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
        raise ValueError(f"max_norm must be a positive number, got {limit!r}")
    return float(limit)


def note_beside(place: Path, max_norm: float | None) -> None:
    """Write beside an SAE what it is used without.

    Raises:
        StoreError: nothing can be written there.
    """
    if max_norm is not None:
        write_json(_beside(place), {"max_norm": max_norm})


def words_of(store: CodeStore) -> str:
    """Return what is to be said of the sinks left out of a store of codes; an empty string of none."""
    count = store.num_sinks
    if not count:
        return ""
    return f"{counted(count, 'attention sink')} left out, {count / store.num_tokens:.2%} of the tokens"
