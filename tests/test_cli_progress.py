"""Progress is a bar on a terminal only; in a log it is a few plain lines, with rate and time left."""

from __future__ import annotations

import io

import pytest

from finescope import progress
from finescope.progress import Reporter, counted, duration


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_have_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Reporter(stream).task("embedding", 100, "rows") as task:
        for _ in range(10):
            clock[0] += 4.0
            task.advance(5, "5 tokens")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "embedding: 20/100 rows, 1.25 rows/s, 1 min 04 s left, 5 tokens"
    assert len(lines) == 3  # one line in fifteen seconds, and the summary
    assert lines[-1] == "embedding: 50 rows in 40.0 s (1.25 rows/s), 5 tokens"
    assert "\x1b" not in stream.getvalue()


def test_slow_first_rows_promise_no_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Reporter(stream).task("activations", 5000, "rows") as task:
        for done, seconds in ((2, 30.0), (120, 16.0), (1100, 49.0)):  # loading, then the longest texts
            clock[0] += seconds
            task.update(done)
    assert stream.getvalue().splitlines()[:3] == [
        "activations: 2/5,000 rows",
        "activations: 120/5,000 rows",
        "activations: 1,100/5,000 rows, 11.6 rows/s, 3 min 51 s left",
    ]
    large = Reporter(io.StringIO()).task("activations", 800_000, "rows")
    with large as task:
        task.update(4000)
        clock[0] += 400
        task.update(12_000)
        assert task.left == "10 h 56 min left"


def test_work_done_before_tells_nothing_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Reporter(io.StringIO()).task("training", 400, "steps", done=300) as task:
        for done in (301, 302):
            clock[0] += 20
            task.update(done)
        assert (task.speed, task.left) == ("", "")
        clock[0] += 40
        task.update(322)
        assert (task.speed, task.left) == ("0.275 steps/s", "3 min 43 s left")


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    reporter = Reporter(stream)
    with reporter.task("embedding", 10) as task:
        for _ in task.wrap(range(10)):
            reporter.say("half way [not markup]")
    assert "\x1b[" in stream.getvalue()
    assert "half way [not markup]" in stream.getvalue()
    assert "embedding: 10 rows in" in stream.getvalue()


def test_no_summary_after_a_failure_and_nothing_when_quiet() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Reporter(stream).task("x", 2):
        raise RuntimeError
    with Reporter(stream, quiet=True).task("x", 2) as task:
        task.update(2)
    assert stream.getvalue() == ""


def test_counted() -> None:
    assert [counted(number, "row") for number in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]


def test_duration() -> None:
    assert [duration(seconds) for seconds in (4.24, 59.99, 60, 185, 3599.8, 7620)] == [
        "4.2 s",
        "60.0 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 00 min",
        "2 h 07 min",
    ]
