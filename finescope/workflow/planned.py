"""The plan of a corpus as a file: where each shard begins, so that any machine can work on any of them.

A line of ``plan.parquet`` is a shard. Beside the lines stands what the pass over the rows has told, hashes of
the files and counts, so that nobody who has the plan need read the corpus through again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finescope.corpus import Corpus, CorpusStats
from finescope.corpus.lines import Mark
from finescope.corpus.plan import Shard
from finescope.corpus.source import Start
from finescope.errors import InputError, StoreError
from finescope.storage.files import atomic_path, reading
from finescope.storage.identity import differences

_KEY = b"finescope"
_FORMAT = {"format": "finescope-plan", "version": 1}
_SHOWN = 3


@dataclass(frozen=True)
class Plan:
    """The plan of a corpus.

    Attributes:
        shards: in order.
        tokens: expected of all of them.
        refused: what the first pass found of conversations that the chat template refuses.
    """

    shards: list[Shard]
    tokens: int
    refused: Mapping[str, Any]


def write_plan(
    path: Path, corpus: Corpus, shards: Sequence[Shard], per_token: float, refused: Mapping[str, Any]
) -> int:
    """Write the plan of a corpus that has been read through; return the tokens that are expected.

    Args:
        path: where.
        corpus: the rows.
        shards: what they are cut into, with their starts.
        per_token: characters per token, about.
        refused: plain values to keep.

    Raises:
        StoreError: the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    starts = [shard.start or Start(0, 0) for shard in shards]
    marks = [start.mark for start in starts]
    tokens = [round(shard.characters / per_token) for shard in shards]
    columns = {
        "shard": pa.array([shard.number for shard in shards], pa.int64()),
        "first_row": pa.array([shard.first for shard in shards], pa.int64()),
        "rows": pa.array([shard.rows for shard in shards], pa.int64()),
        "characters": pa.array([shard.characters for shard in shards], pa.int64()),
        "tokens": pa.array(tokens, pa.int64()),
        "source": pa.array([start.source for start in starts], pa.int64()),
        "name": pa.array([_text(corpus.sources[start.source].name) for start in starts], pa.string()),
        "row": pa.array([start.row for start in starts], pa.int64()),
        "mark_row": pa.array([mark and mark.row for mark in marks], pa.int64()),
        "mark_offset": pa.array([mark and mark.offset for mark in marks], pa.int64()),
        "mark_line": pa.array([mark and mark.line for mark in marks], pa.int64()),
        "digest": pa.array([shard.digest for shard in shards], pa.string()),
    }
    if corpus.stats is None:
        raise ValueError("a corpus is planned after a pass over all of its rows")
    about = {
        **_FORMAT,
        "corpus": corpus.fingerprint(),
        "files": corpus.digests(),
        "stats": asdict(corpus.stats),
        "refused": dict(refused),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    return sum(tokens)


def read_plan(path: Path, corpus: Corpus) -> Plan:
    """Read the plan of a corpus, and give the corpus what stands in it, so that it needn't be read through.

    Files are known again by size and time of change; those that look otherwise are hashed.

    Raises:
        InputError: the plan is of another corpus, or of one whose files have changed.
        StoreError: the plan is missing or damaged.
    """
    import pyarrow.parquet as pq

    with reading(path, "run `finescope plan` again"):
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    if {name: about.get(name) for name in _FORMAT} != _FORMAT:
        raise StoreError(f"{path} is no plan that this release reads; run `finescope plan` again")
    corpus.know(CorpusStats(**about["stats"]), about["files"])
    changed = differences(about["corpus"], corpus.fingerprint())
    if changed:
        shown = "; ".join(map(str, changed[:_SHOWN]))
        raise InputError(
            f"{path} is the plan of other rows: {shown}. Choose another --out, or add --restart to plan anew"
        )
    shards = [
        Shard(
            line["first_row"],
            line["rows"],
            line["digest"],
            line["shard"],
            line["characters"],
            Start(line["source"], line["row"], _mark(line)),
        )
        for batch in table.to_batches()
        for line in batch.to_pylist()
    ]
    return Plan(shards, sum(table["tokens"].to_pylist()), about["refused"])


def _mark(line: Mapping[str, Any]) -> Mark | None:
    return (
        None if line["mark_row"] is None else Mark(line["mark_row"], line["mark_offset"], line["mark_line"])
    )


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
