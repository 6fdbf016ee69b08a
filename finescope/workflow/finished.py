"""A finished run by its folder: to select from it again, to measure it, to ask it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.storage.files import read_json
from finescope.storage.remote import file_system, is_url, saying
from finescope.storage.remote_folder import Remote
from finescope.workflow.job import Job
from finescope.workflow.layout import MANIFEST, SET_FOLDERS, SETS
from finescope.workflow.run import Run
from finescope.workflow.setrun import SetRun, SetsRun, of_job

_OF_PRESETS = ("weights", "scorer", "top_m")
"""What a preset says, and may be said otherwise of a finished run."""


def open_run(
    out: str | Path, reporter: Reporter | None = None, changes: Mapping[str, Any] | None = None
) -> Run:
    """Open the finished run in a folder or at a URL, with some of the job's values changed.

    A preset among them is meant as it is: a weighting, a scorer or an m that were put over the run's preset
    are let go of, unless they are given anew. The pooling stays, which the codes were made with. Likewise
    ``exclusive`` lets go of shares.

    Raises:
        InputError: there is no finished run.
        StoreError: there is none at the URL, or it can't be read.
    """
    above, set_name = _of_sets(str(out))
    if set_name:
        run = open_run(above, reporter)
        assert isinstance(run, SetsRun)
        return SetRun(run.context, set_name, changes or {})
    changes = dict(changes or {})
    configuration = _configuration(str(out))
    if "preset" in changes:
        configuration = {name: value for name, value in configuration.items() if name not in _OF_PRESETS}
    if "exclusive" in changes and "shares" not in changes:
        configuration["shares"] = []
    job = Job.from_dict({**configuration, **changes})
    return of_job(job)(job, reporter)


def finished_job(out: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> tuple[Job, str]:
    """Return the job of a finished run, and the name of the target set of it that was given, if one was.

    From a URL the run is brought to this machine. Corpus and targets aren't looked for.

    Args:
        out: the run, or one of its target sets.
        changes: values of the job that are other than the run's.

    Raises:
        InputError: there is no finished run, or one of several target sets of which none is named.
        StoreError: there is none at the URL, or it can't be read.
    """
    above, set_name = _of_sets(str(out))
    job = Job.from_dict({**_configuration(above or str(out)), **(changes or {})})
    if not set_name and (job.folder / SETS).is_file():
        names = read_json(job.folder / SETS)["sets"]
        raise InputError(
            f"{out} holds the target sets {', '.join(names)}: name the folder of one, such as "
            f"{out}/{SET_FOLDERS}/{names[0]}"
        )
    return job, set_name


def _configuration(out: str) -> dict[str, Any]:
    """Return the configuration in a run's manifest."""
    remote = Remote(out)
    remote.receive()
    folder = remote.folder
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished run ({MANIFEST} is missing); give the --out of `finescope curate`"
        )
    configuration = read_json(path).get("configuration")
    if not isinstance(configuration, dict):
        raise InputError(
            f"{folder} is the folder of a single stage, not of a run; give the --out of `finescope curate`"
        )
    return {**configuration, "out": out}


def _of_sets(out: str) -> tuple[str, str]:
    """Return where the run with several target sets is that a folder or URL is a set of, and the set's name.

    Both are empty if it is of none.
    """
    if is_url(out):
        above, _, name = out.rstrip("/").rpartition(f"/{SET_FOLDERS}/")
    else:
        place = Path(out)
        if place.parent.name != SET_FOLDERS:  # a relative path may leave out what stands above
            place = Path(os.path.abspath(place))
        above, name = str(place.parent.parent), place.name if place.parent.name == SET_FOLDERS else ""
    return (above, name) if name and _is_file(f"{above}/{SETS}") else ("", "")


def _is_file(place: str) -> bool:
    system, path = file_system(place) if is_url(place) else (None, place)
    if system is None:
        return Path(path).is_file()
    with saying("read", place):
        return bool(system.isfile(path))
