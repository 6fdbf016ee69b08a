"""What README.md and docs/pages/proof.md say of the proof: ``python -m benchmarks.proof_table FOLDER``.

FOLDER is the ``--out`` of `finescope prove benchmarks/proof/plan.yaml`; its numbers and figures are copied to
benchmarks/proof/. Without FOLDER the tables are made again from those.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.table import insert
from finescope.progress import counted

ROOT = Path(__file__).resolve().parent.parent
HELD = ROOT / "benchmarks/proof"
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
    "ridge+tfidf+dense-whitened": "ridge on codes, TF-IDF and whitened dense, summed",
}


def _signed(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} – {found['high']:+.3f})".replace("-", "−")


def _name(line: dict[str, Any]) -> str:
    scorer, at, limits = line["arm"].partition(" @ ")
    words = NAMES.get(scorer, scorer) + (f", `{limits}`" if at else "")
    return words + (", from a pool with planted rows" if line["noisy"] else "")


def table(numbers: dict[str, Any], *, whole: bool) -> str:
    """Return arms and tests as Markdown.

    Args:
        numbers: of ``proof.json``.
        whole: every arm and both budgets, not only the largest budget of the clean pool.
    """
    plan, summary = numbers["plan"], numbers["summary"]
    budgets = plan["budgets"] if whole else [max(plan["budgets"])]
    primary, parts = plan["primary"], []
    for budget in map(str, budgets):
        head = f"rows chosen by, {int(budget):,} tokens", *COLUMNS
        rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in summary["arms"]:
            if not whole and (line["noisy"] or "@" in line["arm"]):
                continue
            at, times = line["budgets"][budget], line["multiplier"].get(budget)
            mark = "**" if line["arm"] == primary and not line["noisy"] else ""
            more = f"{'≥ ' if times['ended'] else ''}{times['value']:.1f} ×" if times else "–"
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


def documents(numbers: dict[str, Any]) -> dict[Path, str]:
    """What the files should hold that have the markers."""
    found = {}
    for path, whole in ((ROOT / "README.md", False), (ROOT / "docs/pages/proof.md", True)):
        text = path.read_text(encoding="utf-8")
        found[path] = insert(text, table(numbers, whole=whole), BEGIN, END)
    return found


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
