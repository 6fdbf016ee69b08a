"""A whole proof with a tiny model: rows dealt out, arms, resuming, numbers and page.

Fails if: a row is in two places; arms of one draw begin elsewhere or take other numbers of tokens; a random
row isn't as long as the one it is matched to; a stopped proof gives other numbers than one in one go, or
trains again what is done; a planted row is chosen from the clean pool; a test pairs what doesn't belong
together.
"""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.proof.grid import Grid
from finescope.proof.page import NUMBERS, PAGE, write_page, write_proof
from finescope.proof.plan import ProofPlan, parse_arm
from finescope.proof.split import generator, read_corpus, split
from finescope.proof.summary import in_words, multipliers, summarise
from finescope.proof.training import filled
from support.cli_job import save_tiny_model
from support.tiny_models import WORDS, make_model, make_tokenizer

TOPICS = ["red", "green"]
QUICK = {"sae": {"num_latents": 32, "k": 4}, "training": {"num_epochs": 1}}


def corpus(path: Path) -> Path:
    """Rows of five labels, each with favourite words of its own."""
    draw = random.Random(0)
    lines = []
    for at, label in enumerate([*TOPICS, "blue", "grey", "white"]):
        own = WORDS[at * 15 : at * 15 + 15]
        for number in range(40):
            words = draw.choices(own, k=draw.randint(3, 12)) + draw.choices(WORDS, k=draw.randint(1, 5))
            draw.shuffle(words)
            lines.append({"id": f"{label}-{number}", "text": " ".join(words), "label": label})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plan(folder: Path, **changes: Any) -> ProofPlan:
    values = {
        "topics": TOPICS,
        "arms": ["none", "random", "random-length", "domain", "mixture"],
        "primary": "domain",
        "rivals": ["random"],
        "corpus": str(folder / "corpus.jsonl"),
        "min_rows": 10,
        "targets": 3,
        "held_out": 8,
        "off_topic": 9,
        "budgets": [40, 120],
        "curve": [40, 120, 360],
        "warm_up": 60,
        "batch_tokens": 32,
        "max_length": 14,
        "learning_rate": 1e-3,
        "blocks": 2,
        "dtype": "float32",
    }
    return ProofPlan.from_dict(values | changes)


def grid(folder: Path, out: str = "out", **changes: Any) -> Grid:
    return Grid(
        plan(folder, **changes),
        folder / out,
        Reporter(quiet=True),
        model=copy.deepcopy(make_model("llama-lm")),
        tokenizer=make_tokenizer(bos=False),
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of this size are done before a second thread has woken up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("proof")
    corpus(folder / "corpus.jsonl")
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> tuple[Grid, list[dict[str, Any]]]:
    it = grid(place, noise_arms=["random"])
    return it, it.run()


def test_no_row_is_in_two_places(place: Path) -> None:
    rows = read_corpus(plan(place))
    dealt = split(plan(place), rows)
    held_out = [row.id for one in dealt.held_out.values() for row in one]
    others = [row.id for row in [*dealt.off_topic, *dealt.all_targets()]]
    pool = [row.id for row, out in zip(dealt.pool, dealt.planted, strict=True) if not out]
    ids = [*held_out, *others, *pool]
    assert len(ids) == len(set(ids)) == len(rows)
    assert len(dealt.off_topic) == 9
    assert not {row.label for row in dealt.off_topic} & set(TOPICS)
    assert dealt.identity == split(plan(place), rows).identity != split(plan(place, seed=2), rows).identity


def test_planted_rows_are_copies_boilerplate_and_foreign(place: Path) -> None:
    dealt = split(plan(place, noise=0.2), read_corpus(plan(place)))
    texts = [row.text for row, out in zip(dealt.pool, dealt.planted, strict=True) if not out]
    labels = [row.label for row in dealt.pool if row.label.startswith("planted")]
    assert len(labels) == round(0.2 * len(texts))
    assert {label: labels.count(label) for label in set(labels)}.keys() == {
        "planted:copy",
        "planted:boilerplate",
        "planted:foreign",
    }
    copies = [row.text for row in dealt.pool if row.label == "planted:copy"]
    assert set(copies) <= set(texts)
    assert max(copies.count(text) for text in copies) >= 2


def test_a_small_topic_is_refused_with_what_it_needs(place: Path) -> None:
    with pytest.raises(InputError, match="'red' has 40 rows and needs 46"):
        split(plan(place, held_out=30), read_corpus(plan(place)))


def test_a_corpus_that_leaves_nothing_beside_the_plan_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match=r"no label beside the 2 topics has 4,?000 rows \(min_rows\)"):
        split(plan(place, min_rows=4000), read_corpus(plan(place)))
    with pytest.raises(InputError, match=r"the warm-up of 90,000 tokens takes all \d+ rows of the pool"):
        grid(place, out="warm", warm_up=90_000).run()


