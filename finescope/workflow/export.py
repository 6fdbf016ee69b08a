"""A run's scores and codes as files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import iter_blocks
from finescope.curation.limits import SelectionConfig
from finescope.curation.scoring.onepass import one_pass
from finescope.curation.scoring.space import View
from finescope.report.explain import strongest
from finescope.storage.files import atomic_path
from finescope.workflow.layout import CORPUS_CODES, SELECTION
from finescope.workflow.stages.report import passages
from finescope.workflow.tables import read_selection

if TYPE_CHECKING:
    from finescope.workflow.context import Context

LATENTS_PER_ROW = 5


def export_scores(context: Context, path: Path) -> int:
    """Write one float64 a corpus row, in the corpus' order, as NumPy's ``.npy``; return how many.

    This is what benchmarks of data attribution take (DATE-LM, arXiv 2507.09424). Rows that are never to be
    selected, because they have no code or are targets, are −inf.

    Raises:
        StoreError: the run's scores are missing, or the file can't be written.
    """
    scored = context.scored()
    table = scored.table_for(SelectionConfig())
    kept = table.valid & ~scored.is_target
    score = np.where(kept, table.score, -np.inf)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, score)
    return int(score.size)


def export_cosines(context: Context, path: Path) -> tuple[int, int]:
    """Write the cosines of all targets with all corpus rows, ``.npy`` float32 [T,N]; return T and N.

    They are taken between codes, as the recipe pools and weighs them. This is the input of the selection
    benchmark of arXiv 2602.14696, which calls it ``NAME_cossim.npy``, NAME being that of the target set.
    Targets without a latent, and rows without one, have cosine 0 with everything.

    Raises:
        StoreError: the run's scores or codes are missing, or the file can't be written.
    """
    scoring = context.scoring
    view = View(scoring.space, scoring.space.targets(scoring.targets), False)
    shape = view.targets.count, len(scoring.space)
    with atomic_path(path) as temporary:
        # Written where it stands, a block at a time: it may be larger than memory.
        cosines = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for rows, (seen,) in one_pass([view], scoring.space.block_rows):
            found = np.zeros((shape[0], rows.stop - rows.start), np.float32)
            found[view.targets.usable] = seen.cosines
            cosines[:, rows] = found
        cosines.flush()
        del cosines
    return shape


def export_atlas(context: Context, path: Path) -> int:
    """Write a Parquet table of all corpus rows for embedding-atlas; return how many.

    Columns: id, text (its beginning), score, selected, rank, reason, nearest_target, nearest_similarity,
    latents (names of the strongest of the code), and vector (the mean activations, where there are any).

    Raises:
        InputError: the corpus has fewer rows than were scored.
        StoreError: a file of the run is missing, a row isn't the one that was scored, or the table can't be
            written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = context.store(CORPUS_CODES)
    scored = context.scored()
    score = scored.table_for(SelectionConfig()).score
    selection = read_selection(context.folder / SELECTION)
    table = pq.read_table(context.folder / SELECTION, columns=["rank", "reason"])
    selected = np.zeros(len(store), np.bool_)
    selected[selection.indices] = True
    vectors = None if store.width is None else store.dense()
    texts = (passage.text for _, passage in passages(context.corpus, range(len(store)), scored.known))
    writer = None
    with atomic_path(path) as temporary:
        try:
            for start, block in iter_blocks(store):
                rows = slice(start, start + len(block))
                nearest, similarity = scored.nearest(np.arange(rows.start, rows.stop))
                columns: dict[str, Any] = {
                    "id": pa.array(list(scored.ids[rows]), pa.string()),
                    "text": pa.array([next(texts) for _ in range(len(block))], pa.string()),
                    "score": pa.array(score[rows]),
                    "selected": pa.array(selected[rows]),
                    "rank": table.column("rank").slice(start, len(block)),
                    "reason": table.column("reason").slice(start, len(block)).cast(pa.string()),
                    "nearest_target": pa.array(scored.names_of(nearest), pa.string()),
                    "nearest_similarity": pa.array(similarity),
                    "latents": pa.array(_names(block), pa.list_(pa.string())),
                }
                if vectors is not None:
                    flat = np.asarray(vectors[rows], np.float32)
                    width = flat.shape[1]
                    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width)
                part = pa.table(columns)
                writer = pq.ParquetWriter(temporary, part.schema) if writer is None else writer
                writer.write_table(part)
        finally:
            if writer is not None:
                writer.close()
    return len(store)


def _names(block: Any) -> list[list[str]]:
    from finescope.curation.blocks import to_csr64

    found = strongest(to_csr64(block), LATENTS_PER_ROW)
    return [[f"latent {share.latent}" for share in shares] for shares in found]
