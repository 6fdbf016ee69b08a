"""The rows of a job: its corpus and its targets, opened as it says."""

from __future__ import annotations

from typing import Any

from finescope.corpus import Corpus, open_corpus
from finescope.workflow.job import Job
from finescope.workflow.opening import text_template


def open_job_corpus(job: Job) -> Corpus:
    """Open the corpus of a job."""
    source: Any = job.corpus[0] if len(job.corpus) == 1 else list(job.corpus)
    return open_rows(job, source, limit=job.limit)


def open_job_targets(job: Job) -> Corpus:
    """Open the targets of a job. A target without text is refused: there are few, and each was meant.

    The targets may lack the corpus' columns of text and id: the usual ones are read then.
    """
    return open_rows(job, job.targets, empty="error", lenient=True)


def open_rows(job: Job, source: Any, **options: Any) -> Corpus:
    """Open rows as a job reads them; the options are those of ``open_corpus``."""
    given = {
        "text_column": job.text_column,
        "text_template": text_template(job),
        "id_column": job.id_column,
    }
    return open_corpus(source, **{**given, **options})