def test_every_arm_takes_the_same_tokens_and_starts_at_the_same_place(
    done: tuple[Grid, list[dict[str, Any]]],
) -> None:
    it, runs = done
    trained = [run for run in runs if run["arm"] not in ("none", "curve")]
    assert len(trained) == 2 * 2 * (3 + 1)
    for run in trained:
        for point, budget in zip(run["points"], it.plan.budgets, strict=True):
            # Of a row that is cut after its first token nothing can be learned.
            assert budget - len(it.plan.budgets) <= point["tokens"] <= budget
        if not run["noisy"]:
            assert run["planted"] == 0
    for run in runs:
        if run["arm"] == "none":
            again = grid(it.folder.parent)
            again._begin(run["draw"])
            assert again._loss(again.held_out[run["topic"]]) == run["points"][0]["held_out"]
            assert run["untuned"]["held_out"] != run["points"][0]["held_out"]


def test_no_arm_takes_rows_of_the_warm_up_or_planted_ones(place: Path) -> None:
    it = grid(place)
    for draw in range(2):
        warm = set(it._warm_rows(draw).tolist())
        assert sum(len(it.pool[row]) for row in warm) >= it.plan.warm_up
        for arm in ("random", "domain", "random-length"):
            order = it.arms.order(arm, "red", draw, noisy=False, exclude=it._excluded(draw))
            assert not warm & set(order.tolist())
            assert len(set(order.tolist())) == len(order)
            assert not it.split.planted[order].any()
    assert it._warm_rows(0).tolist() != it._warm_rows(1).tolist()
    noisy = it.arms.order("random", "red", 0, noisy=True, exclude=it._excluded(0))
    assert it.split.planted[noisy].any()


def test_domain_is_the_label_and_matched_rows_are_as_long(place: Path) -> None:
    it = grid(place)
    exclude = it._excluded(0)
    own = it.arms.order("domain", "red", 0, noisy=False, exclude=exclude)
    assert {it.split.pool[row].label for row in own.tolist()} == {"red"}
    like = it.arms.order("random-length", "red", 0, noisy=False, exclude=exclude)
    lengths = [[len(it.pool[row]) for row in rows.tolist()] for rows in (own, like)]
    assert np.abs(np.subtract(*lengths)).mean() < 0.5
    assert {it.split.pool[row].label for row in like.tolist()} > {"red"}


