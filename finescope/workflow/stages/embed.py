"""Embedding rows: from texts to document codes on disk."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.corpus.badrows import BadRow, check_bad, said_of
from finescope.errors import InputError
from finescope.storage.files import write_text
from finescope.storage.identity import differences, sha256_json
from finescope.storage.manifest import begun_with
from finescope.workflow.engines.local import Local
from finescope.workflow.layout import ACTIVATIONS, BAD_ROWS, CODES, MARKS
from finescope.workflow.marks import write_marks
from finescope.workflow.pulse import Pulse, announce, fall_silent, followed
from finescope.workflow.stage import Stage
from finescope.workflow.stages.sinks import words_of

if TYPE_CHECKING:
    from finescope.activations import ActivationStore, ActivationTap
    from finescope.corpus import Corpus
    from finescope.corpus.plan import Shard
    from finescope.embeddings.embedder import Embedder, Order
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.sae import Autoencoder
    from finescope.storage.manifest import ShardEntry
    from finescope.workflow.context import Context
    from finescope.workflow.engines.engine import Engine, Work
    from finescope.workflow.job import Job
    from finescope.workflow.remoteplan import RemoteShards


@dataclass(frozen=True)
class Embed(Stage):
    """Embeds the corpus or the targets into a store of document codes."""

    rows: str
    """"corpus" or "targets"."""

    @property
    def name(self) -> str:
        """Its name, with that of the rows."""
        return f"embed-{self.rows}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The rows and the model; the SAE is the run's own or one from elsewhere."""
        return (self.rows, "model")

    @property
    def writes(self) -> tuple[str, ...]:
        """The folder of the codes."""
        return (CODES[self.rows],)

    @property
    def expensive(self) -> bool:
        """The corpus is; the targets are few."""
        return self.rows == "corpus"

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the rows, the model, the SAE and how tokens are pooled."""
        job = context.job
        return {
            "tap": context.tap_identity,
            "activation_dtype": self._dtype(context),
            "sae": context.sae_identity,
            "pooling": job.recipe().pooling,
            "top_k_activations": job.top_k_activations,
            "sinks": job.sinks,
            "rows": context.fingerprints[self.rows],
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Embed; finished shards are kept."""
        job = context.job
        rows = self._rows(context)
        store = embed(
            context.sae,
            context.corpus_tap if self.rows == "corpus" else context.tap,
            rows,
            context.folder / CODES[self.rows],
            self._how(context),
            reporter=context.reporter,
            engine=context.engine if self.expensive else Local(context.reporter.say),
            work=lambda embedder: EmbedWork(job, self.rows, embedder.order, rows.activations, embedder),
        )
        if self.rows == "corpus":
            write_bad_rows(context.folder / BAD_ROWS, store.bad_rows)
            write_marks(context.folder / MARKS, context.corpus)
        refused = context.refused.get(self.rows)
        return {
            "rows": len(store),
            "pooling": job.recipe().pooling,
            "activation_dtype": store.facts["source"]["activation_dtype"],
            "tokens": store.num_tokens,
            "sinks": store.num_sinks,
            "bad_rows": [row.plain() for row in store.bad_rows],
            "left_out": _some(context.rows(self.rows).left_out),
            "refused_chats": refused.words if refused is not None else "",
            "autoencoder": [] if context.given is None else list(context.given.about),
            "warnings": [] if context.given is None else list(context.given.warnings),
        }

    def share(self, context: Context, shards: Sequence[Shard], remote: RemoteShards) -> int:
        """Embed some of the planned shards, as one of several processes; return how many weren't done before.

        Those that are done at the URL of the run aren't done again, and those made here go there.

        Raises:
            InputError, StoreError: as ``embed_shards``.
        """
        return embed_shards(
            context.sae,
            context.corpus_tap if self.rows == "corpus" else context.tap,
            self._rows(context),
            context.folder / CODES[self.rows],
            self._how(context),
            shards,
            remote,
            reporter=context.reporter,
        )

    def _rows(self, context: Context) -> Rows:
        """The rows, with what is known of them."""
        known = self.rows == "corpus" and context.job.sae_path is None
        return Rows(
            context.rows(self.rows),
            f"embedding {self.rows}",
            shards=context.plan(self.rows),
            label_column=context.job.label_column,
            activations=context.folder / ACTIVATIONS if known else None,
        )

    def _how(self, context: Context) -> Embedding:
        """How they become codes."""
        job, limit = context.job, context.ledger.facts("sinks").get("max_norm")
        return Embedding(job.top_k_activations, job.recipe().pooling, self._dtype(context), limit)

    def _dtype(self, context: Context) -> str:
        """What activations are rounded to, at first: as the SAE's were, and the targets' as the corpus'."""
        before = "activations" if self.rows == "corpus" else "embed-corpus"
        return str(context.ledger.facts(before).get("activation_dtype", context.job.activation_dtype))


