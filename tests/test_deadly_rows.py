"""A row that no process outlives is found and set aside, or named; all others keep their codes.

Fails if: a shard with such a row ends the run where rows may be set aside; another is set aside, such as one
that only ends processes beside others, or any where they end everywhere; what is left of the search stays in
the store; without the option the row isn't named.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finescope.embeddings import CodeStore
from finescope.embeddings.alone import Alone
from finescope.errors import FineScopeError, InputError
from finescope.workflow.engines import crew
from finescope.workflow.engines.processes import Processes
from finescope.workflow.stages import embed
from support import deadly
from support.cli_job import save_job, write_jsonl
from support.run_files import contents, curated

pytestmark = pytest.mark.usefixtures("shards_are_small")


def job_with(folder: Path, words: dict[int, str]) -> Path:
    """A job with some words in some rows; ``plain`` is its run in this process, which outlives them."""
    job = save_job(folder / "job", animals=20, sky=20)
    rows = [json.loads(line) for line in (job / "corpus.jsonl").read_text().splitlines()]
    for number, word in words.items():
        rows[number]["text"] += f" {word}"
    write_jsonl(job / "corpus.jsonl", rows)
    curated(job, folder / "plain")
    return job


def run(job: Path, engine: object, allowed: int, name: str = "run") -> CodeStore:
    """A run with the SAE of ``plain``, so that its workers read every row."""
    settings = {"sae_path": str(job.parent / "plain/sae"), "max_bad_rows": allowed}
    curated(job, job.parent / name, engine=engine, **settings)  # type: ignore[arg-type]
    return CodeStore(job.parent / name / "codes/corpus")


def test_they_are_set_aside_and_nothing_else_changes(tmp_path: Path) -> None:
    job = job_with(tmp_path, {0: deadly.DEADLY, 1: deadly.DEADLY, 12: deadly.MOODY, 33: deadly.DEADLY})
    mortals = deadly.Mortals()
    store, plain = run(job, mortals, 3), CodeStore(tmp_path / "plain/codes/corpus")
    assert [row.row for row in store.bad_rows] == [0, 1, 33]
    assert (
        str(store.bad_rows[0]) == "row 0 (corpus.jsonl:1): by itself, it has ended 2 processes that read it"
    )
    assert mortals.started == 2 * crew.TRIES + 3 * 2 + 2  # one of them ended at 1 on its way to 0
    assert not list(store.directory.glob("piece-*"))
    found, wanted = store.codes(), plain.codes()
    for number in range(len(wanted)):
        low, high = found.indptr[number : number + 2].tolist()
        first, last = wanted.indptr[number : number + 2].tolist()
        if number in (0, 1, 33):
            assert low == high
            continue
        assert torch.equal(found.indices[low:high], wanted.indices[first:last])
        assert torch.equal(found.values[low:high], wanted.values[first:last])


def test_without_the_option_the_row_is_named(tmp_path: Path) -> None:
    job = job_with(tmp_path, {21: deadly.DEADLY})
    with pytest.raises(InputError, match=r"row 21 \(corpus.jsonl:22\): by itself, it has ended 2 processes"):
        run(job, deadly.Mortals(), 0)
    assert [row.row for row in run(job, deadly.Mortals(), 1).bad_rows] == [21]


def test_processes_that_end_everywhere_are_no_rows_fault(tmp_path: Path) -> None:
    job = job_with(tmp_path, dict.fromkeys(range(16, 32), deadly.DEADLY))
    mortals = deadly.Mortals()
    with pytest.raises(FineScopeError, match=r"at no one row.*killed by signal 9.*fewer --workers"):
        run(job, mortals, 99)
    assert mortals.started < 10


@pytest.mark.slow
def test_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_with(tmp_path, {5: deadly.DEADLY, 12: deadly.MOODY})
    run(job, deadly.Mortals(), 1, "mortals")
    monkeypatch.setattr(embed, "EmbedWork", deadly.DeadlyWork)
    store = run(job, Processes(2), 1)
    assert [row.row for row in store.bad_rows] == [5]
    assert contents(store.directory) == contents(tmp_path / "mortals/codes/corpus")


class Deaths:
    """Workers one after the other on a shard of so many rows, of which some are left to be done."""

    def __init__(self, path: Path, rows: int, left: list[int] | None = None) -> None:
        self.path, self.rows, self.left = path, rows, list(range(rows)) if left is None else left
        self.ended = 0

    def at(self, place: int | None) -> tuple[list[int], list[int]]:
        """What a worker set aside and read that ends at a place; None: after all rows, if at all."""
        alone, seen = Alone(self.path, "work", self.ended, "fell"), []
        self.ended += 1
        for at in alone.of([row for row in self.left if row not in alone.aside], self.rows):
            seen.append(at)
            if at == place:
                break
        return alone.aside, seen


def test_what_is_noted_between_workers(tmp_path: Path) -> None:
    dies = Deaths(tmp_path / "note", 6)
    assert dies.at(3) == ([], [0, 1, 2, 3])
    assert dies.at(3) == ([], [0, 3])  # after another: who ends there ends anywhere
    assert dies.at(4) == ([3], [0, 1, 2, 4])
    assert dies.at(1) == ([3], [0, 4, 1])  # the other has passed this time
    assert dies.at(1) == ([3], [0, 1])
    assert dies.at(None) == ([3, 1], [0, 2, 4, 5])


def test_two_such_rows_at_the_head_of_what_is_left(tmp_path: Path) -> None:
    dies = Deaths(tmp_path / "note", 8, [5, 6, 7])
    assert dies.at(5) == ([], [5])
    assert dies.at(6) == ([], [6])
    assert dies.at(6) == ([], [7, 6])
    assert dies.at(5) == ([6], [5])
    assert dies.at(5) == ([6], [7, 5])
    assert dies.at(None) == ([6, 5], [7])


def test_what_ends_elsewhere_is_no_rows_fault(tmp_path: Path) -> None:
    for rows, left in ((16, None), (16, [14, 15]), (2, None), (1, None)):
        dies = Deaths(tmp_path / f"{rows}-{left}", rows, left)
        for _ in range(3):
            assert dies.at(None)[0] == []
        with pytest.raises(FineScopeError, match="at no one row of it; the last fell"):
            dies.at(None)
    alone = Deaths(tmp_path / "single", 1)
    assert alone.at(0) == ([], [0])  # there is no other to tell by
    assert alone.at(0) == ([], [0])
    before = Deaths(tmp_path / "before", 9)
    before.ended = 3  # none of them came so far as to note anything
    with pytest.raises(FineScopeError, match="at no one row"):
        before.at(None)


def test_who_lives_finishes_the_shard_whatever_was_before(tmp_path: Path) -> None:
    single = Deaths(tmp_path / "single", 1)
    for place in (0, 0, 0, 0, None):
        assert single.at(place) == ([], [0])
    several = Deaths(tmp_path / "several", 4)
    for place in (2, 0, 1):
        several.at(place)
    assert several.at(None) == ([], [3, 1, 0, 2])


def test_an_earlier_runs_note_is_none(tmp_path: Path) -> None:
    first = Deaths(tmp_path / "note", 6)
    first.at(3)
    first.at(3)
    assert Deaths(tmp_path / "note", 6).at(None) == ([], [0, 1, 2, 3, 4, 5])
    (tmp_path / "note").write_text("[]")
    assert Deaths(tmp_path / "note", 6).at(None) == ([], [0, 1, 2, 3, 4, 5])


def test_workers_that_never_begin_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MOST", 7)
    job = job_with(tmp_path, {})
    mortals = deadly.Mortals()
    mortals.give = lambda worker, task: setattr(worker, "answer", crew.Gone("fell"))  # type: ignore[method-assign]
    with pytest.raises(FineScopeError, match="rows 0 to 15 ended 7 workers"):
        run(job, mortals, 9)