def test_a_stopped_proof_goes_on_and_says_the_same(
    place: Path, done: tuple[Grid, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, runs = done
    it = grid(place, "resumed", noise_arms=["random"])
    real, calls = Grid._one, []

    def stop(self: Grid, cell: Any, *rest: Any) -> Any:
        calls.append(cell)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, cell, *rest)

    monkeypatch.setattr(Grid, "_one", stop)
    with pytest.raises(KeyboardInterrupt):
        it.run()
    again = grid(place, "resumed", noise_arms=["random"])
    assert not again.results(), "of a topic and draw all or none"
    found = again.run()
    assert len(calls) == len(runs) + 1, "four were done before"
    timeless = [{**run, "seconds": 0} for run in found]
    assert timeless == [{**run, "seconds": 0} for run in runs]
    calls.clear()
    assert [path.name for path in map(again.path, again.cells())] == [
        path.name for path in map(whole.path, whole.cells())
    ]
    assert again.run() == found
    assert not calls
    other = grid(place, "resumed", learning_rate=2e-3)
    assert not set(map(other.path, other.cells())) & set(map(again.path, again.cells()))


def test_numbers_and_page(done: tuple[Grid, list[dict[str, Any]]]) -> None:
    it, runs = done
    numbers = write_proof(it, runs)
    summary = numbers["summary"]
    assert json.loads((it.folder / NUMBERS).read_text())["summary"]["tests"] == summary["tests"]
    page = (it.folder / PAGE).read_text()
    for words in ("Is it more than chance?", "random-length", "(noisy pool)", "<svg"):
        assert words in page
    assert (it.folder / "proof-arms.png").stat().st_size > 1000
    write_page(it.folder, json.loads((it.folder / NUMBERS).read_text()))
    assert (it.folder / PAGE).read_text() == page

    def loss(arm: str, topic: str, at: int) -> float:
        values = [
            run["points"][at]["held_out"]
            for run in runs
            if (run["arm"], run["topic"], run["noisy"]) == (arm, topic, False)
        ]
        assert len(values) == 2
        return sum(values) / 2

    (test,) = summary["tests"]
    for topic in TOPICS:
        wanted = np.mean([loss("random", topic, at) - loss("domain", topic, at) for at in (0, 1)])
        assert test["topics"][topic] == pytest.approx(wanted)
    assert test["difference"]["value"] == pytest.approx(np.mean(list(test["topics"].values())))
    assert test["sign_flip"] in (0.5, 1.0)
    line = next(line for line in summary["arms"] if line["arm"] == "domain")
    assert line["budgets"]["120"]["held_out"] == pytest.approx(
        np.mean([loss("domain", topic, 1) for topic in TOPICS])
    )
    assert line["on_topic"] == 1
    assert line["multiplier"]["40"]["value"] > 0


def run_of(arm: str, topic: str, draw: int, *losses: float) -> dict[str, Any]:
    points = [{"tokens": 10 * 2**at, "held_out": loss, "off_topic": 5.0} for at, loss in enumerate(losses)]
    rest = {"on_topic": 0.5, "mean_tokens": 10.0, "planted": 0.0, "seconds": 1.0}
    return {"arm": arm, "topic": topic, "draw": draw, "noisy": False, "points": points, **rest}


def test_draws_of_a_topic_count_once() -> None:
    topics = [f"t{number}" for number in range(5)]
    known = ProofPlan(
        topics=topics, arms=["none", "random", "tfidf", "mixture"], primary="tfidf", rivals=["random"],
        budgets=[10, 20], curve=[10, 20, 40], seeds=2,
    )  # fmt: skip
    runs = []
    for at, topic in enumerate(topics):
        for draw in (0, 1):
            runs.append({**run_of("none", topic, draw, 4.5), "untuned": {"held_out": 5.0, "off_topic": 5.0}})
            runs.append(run_of("random", topic, draw, 4.0, 3.9))
            runs.append(run_of("tfidf", topic, draw, 3.9 - 0.01 * at + 0.05 * draw, 3.8))
    for draw in (0, 1):
        points = [
            {"tokens": tokens, "held_out": dict.fromkeys(topics, loss)}
            for tokens, loss in ((10, 4.0), (20, 3.9), (40, 3.8))
        ]
        points[-1]["off_topic"] = 5.0
        curve = {"arm": "curve", "topic": "", "draw": draw, "noisy": False, "points": points, "seconds": 1.0}
        runs.append(curve)
    found = summarise(known, runs)
    (test,) = found["tests"]
    assert test["sign_flip"] == 2 / 2**5
    assert test["better_on"] == 5
    assert test["topics"]["t2"] == pytest.approx((0.1 + 0.02 - 0.025 + 0.1) / 2)
    line = next(line for line in found["arms"] if line["arm"] == "tfidf")
    assert line["multiplier"]["20"] == {
        "value": 2, "low": 2, "high": 2, "began": 0, "ended": 0, "topics": 5,
    }  # fmt: skip
    assert found["mixture"] == {"tokens": 40, "held_out": pytest.approx(3.8), "off_topic": 5.0}
    assert math.isclose(found["warmed_up"]["held_out"], 4.5)


def test_a_draw_counts_that_ends_a_token_early() -> None:
    known = ProofPlan(
        topics=["t"], arms=["none", "random", "tfidf"], primary="tfidf", rivals=["random"], budgets=[10, 20],
    )  # fmt: skip
    runs = [
        {**run_of("none", "t", draw, 4.5), "untuned": {"held_out": 5.0, "off_topic": 5.0}} for draw in (0, 1)
    ]
    runs += [run_of("random", "t", draw, 4.0, 3.9) for draw in (0, 1)]
    runs += [run_of("tfidf", "t", 0, 3.0, 3.0), run_of("tfidf", "t", 1, 3.8, 3.6)]
    for point in runs[-1]["points"]:
        point["tokens"] -= 1
    found = summarise(known, runs)
    line = next(line for line in found["arms"] if line["arm"] == "tfidf")
    assert line["budgets"]["10"]["held_out"] == pytest.approx(3.4)
    assert line["budgets"]["20"]["held_out"] == pytest.approx(3.3)
    assert found["tests"][0]["topics"]["t"] == pytest.approx((0.6 + 0.6) / 2)


def test_a_curve_begins_with_the_loss_after_the_warm_up() -> None:
    topics = ["a", "b"]
    known = ProofPlan(
        topics=topics, arms=["none", "random", "tfidf", "mixture"], primary="tfidf", rivals=["random"],
        budgets=[10], curve=[10, 20], seeds=1, batch_tokens=2,
    )  # fmt: skip
    points = [{"tokens": at, "held_out": dict.fromkeys(topics, loss)} for at, loss in ((10, 4.0), (20, 3.9))]
    points[-1]["off_topic"] = 5.0
    curve = {"arm": "curve", "topic": "", "draw": 0, "noisy": False, "points": points, "seconds": 1.0}

    def multiplier(of_a: float, of_b: float, *, warmed_up: bool = True) -> dict[str, Any]:
        runs = [curve]
        for topic, loss in zip(topics, (of_a, of_b), strict=True):
            untuned = {"held_out": 5.0, "off_topic": 5.0}
            runs.append({**run_of("none", topic, 0, 4.4), "untuned": untuned})
            runs += [run_of("random", topic, 0, 4.0), run_of("tfidf", topic, 0, loss)]
        if warmed_up:
            return next(x for x in summarise(known, runs)["arms"] if x["arm"] == "tfidf")["multiplier"]["10"]
        return multipliers(known, runs, "tfidf", dict.fromkeys(topics, math.nan))["10"]

    half = multiplier(4.2, 4.2)  # half the way from 4.4, at no tokens, to 4.0, at ten
    assert (half["value"], half["began"], in_words(half)) == (pytest.approx(0.5), 0, "0.5 ×")
    # Nothing was gained on one topic, or worse: a step's tokens count, and that is said.
    for lost in (4.39, 4.4, 6.0):
        none = multiplier(4.2, lost)
        assert none["value"] == pytest.approx(math.sqrt(0.5 * 0.2))
        assert (none["began"], none["ended"], in_words(none)) == (1, 0, "≤ 0.3 ×")
    assert in_words(multiplier(4.2, 3.0)) == "≥ 1.0 ×"
    assert in_words(multiplier(4.4, 3.0)) == "≈ 0.6 ×"
    assert in_words(None) == "–"
    unknown = multiplier(4.2, 4.0, warmed_up=False)  # without an arm that is only warmed up
    assert (unknown["value"], unknown["began"]) == (pytest.approx(1.0), 1)


def test_curves_of_which_one_ends_earlier() -> None:
    known = ProofPlan(
        topics=["t"], arms=["none", "random", "mixture"], primary="random", budgets=[10], curve=[10, 20, 40]
    )
    runs = [{**run_of("none", "t", 0, 4.5), "untuned": {"held_out": 5.0, "off_topic": 5.0}}]
    runs.append(run_of("random", "t", 0, 4.0))
    for draw, ends in enumerate(((10, 20, 22), (10, 18))):
        points = [{"tokens": tokens, "held_out": {"t": 4.0 - tokens / 100}} for tokens in ends]
        points[-1]["off_topic"] = 5.0
        curve = {"arm": "curve", "topic": "", "draw": draw, "noisy": False, "points": points, "seconds": 1.0}
        runs.append(curve)
    found = summarise(known, runs)
    assert [point["tokens"] for point in found["curve"]] == [10, 19]
    assert [point["held_out"] for point in found["curve"]] == pytest.approx([3.9, 3.81])


def test_arms_as_they_are_written() -> None:
    arm = parse_arm("contrast+tfidf @ strategy=coverage near_duplicate=0.9")
    assert (arm.scorer, arm.selection) == ("contrast+tfidf", {"strategy": "coverage", "near_duplicate": 0.9})
    for wrong, words in (
        ("best", "no preset"),
        ("random @ k=3", "takes no limits"),
        ("tfidf @ k", "name=value"),
        ("tfidf @ strategy=best", "strategy must be one of"),
    ):
        with pytest.raises(InputError, match=words):
            parse_arm(wrong)
    with pytest.raises(InputError, match="primary must be one of the arms"):
        ProofPlan(arms=["random"], primary="tfidf")
    with pytest.raises(InputError, match="arms must be"):
        ProofPlan(arms=["best"], primary="best")
    assert generator("a", 1).integers(1 << 30) == generator("a", 1).integers(1 << 30)


def test_scorers_choose_rows_of_the_topic(tmp_path: Path) -> None:
    corpus(tmp_path / "corpus.jsonl")
    selector = {"model": str(save_tiny_model(tmp_path / "model")), "device": "cpu", **QUICK}
    it = grid(tmp_path, arms=["none", "random", "tfidf"], primary="tfidf", selector=selector)
    order = it.arms.order("tfidf", "red", 0, noisy=False, exclude=it._excluded(0))
    on_topic = np.mean([it.split.pool[row].label == "red" for row in order[:10].tolist()])
    assert on_topic > 0.7
    assert not set(order.tolist()) & set(it._warm_rows(0).tolist())
    assert sum(len(it.pool[row]) for row in order.tolist()) >= max(it.plan.budgets)
    (stretch,) = filled([it.pool[row] for row in order.tolist()], [120])
    assert sum(map(len, stretch)) == 120
    assert it.arms.resolved("default")["scorer"] != "default"


@pytest.mark.slow
def test_draws_that_are_done_beside_each_other_share_one_selector(tmp_path: Path) -> None:
    corpus(tmp_path / "corpus.jsonl")
    selector = {"model": str(save_tiny_model(tmp_path / "model")), "device": "cpu", **QUICK}
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "import test_proof_grid as t\n"
        f"it = t.grid(Path({str(tmp_path)!r}), arms=['none', 'random', 'tfidf'], primary='tfidf', seeds=2,\n"
        f"            selector={selector!r})\n"
        "print(len(it.run(int(sys.argv[1]))))\n"
    )
    draws = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(draw)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for draw in (0, 1)
    ]
    for said, complaints in [draw.communicate() for draw in draws]:
        assert said.strip(), complaints
    assert len(grid(tmp_path, arms=["none", "random", "tfidf"], primary="tfidf", seeds=2,
                    selector=selector).results()) == 12  # fmt: skip


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"topics": ["x"], "arm": ["random"]}))
    result = CliRunner().invoke(main, ["prove", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "o")])
    assert result.exit_code == 1
    assert "arms" in result.stderr


