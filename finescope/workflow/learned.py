"""What scoring has learned of corpus and targets: it lies beside the scores, and is known by its hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.errors import StoreError
from finescope.storage.files import map_tensors, write_tensors
from finescope.storage.identity import sha256_file
from finescope.workflow.layout import SCORER

if TYPE_CHECKING:
    from torch import Tensor

    from finescope.curation.scoring.fitted import Scoring
    from finescope.workflow.ledger import Ledger

HASH = "scorer_sha256"
"""Fact of the scoring: the hash of what it has learned; of several target sets, one by each name."""
REMEDY = "score the run again: finescope select RUN"


def write_learned(folder: Path, scoring: Scoring) -> str:
    """Write what a recipe has learned into a run's folder; return the SHA-256 of the file."""
    write_tensors(folder / SCORER, scoring.state(), {"scorer": scoring.scorer.name})
    return sha256_file(folder / SCORER)


def read_learned(folder: Path, ledger: Ledger, name: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what was learned, by name of the tensor, and the notes beside it.

    Args:
        folder: of the run or of one of its target sets.
        ledger: of that folder.
        name: of the target set.

    Raises:
        StoreError: it isn't there, is damaged, or isn't what was written when the corpus was scored.
    """
    found = map_tensors(folder / SCORER, REMEDY)
    if changed(folder, ledger.facts("score"), name):
        raise StoreError(
            f"{folder / SCORER} isn't what was learned when the corpus was scored: its SHA-256 is another; "
            f"{REMEDY}"
        )
    return found


def changed(folder: Path, facts: Mapping[str, Any], name: str = "") -> bool:
    """Return whether the file is there and isn't the one that the ``facts`` of the scoring tell of."""
    noted = facts.get(HASH)
    if isinstance(noted, Mapping):
        noted = noted.get(name)
    path = folder / SCORER
    return noted is not None and path.is_file() and sha256_file(path) != noted