def _some(names: Sequence[str], most: int = 100) -> list[str]:
    """Return names for a manifest, which a folder of thousands shall not fill."""
    more = len(names) - most
    return [*names[:most], f"and {more:,} more"] if more > 0 else list(names)


@dataclass(frozen=True)
class Embedding:
    """How documents become codes: M, the pooling of tokens, and what activations are rounded to before."""

    top_k: int
    pooling: str
    dtype: str
    max_norm: float | None = None
    """Norm above which a token is an attention sink, which is left out."""


@dataclass(frozen=True)
class Rows:
    """What is embedded, with what is known of it.

    Attributes:
        corpus: the rows.
        task: what embedding them is called while it is shown.
        shards: their plan, if there is one already.
        label_column: column of labels to keep beside the codes.
        activations: a store of activations of these rows, on which the model then isn't run again.
    """

    corpus: Corpus
    task: str = "embedding"
    shards: Sequence[Shard] | None = None
    label_column: str | None = None
    activations: Path | None = None


@dataclass
class EmbedWork:
    """Embedding the shards of a run, in whatever process that is opened.

    Attributes:
        job: of the run.
        rows: "corpus" or "targets".
        order: what is made of them.
        activations: stored activations of some of these rows, or None.
        here: what embeds in this process, where all is loaded already; it isn't sent to others.
        careful: what it opens knows how to do shards that end workers.
    """

    job: Job
    rows: str
    order: Order
    activations: Path | None
    here: Embedder | None
    careful = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "here": None}

    def open(self) -> Pulse:
        """Return what embeds a shard and says how far it is.

        Raises:
            InputError: as ``load``.
        """
        return Pulse(self.load() if self.here is None else self.here)

    @staticmethod
    def tokens(result: tuple[int, ShardEntry]) -> int:
        """Return the tokens of a shard that is done."""
        return result[1].tokens

    def load(self) -> Embedder:
        """Load the run's model and autoencoder.

        Raises:
            InputError: they aren't those that the work was begun with.
        """
        from finescope.embeddings.embedder import Embedder, sae_fingerprint
        from finescope.workflow.context import open_model
        from finescope.workflow.rows import open_job_corpus, open_job_targets

        wanted, folder = self.order.files.fingerprint, self.order.files.directory
        if sha256_json(begun_with(folder)) != sha256_json(dict(wanted)):
            raise InputError(
                f"worker on {platform.node()}: {folder} isn't the folder of this run there; put --out "
                "where all machines see it by the same name"
            )
        tap, sae = open_model(self.job)
        tap = tap.rounding_to(wanted["tap"]["activation_dtype"])
        tap = tap.setting_aside(self.job.max_bad_rows if self.rows == "corpus" else 0)
        for name, found in (("tap", tap.fingerprint()), ("sae", sae_fingerprint(sae))):
            if sha256_json(wanted[name]) != sha256_json(found):
                changed = differences(wanted[name], found, name)
                raise InputError(
                    f"worker on {platform.node()}: {changed[0]}; every machine must read the same model and "
                    "autoencoder"
                )
        stored = stored_beside(self.activations, tap)
        corpus = open_job_corpus(self.job) if self.rows == "corpus" else open_job_targets(self.job)
        return Embedder(self.order, sae, tap, corpus, stored)


def stored_beside(folder: Path | None, tap: ActivationTap) -> ActivationStore | None:
    """Return the stored activations in a folder, if there are any, and they are rounded as the tap rounds."""
    from finescope.activations import ActivationStore
    from finescope.activations.batches import DTYPES

    if folder is None or not folder.exists():
        return None
    store = ActivationStore(folder)
    return store if store.dtype == DTYPES[str(tap.activation_dtype)] else None


@dataclass
class Here:
    """Work of this process only."""

    do: Embedder

    def open(self) -> Embedder:
        """Return what is loaded already."""
        return self.do