def test_so_far_trains_nothing_and_draws_share_the_work(tmp_path: Path) -> None:
    corpus(tmp_path / "corpus.jsonl")
    make_model("llama-lm").save_pretrained(tmp_path / "model")
    make_tokenizer(bos=False).save_pretrained(tmp_path / "model")
    values = plan(tmp_path, arms=["none", "random", "domain"], seeds=2, budgets=[40], curve=[40]).to_dict()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values | {"model": str(tmp_path / "model")}))

    def prove(*options: str) -> Result:
        words = ["prove", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out"), "-q", *options]
        return CliRunner().invoke(main, words)

    nothing = prove("--so-far")
    assert nothing.exit_code == 1
    assert "no topic is done yet with all of its arms" in nothing.stderr
    assert not (tmp_path / "out" / PAGE).exists()
    done = prove("--draw", "2")
    assert done.exit_code == 0, done.stderr
    runs = sorted((tmp_path / "out/runs").glob("*.json"))
    assert len(runs) == 6
    times = [path.stat().st_mtime_ns for path in runs]
    (tmp_path / "out" / PAGE).unlink()
    found = prove("--so-far")
    assert found.exit_code == 0, found.stderr
    assert found.stdout == done.stdout
    assert "after 40 tokens" in found.stdout
    assert sorted((tmp_path / "out/runs").glob("*.json")) == runs
    assert [path.stat().st_mtime_ns for path in runs] == times
    numbers = json.loads((tmp_path / "out" / NUMBERS).read_text())
    assert (numbers["summary"]["draws"], len(numbers["runs"])) == (1, 6)
    assert (tmp_path / "out" / PAGE).is_file()
