"""What the runs of a proof say together.

Everything is paired: an arm is held against another on the same topic and draw, after the same warm-up. Draws
of one topic share its held-out texts, so they are averaged first, and topics are what tests and intervals
count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finescope.proof.grid import CURVE
from finescope.proof.plan import MIXTURE, NONE, RANDOM, ProofPlan
from finescope.proof.statistics import holm, mean_interval, sign_flip, tokens_for, wilcoxon

Runs = Sequence[Mapping[str, Any]]
Losses = dict[str, dict[int, float]]
"""By topic and budget, the mean over draws."""


def summarise(plan: ProofPlan, runs: Runs) -> dict[str, Any]:
    """Return the table of arms, the tests and the curves, as plain values for JSON.

    Args:
        plan: of the runs.
        runs: results of the grid.
    """
    topics = {run["topic"] for run in runs if run["topic"]}
    start = {topic: _mean(run["points"][0]["held_out"] for run in _of(runs, NONE, topic)) for topic in topics}
    curve = _curve(plan, runs)
    by_arm: dict[tuple[str, bool], Losses] = {}
    for noisy, arms in ((False, plan.arms), (True, plan.noise_arms)):
        for arm in arms:
            if arm not in (NONE, MIXTURE):
                by_arm[arm, noisy] = _losses(plan, runs, arm, noisy)
    random = by_arm.get((RANDOM, False), {})
    lines = []
    for (arm, noisy), losses in by_arm.items():
        own = [run for run in runs if run["arm"] == arm and run["noisy"] == noisy]
        if not own:
            continue
        lines.append(
            {
                "arm": arm,
                "noisy": noisy,
                "budgets": {str(budget): _at(budget, losses, random, start) for budget in plan.budgets},
                "multiplier": multipliers(plan, runs, arm, start, noisy=noisy),
                "off_topic": _mean(run["points"][-1]["off_topic"] for run in own),
                "on_topic": _mean(run["on_topic"] for run in own),
                "mean_tokens": _mean(run["mean_tokens"] for run in own),
                "planted": _mean(run["planted"] for run in own),
            }
        )
    none = [run for run in runs if run["arm"] == NONE]
    largest = str(max(plan.budgets))
    return {
        "topics": len(topics),
        "draws": len({run["draw"] for run in runs}),
        "untuned": {name: _mean(run["untuned"][name] for run in none) for name in ("held_out", "off_topic")},
        "warmed_up": {
            name: _mean(run["points"][0][name] for run in none) for name in ("held_out", "off_topic")
        },
        "arms": sorted(lines, key=lambda line: (line["noisy"], line["budgets"][largest]["held_out"])),
        "tests": _tests(plan, by_arm),
        "curve": [
            {"tokens": tokens, "held_out": _mean(of[at] for of in curve.values())}
            for at, tokens in enumerate(_tokens(runs))
        ],
        "mixture": _mixture(runs),
        "seconds": sum(run["seconds"] for run in runs),
    }


def _mean(values: Any) -> float:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else math.nan


def _of(runs: Runs, arm: str, topic: str, noisy: bool = False) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["arm"], run["topic"], run["noisy"]) == (arm, topic, noisy)]


def _losses(plan: ProofPlan, runs: Runs, arm: str, noisy: bool) -> Losses:
    """A run was read once a budget; where a row was cut after its first token, a token before it."""
    found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["arm"] == arm and run["noisy"] == noisy:
            for budget, point in zip(plan.budgets, run["points"], strict=True):
                found[run["topic"]][budget].append(point["held_out"])
    return {topic: {at: _mean(values) for at, values in of.items()} for topic, of in found.items()}


def _points(runs: Runs) -> list[tuple[Mapping[str, Any], ...]]:
    """The points of the random curves, all draws' at one place; up to where the shortest pool ends."""
    return list(zip(*(run["points"] for run in runs if run["arm"] == CURVE), strict=False))


def _tokens(runs: Runs) -> list[int]:
    return [round(_mean(point["tokens"] for point in points)) for points in _points(runs)]


def _curve(plan: ProofPlan, runs: Runs) -> dict[str, list[float]]:
    """By topic, the losses along the random curve, the mean over draws."""
    return {
        topic: [_mean(point["held_out"][topic] for point in points) for points in _points(runs)]
        for topic in plan.topics
    }


