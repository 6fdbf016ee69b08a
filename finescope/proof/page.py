"""What a proof writes: its numbers, its figures, its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finescope.proof.grid import Grid
from finescope.proof.plan import DOMAIN, MATCHED, RANDOM, ProofPlan
from finescope.proof.summary import in_words, summarise
from finescope.report.figures import Figure
from finescope.report.look import (
    CORPUS,
    OTHERS,
    SELECTED,
    TARGET,
    as_svg,
    canvas,
    on_lines,
    shorten,
    styled,
    write_png,
)
from finescope.report.page import render_proof
from finescope.report.svg import inline
from finescope.storage.files import write_json, write_text

NUMBERS, PAGE = "proof.json", "proof.html"
_FIGURES = {
    "proof-arms": "Held-out loss below that of random rows.",
    "proof-curve": "Held-out loss by tokens.",
}


def write_proof(grid: Grid, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``proof.json``, ``proof.html`` and the figures into the grid's folder; return the numbers.

    Raises:
        StoreError: a file can't be written.
    """
    plan = grid.plan
    numbers = {
        "plan": plan.to_dict(),
        "rows": grid.split.identity,
        "arms": {arm: grid.arms.resolved(arm) for arm in dict.fromkeys([*plan.arms, *plan.noise_arms])},
        "summary": summarise(plan, runs),
        "runs": list(runs),
    }
    write_json(grid.folder / NUMBERS, numbers)
    write_page(grid.folder, numbers)
    return numbers


def write_page(folder: Path, numbers: Mapping[str, Any]) -> None:
    """Write page and figures from what stands in ``proof.json``.

    Raises:
        StoreError: a file can't be written.
    """
    plan, summary = ProofPlan.from_dict(dict(numbers["plan"])), numbers["summary"]
    drawn = {"proof-arms": arms_figure(plan, summary), "proof-curve": curve_figure(plan, summary)}
    figures = []
    for name, drawing in drawn.items():
        write_png(drawing, folder / f"{name}.png")
        caption = _FIGURES[name]
        figures.append(Figure(name, caption, inline(as_svg(drawing), name, caption), False))
    proof = {
        "title": "Does a model learn more from these rows?",
        "plan": numbers["plan"],
        "arms": numbers["arms"],
        "summary": summary,
        "times": [
            {str(budget): in_words(line["multiplier"].get(str(budget))) for budget in plan.budgets}
            for line in summary["arms"]
        ],
        "warnings": [],
    }
    write_text(folder / PAGE, render_proof(proof, figures))


def _shown(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [line for line in summary["arms"] if not line["noisy"]]


@styled
def arms_figure(plan: ProofPlan, summary: Mapping[str, Any]) -> Any:
    """Plot by how much each arm's held-out loss is below random's, with its interval over topics."""
    budget = str(max(plan.budgets))
    lines = [line for line in _shown(summary) if "beyond_random" in line["budgets"][budget]]
    figure, ax = canvas(f"Below random rows, after {int(budget):,} tokens", 1.2 + 0.3 * len(lines))
    for at, line in enumerate(lines):
        found = line["budgets"][budget]["beyond_random"]
        colour = SELECTED if line["arm"] == plan.primary else TARGET if line["arm"] == DOMAIN else OTHERS[0]
        ax.plot((found["low"], found["high"]), (at, at), color=colour, linewidth=2, alpha=0.45)
        ax.plot(found["value"], at, "o", color=colour, markersize=6.5)
    ax.axvline(0, color=CORPUS, linewidth=1)
    ax.set_yticks(range(len(lines)), [on_lines(line["arm"], 26) for line in lines])
    ax.invert_yaxis()
    ax.set(xlabel="loss of random rows minus the arm's")
    ax.xaxis.grid(True)
    return figure


@styled
def curve_figure(plan: ProofPlan, summary: Mapping[str, Any]) -> Any:
    """Plot the held-out loss against the tokens that were trained on."""
    figure, ax = canvas("Held-out loss by tokens", 3.6)
    start = summary["warmed_up"]["held_out"]
    if summary["curve"]:
        tokens = [point["tokens"] for point in summary["curve"]]
        losses = [point["held_out"] for point in summary["curve"]]
        ax.plot(tokens, losses, color=CORPUS, marker="o", label="random rows, to the end of the curve")
    colours = iter(OTHERS)
    for line in _shown(summary):
        arm = line["arm"]
        if arm in (RANDOM, MATCHED) or (arm not in (plan.primary, DOMAIN, *plan.rivals)):
            continue
        losses = [line["budgets"][str(budget)]["held_out"] for budget in plan.budgets]
        colour = SELECTED if arm == plan.primary else TARGET if arm == DOMAIN else next(colours, CORPUS)
        ax.plot(plan.budgets, losses, color=colour, marker="o", label=shorten(arm, 32))
    ax.axhline(start, color=CORPUS, linewidth=1, linestyle=":", label="after the warm-up")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.minorticks_off()
    ax.set(xlabel="tokens of chosen rows (log scale)", ylabel="mean loss per token")
    ax.yaxis.grid(True)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
