"""The rows of a job: its corpus and its targets, opened as it says."""

from __future__ import annotations

import os
from typing import Any

from finescope.corpus import Corpus, open_corpus
from finescope.errors import InputError
from finescope.workflow.job import Job
from finescope.workflow.opening import text_template


def open_job_corpus(job: Job) -> Corpus:
    """Open the corpus of a job.

    Raises:
        InputError: a file is named twice, by itself, in a folder or by a pattern; or as ``open_corpus``.
    """
    source: Any = job.corpus[0] if len(job.corpus) == 1 else list(job.corpus)
    corpus = open_rows(job, source, limit=job.limit)
    seen: set[tuple[Any, str]] = set()
    for file in corpus.files:
        folder, name = os.path.split(file.path)  # links to one file under several names are several files
        path = file.path if file.system is not None else os.path.join(os.path.realpath(folder), name)
        if (file.system, path) in seen:
            raise InputError(f"{file.path} is named twice, and its rows would count twice; name it once")
        seen.add((file.system, path))
    return corpus


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
