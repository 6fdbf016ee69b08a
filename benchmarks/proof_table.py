"""What README.md and docs/pages/proof.md say of the proof: ``python -m benchmarks.proof_table FOLDER``.

FOLDER is the ``--out`` of `finescope prove benchmarks/proof/plan.yaml`; its numbers and figures are copied to
benchmarks/proof/. Without FOLDER the tables are made again from those. The README's table has beside them, of
the same methods, the retrieval that docs/pages/scorers.md says.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.table import insert
from finescope.progress import counted
from finescope.proof.summary import in_words

ROOT = Path(__file__).resolve().parent.parent
HELD = ROOT / "benchmarks/proof"
SCORERS = ROOT / "docs/pages/scorers.md"
BEGIN, END = "<!-- proof:begin -->", "<!-- proof:end -->"
KEPT = ("proof.json", "proof-arms.png", "proof-curve.png")
COLUMNS = (
    "held-out loss",
    "below random rows by",
    "random tokens for that loss",
    "loss on other labels",
    "rows on topic",
)
NAMES = {
    "random": "random rows",
    "random-length": "random rows, as long as the first line's",
    "domain": "rows of the topic, by their labels (what no method knows)",
    "tfidf": "TF-IDF, mean of targets minus corpus",
    "dense": "dense hidden states, maximum cosine",
    "paper": "SAE codes, the paper's recipe",
    "contrast": "SAE codes, mean of targets minus corpus",
    "ridge+tfidf+2*dense-whitened": "ridge on codes, TF-IDF and twice whitened dense, summed",
}

# Lines of the README's table: an arm of the proof, and by which option scorers.md has the same method. Where
# there is no arm it is named after the first column there.
METHODS = (
    ("domain", None),
    ("ridge+tfidf+2*dense-whitened", "--preset default"),
    (None, "--scorer dense-whitened"),
    ("contrast", "--preset contrast"),
    ("dense", "--scorer dense"),
    ("tfidf", "--scorer tfidf"),
    ("paper", "--preset paper"),
    ("random", "--scorer random"),
)
MODELS = ("MiniLM", "SmolLM2")
"""What the columns of retrieval begin with, there and here."""


def _signed(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} – {found['high']:+.3f})".replace("-", "−")


def _name(line: dict[str, Any]) -> str:
    scorer, at, limits = line["arm"].partition(" @ ")
    words = NAMES.get(scorer, scorer) + (f", `{limits}`" if at else "")
    return words + (", from a pool with planted rows" if line["noisy"] else "")


def table(numbers: dict[str, Any]) -> str:
    """Return arms and tests of ``proof.json`` as Markdown."""
    plan, summary = numbers["plan"], numbers["summary"]
    primary, parts = plan["primary"], []
    for budget in map(str, plan["budgets"]):
        head = f"rows chosen by, {int(budget):,} tokens", *COLUMNS
        rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in summary["arms"]:
            at = line["budgets"][budget]
            mark = "**" if line["arm"] == primary and not line["noisy"] else ""
            more = in_words(line["multiplier"].get(budget))
            beyond = "" if line["arm"] == "random" and not line["noisy"] else _signed(at["beyond_random"])
            rows.append(
                f"| {mark}{_name(line)}{mark} | {mark}{at['held_out']:.3f}{mark} | {beyond} | {more} | "
                f"{line['off_topic']:.3f} | {line['on_topic']:.0%} |"
            )
        parts.append("\n".join(rows))
    rows = [
        "| the sum against | difference | ahead on | p | p, of all three (Holm) | p, Wilcoxon |",
        "|---|---|---|---|---|---|",
    ]
    for test in summary["tests"]:
        rows.append(
            f"| {NAMES.get(test['rival'], test['rival'])} | {_signed(test['difference'])} | "
            f"{test['better_on']} of {len(test['topics'])} | {test['sign_flip']:.4f} | {test['holm']:.4f} | "
            f"{test['wilcoxon']:.4f} |"
        )
    parts.append("\n".join(rows))
    untuned, warm = summary["untuned"], summary["warmed_up"]
    parts.append(
        f"{summary['topics']} topics, {counted(summary['draws'], 'draw')}. Loss of the model as it came: "
        f"{untuned['held_out']:.3f}; after the warm-up {warm['held_out']:.3f}, on other labels "
        f"{warm['off_topic']:.3f}."
    )
    return "\n\n".join(parts)


def retrieval(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return by option the name and the mean average precisions that a page's table gives, one a model.

    Raises:
        ValueError: the page has no such table, or another column where a model should be.
    """
    lines = iter(text.splitlines())
    head = next((_cells(line) for line in lines if line.startswith("| method | chosen by |")), None)
    if head is None or [name.split(",")[0] for name in head[2:4]] != list(MODELS):
        raise ValueError(f"no table of methods with {' and '.join(MODELS)} in its third and fourth column")
    next(lines)
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, option, *values = _cells(line)
        means = [re.search(r"\.\d+", value) for value in values[:2]]
        found[option.strip("`")] = name.strip("*"), [mean[0] if mean else "" for mean in means]
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def summary_table(numbers: dict[str, Any], found: dict[str, tuple[str, list[str]]]) -> str:
    """Return what methods find and what a model learns from it, as Markdown, with the tests in a sentence.

    Args:
        numbers: of ``proof.json``.
        found: of ``retrieval``.

    Raises:
        KeyError: a method that the proof or the table of retrieval lacks.
    """
    plan, summary = numbers["plan"], numbers["summary"]
    budget = str(max(plan["budgets"]))
    arms = {line["arm"]: line for line in summary["arms"] if not line["noisy"]}
    head = (
        "rows chosen by", "option", *(f"finds, {model}" for model in MODELS),
        "teaches: loss below random rows'", "random tokens for that loss",
    )  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, option in METHODS:
        words, means = found[option] if option else ("", ["", ""])
        words = words if arm is None else NAMES[arm]
        taught = ["", ""]
        if arm is not None:
            at = arms[arm]["budgets"][budget]
            if arm != "random":
                beyond = f"{at['beyond_random']['value']:+.3f}".replace("-", "−")
                taught = [beyond, in_words(arms[arm]["multiplier"].get(budget))]
        mark = "**" if arm == plan["primary"] else ""
        cells = [words, f"`{option}`" if option else "", *means, *taught]
        rows.append("| " + " | ".join(f"{mark}{cell}{mark}" if cell else " " for cell in cells) + " |")
    tests = "; ".join(
        f"{NAMES.get(test['rival'], test['rival']).partition(',')[0]} by {_signed(test['difference'])}, "
        f"ahead on {test['better_on']} of {len(test['topics'])}, p = {test['holm']:.2g}"
        for test in summary["tests"]
    )
    return (
        "\n".join(rows)
        + f"\n\nThe sum's loss, the mean over {len(plan['budgets'])} budgets and {summary['topics']} topics, "
        + f"is below that of {tests} (p by sign flips, Holm)."
    )


def documents(numbers: dict[str, Any]) -> dict[Path, str]:
    """What the files should hold that have the markers."""
    parts = {
        ROOT / "README.md": summary_table(numbers, retrieval(SCORERS.read_text(encoding="utf-8"))),
        ROOT / "docs/pages/proof.md": table(numbers),
    }
    return {path: insert(path.read_text(encoding="utf-8"), part, BEGIN, END) for path, part in parts.items()}


def main() -> None:
    """Copy the numbers, if a folder is named, and write the tables."""
    if len(sys.argv) > 1:
        for name in KEPT:
            shutil.copyfile(Path(sys.argv[1]) / name, HELD / name)
    for path, text in documents(json.loads((HELD / "proof.json").read_text(encoding="utf-8"))).items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