def _at(budget: int, losses: Losses, random: Losses, start: Mapping[str, float]) -> dict[str, Any]:
    """One arm at one budget."""
    place = {topic: of[budget] for topic, of in losses.items()}
    found: dict[str, Any] = {"held_out": _mean(place.values())}
    gain = mean_interval([start[topic] - loss for topic, loss in place.items()])
    found["gain"] = _interval(gain)
    if random:
        beyond = mean_interval([random[topic][budget] - loss for topic, loss in place.items()])
        found["beyond_random"] = _interval(beyond)
    return found


def _interval(found: Any) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def multipliers(
    plan: ProofPlan, runs: Runs, arm: str, start: Mapping[str, float], *, noisy: bool = False
) -> dict[str, Any]:
    """Return how many random tokens give an arm's loss, over its own tokens, by budget.

    Of each topic the curve of random rows is the mean over draws, and so is the arm's loss; factors are
    averaged over topics as logarithms. The curve begins at no tokens with the loss after the warm-up, where
    that was measured. Where it ends above the arm's loss its end counts, so that the factor is too small;
    where fewer tokens than those of one step would do, or fewer than the curve begins with, these count, so
    that it is too large: how often is said.

    Args:
        plan: of the runs.
        runs: results of the grid.
        arm: as it is written in the plan.
        start: by topic, the loss after the warm-up; NaN where it isn't known.
        noisy: of the pool with planted rows.
    """
    tokens, curve = _tokens(runs), _curve(plan, runs)
    losses = _losses(plan, runs, arm, noisy)
    found: dict[str, Any] = {}
    for budget in plan.budgets if tokens and losses else ():
        logs, began, ended = [], 0, 0
        for topic, of in losses.items():
            if math.isnan(start[topic]):
                needed, least = tokens_for(of[budget], tokens, curve[topic]), tokens[0]
                began += of[budget] > curve[topic][0]
            else:
                needed = tokens_for(of[budget], [0, *tokens], [start[topic], *curve[topic]])
                least = min(plan.batch_tokens, tokens[0])
                began += needed < least
            ended += math.isinf(needed)
            logs.append(math.log(min(max(needed, least), tokens[-1]) / budget))
        over = mean_interval(logs)
        found[str(budget)] = {
            "value": math.exp(over.value),
            "low": math.exp(over.low),
            "high": math.exp(over.high),
            "began": began,
            "ended": ended,
            "topics": len(logs),
        }
    return found


def in_words(times: Mapping[str, Any] | None) -> str:
    """Return a compute multiplier as it is shown: ≥ where on some topics it is larger, ≤ where smaller."""
    if not times:
        return "–"
    began, ended = times.get("began", 0), times["ended"]
    mark = "≈ " if began and ended else "≥ " if ended else "≤ " if began else ""
    return f"{mark}{times['value']:.1f} ×"


def _tests(plan: ProofPlan, by_arm: Mapping[tuple[str, bool], Losses]) -> list[dict[str, Any]]:
    """The primary arm against each rival: a difference a topic, the mean over budgets and draws."""
    primary = by_arm.get((plan.primary, False), {})
    found: list[dict[str, Any]] = []
    for rival in plan.rivals:
        other = by_arm.get((rival, False), {})
        topics = [topic for topic in primary if topic in other]
        if not topics:
            continue
        values = [_mean(other[topic][b] - primary[topic][b] for b in plan.budgets) for topic in topics]
        found.append(
            {
                "rival": rival,
                "difference": _interval(mean_interval(values)),
                "better_on": sum(value > 0 for value in values),
                "topics": dict(zip(topics, values, strict=True)),
                "sign_flip": sign_flip(values),
                "wilcoxon": wilcoxon(values),
            }
        )
    for line, adjusted in zip(found, holm([line["sign_flip"] for line in found]), strict=True):
        line["holm"] = adjusted
    return found


def _mixture(runs: Runs) -> dict[str, float] | None:
    """The last point of the random curve."""
    ends = [run["points"][-1] for run in runs if run["arm"] == CURVE]
    if not ends:
        return None
    return {
        "tokens": float(np.mean([end["tokens"] for end in ends])),
        "held_out": _mean(_mean(end["held_out"].values()) for end in ends),
        "off_topic": _mean(end["off_topic"] for end in ends),
    }
