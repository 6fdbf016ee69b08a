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

from finescope.corpus.plan import Planner
from finescope.embeddings import CodeStore
from finescope.embeddings.alone import Alone
from finescope.errors import FineScopeError, InputError
from finescope.workflow import context
from finescope.workflow.engines import crew
from finescope.workflow.engines.processes import Processes
from finescope.workflow.stages import embed
from support import deadly
from support.cli_job import save_job, write_jsonl
from support.run_files import contents, curated


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "Planner", lambda: Planner(16))


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
    job = job_with(tmp_path, {0: deadly.DEADLY, 12: deadly.MOODY, 14: deadly.DEADLY, 33: deadly.DEADLY})
    mortals = deadly.Mortals()
    store, plain = run(job, mortals, 3), CodeStore(tmp_path / "plain/codes/corpus")
    assert [row.row for row in store.bad_rows] == [0, 14, 33]
    assert str(store.bad_rows[0]) == "row 0 (corpus.jsonl:1): alone, it has ended 2 processes that read it"
    assert mortals.started == 2 * crew.TRIES + 3 * 2 + 1
    assert not list(store.directory.glob("piece-*"))
    found, wanted = store.codes(), plain.codes()
    for number in range(len(wanted)):
        low, high = found.indptr[number : number + 2].tolist()
        first, last = wanted.indptr[number : number + 2].tolist()
        if number in (0, 14, 33):
            assert low == high
            continue
        assert torch.equal(found.indices[low:high], wanted.indices[first:last])
        assert torch.equal(found.values[low:high], wanted.values[first:last])


def test_without_the_option_the_row_is_named(tmp_path: Path) -> None:
    job = job_with(tmp_path, {21: deadly.DEADLY})
    with pytest.raises(InputError, match=r"row 21 \(corpus.jsonl:22\): alone, it has ended 2 processes"):
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


def test_what_is_noted_between_processes(tmp_path: Path) -> None:
    note, rows = tmp_path / "note.json", list(range(6))

    def dies_at(place: int | None, *, first: bool = False) -> tuple[list[int], list[int]]:
        alone, seen = Alone(note, "work", "fell", first=first), []
        for at in alone.of([row for row in rows if row not in alone.aside]):
            seen.append(at)
            if at == place:
                break
        return alone.aside, seen

    assert dies_at(3, first=True) == ([], [0, 1, 2, 3])
    assert dies_at(3) == ([], [0, 3])  # after another: who ends there ends anywhere
    assert dies_at(4) == ([3], [0, 1, 2, 4])
    assert dies_at(1) == ([3], [0, 4, 1])  # the other has passed this time
    assert dies_at(1) == ([3], [0, 1])
    assert dies_at(None) == ([3, 1], [0, 2, 4, 5])
    assert Alone(note, "other work", "fell", first=True).aside == []
    dies_at(0, first=True)
    dies_at(1)
    dies_at(0)
    dies_at(1)
    with pytest.raises(FineScopeError, match="at no one row of it; the last fell"):
        dies_at(1)
