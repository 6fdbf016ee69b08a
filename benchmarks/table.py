"""The Markdown table of a result, and the place in a document where it goes.

    python -m benchmarks.table benchmarks/results/FILE.json            prints the table
    python -m benchmarks.table benchmarks/results/FILE.json README.md  writes it between the markers

The markers are the lines ``<!-- bench:begin -->`` and ``<!-- bench:end -->``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def table(result: dict[str, Any]) -> str:
    """One line per benchmark: how many times longer each peer took, and the part of the limit reached."""
    lines = ["| work | against (times longer than ours) | of the limit |", "|---|---|---|"]
    for name, ratios in result["ratio"].items():
        against = " · ".join(f"{peer} {ratio:.2g}" for peer, ratio in ratios.items() if peer != "limit")
        limit = f"{ratios['limit']:.2f}" if "limit" in ratios else ""
        lines.append(f"| {name} | {against} | {limit} |")
    machine = result["machine"]
    about = "{processor}, {threads} threads, {isa}; torch {torch}, finescope {finescope}, {date}".format(
        **machine
    )
    lines += ["", f"{about}; medians of interleaved runs in one process. The limit is a bare loop of as many"]
    lines += [
        "int8 multiplications (of 16 bits where there are none), or of reading the matrix once. “ours, …” and"
    ]
    lines += ["“once” are other ways to call ours."]
    return "\n".join(lines)


def insert(document: str, text: str) -> str:
    """Put ``text`` between the markers of a document.

    Raises:
        ValueError: the document has no markers, or not one of each in this order.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"the document needs one line {BEGIN} and, below it, one line {END}")
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def write(document: Path, result: dict[str, Any]) -> None:
    """Rewrite the table of a document in place."""
    document.write_text(insert(document.read_text(), table(result)))


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    if len(sys.argv) > 2:
        write(Path(sys.argv[2]), found)
    else:
        print(table(found))