def embed(
    sae: Autoencoder,
    tap: ActivationTap,
    rows: Rows,
    folder: Path,
    how: Embedding,
    *,
    reporter: Reporter,
    engine: Engine,
    work: Callable[[Embedder], Work[tuple[int, ShardEntry]]] = Here,
    overwrite: bool = False,
) -> CodeStore:
    """Embed all rows into a store of document codes; finished shards are kept.

    Args:
        sae: reads the tap's activations.
        tap: model and layer.
        rows: what is embedded.
        folder: the store of codes.
        how: pooling and rounding; bfloat16 takes the place of float16 where that can't hold a value.
        reporter: for progress.
        engine: has the shards worked on.
        work: what the engine is given; by default work that only this process can do.
        overwrite: begin anew.
    """
    from finescope.embeddings.rows import embed_rows
    from finescope.workflow.precision import rounded_work

    with reporter.task(rows.task, rows.corpus.len_hint, "rows") as task:
        # What is to be done is said by whoever holds the folder, and not by who is refused.
        def over(embedder: Embedder, shards: Sequence[Shard]) -> Iterator[tuple[int, ShardEntry]]:
            if rows.shards is not None:
                announce(folder, rows.shards)
            results = engine.over(work(embedder), shards)
            if isinstance(engine, Local) or embedder.progress is None:
                return results
            return followed(results, folder, embedder.progress)

        def rounded(tap: ActivationTap, mode: str) -> CodeStore:
            most = 0

            def progress(count: int, tokens: int) -> None:
                nonlocal most
                if count >= most:  # a shard that is lost in work is begun again; the bar waits for it
                    most = count
                    task.update(count, f"{tokens:,} tokens")

            return embed_rows(
                sae,
                tap,
                rows.corpus,
                folder,
                top_k=how.top_k,
                pooling=how.pooling,
                label_column=rows.label_column,
                shards=rows.shards,
                stored=stored_beside(rows.activations, tap),
                max_norm=how.max_norm,
                over=over,
                mode=mode,
                progress=progress,
                remark=reporter.say,
            )

        store = rounded_work(rounded, tap, how.dtype, folder, reporter=reporter, overwrite=overwrite)
    fall_silent(folder)
    if words := words_of(store):
        reporter.say(f"{rows.task}: {words}")
    if bad := said_of(store.bad_rows):
        reporter.say(f"{rows.task}: {bad}")
    return store


def write_bad_rows(path: Path, rows: Sequence[BadRow]) -> None:
    """Write a line of JSON for each row that was set aside; no file where there is none."""
    if rows:
        write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)


def embed_shards(
    sae: Autoencoder,
    tap: ActivationTap,
    rows: Rows,
    folder: Path,
    how: Embedding,
    shards: Sequence[Shard],
    remote: RemoteShards,
    *,
    reporter: Reporter,
) -> int:
    """Embed some of the planned shards of a corpus into a store that other processes work on too.

    Args:
        sae, tap, rows, folder, how, reporter: as ``embed``.
        shards: those of this process; finished ones are kept.
        remote: finished ones elsewhere.

    Returns:
        How many of them were made now.

    Raises:
        InputError: rows that have changed or are broken, NaN activations (the document is named), or more of
            these than may be set aside, by all processes together.
        StoreError: another run holds the folder alone, or it holds other work; or the disk is full.
    """
    from finescope.activations.batches import TooLargeError
    from finescope.corpus.plan import missing
    from finescope.embeddings.embedder import Embedder, order_for
    from finescope.embeddings.store import bad_rows_of
    from finescope.storage.shards import SharedShards, finished_shards
    from finescope.workflow.engines.crew import patient
    from finescope.workflow.precision import WIDE, rounded_work

    def rounded(tap: ActivationTap, mode: str) -> int:
        order = order_for(
            sae,
            tap,
            rows.corpus,
            folder,
            top_k=how.top_k,
            pooling=how.pooling,
            label_column=rows.label_column,
            max_norm=how.max_norm,
        )
        embedder = Embedder(order, sae, tap, rows.corpus, stored_beside(rows.activations, tap))
        with SharedShards(order.files, [shard.number for shard in shards], mode=mode) as shared:
            there = remote.finished(order.files, {shard.number for shard in shards})
            for number in shared.finished.keys() - there.keys():
                remote.send(shared.finished[number])
            left = missing(shards, {**there, **shared.finished})
            before = sum(shard.rows for shard in shards) - sum(shard.rows for shard in left)
            where = ""
            embedder.progress = lambda done, tokens: task.update(before + done, where)
            do = patient(Pulse(embedder), reporter.say)
            for shard in left:
                where = f"shard {shard.number} on {platform.node()}"
                said = (begun_with(folder) or {}).get("tap", {}).get("activation_dtype")
                if said == WIDE != tap.activation_dtype:
                    raise TooLargeError("activations of other shards are")  # another process has found them
                shared.check()
                _, entry = do(shard)
                remote.send(entry)
                if bad_rows_of([entry]):  # what others have set aside counts too
                    check_bad(bad_rows_of(finished_shards(order.files).shards.values()), tap.max_bad_rows)
                before += shard.rows
        return len(left)

    announce(folder, rows.shards or shards)
    remote.begin()
    with reporter.task(rows.task, sum(shard.rows for shard in shards), "rows") as task:
        return rounded_work(rounded, tap, how.dtype, folder, reporter=reporter)
