"""What README.md and benchmarks/RESULTS.md say of speed, made from the files in benchmarks/results/.

    python -m benchmarks.table    rewrites both

Of every machine the newest file counts. The README gets a few rows between the lines
``<!-- bench:begin -->`` and ``<!-- bench:end -->``, RESULTS.md all of them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from build_native import ALL_ISAS

HERE = Path(__file__).parent
README, RESULTS = HERE.parent / "README.md", HERE / "RESULTS.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

# What the README shows: the work in words, sizes taken from the benchmark's name, and that name.
ROWS = [
    ("search {Q} query in {N} rows of width {D}", "cosine_topk[Q1-N200000-D384-k100-gaussian]"),
    ("the same, {Q} queries", "cosine_topk[Q64-N200000-D384-k100-gaussian]"),
    ("the same, {Q} queries", "cosine_topk[Q1024-N200000-D384-k100-gaussian]"),
    (
        "search {Q} query in {N} sparse codes, {M} of {F} latents",
        "sparse_cosine_topk[Q1-N1000000-M96-F16384-k100]",
    ),
    ("the same, {Q} queries", "sparse_cosine_topk[Q64-N1000000-M96-F16384-k100]"),
    ("encode {B} tokens of width {D}, {K} of {F} latents", "topk_encode[B4096-D512-F16384-K32-gaussian]"),
    ("encode {B} tokens of width {D}, {K} of {F} latents", "topk_encode[B512-D2048-F65536-K64-gaussian]"),
    (
        "training step, {B} tokens of width {D}, {K} of {F} latents, MultiTopK, AuxK",
        "train_step[B2048-D512-F16384-K32-multi_topk+auxk]",
    ),
]
# Its columns, and what the benchmarks call that competitor.
COLUMNS = {
    "torch": ("torch float32", "torch.sparse", "sparse backward, embedding_bag"),
    "torch, bfloat16": ("torch bfloat16",),
    "faiss-cpu": ("faiss IndexFlatIP",),
    "scipy": ("scipy",),
    "sparse_dot_topn": ("sparse_dot_topn",),
}
ABOUT = """\
How many times longer others take than ours: medians of interleaved runs in one process, float32 inputs. Below
1 the other is faster. Every benchmark first holds our result against float64. `make bench` measures this
machine, and rewrites this file and the README's table."""
READING = """\
“ours, …” and “once” are other ways to call ours. “of the limit” is the part that ours reaches of the speed of
a bare loop of as many multiplications, in int8 where the processor has it, or of reading the packed matrix
once; in sparse search, of copying the lists of all latents that the queries hold. Behind the time of what
answers approximately stands its recall: the share of the k best, which ours are, that it finds."""
LET_THROUGH = """\
Of all pairs of a query and a row, in percent: what the first screen, in low precision, couldn't rule out;
what was scored in float64 in the end; and k of N, which have to be."""


def results(folder: Path = HERE / "results") -> list[dict[str, Any]]:
    """The newest result of every machine and instruction set, the best instruction set first."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # their names begin with the date
        found = json.loads(path.read_text())
        newest[tuple(str(found["machine"][name]) for name in ("processor", "isa", "threads"))] = found
    return sorted(newest.values(), key=lambda found: ALL_ISAS.index(found["machine"]["isa"]), reverse=True)


def machine(result: dict[str, Any]) -> str:
    """Where and when a result was measured, and of what."""
    words = "{processor}, {threads} threads, {isa} (torch {torch}, finescope {finescope}, {date})"
    return words.format(**result["machine"])


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def _number(ratio: float) -> str:
    return f"{ratio:.2g}"


def _cell(peer: str, ratios: dict[str, float], recall: dict[str, float]) -> str:
    if peer not in ratios:
        return ""
    found = f" ({math.floor(1000 * recall[peer]) / 1000:.3f})" if peer in recall else ""  # .9999 isn't 1
    return _number(ratios[peer]) + found


def _sizes(name: str) -> dict[str, str]:
    """The letters of a benchmark's name and their numbers, thousands apart."""
    found = re.findall(r"(?:\[|-)([A-Za-z])(\d+)", name)
    return {letter: f"{int(number):,}".replace(",", "\u202f") for letter, number in found}


def summary(held: list[dict[str, Any]]) -> str:
    """The README's table: a column a competitor on the first machine, and one for each of the other machines.

    Those say how many times longer the fastest of the competitors takes there.

    Raises:
        ValueError: a row or column that the first machine's result lacks.
    """
    first, *others = held
    rows = [["", *COLUMNS, *(f"fastest of these with {one['machine']['isa']}" for one in others)]]
    seen: set[str] = set()
    for words, name in ROWS:
        measured = [_of_columns(result["ratio"].get(name, {})) for result in held]
        if not measured[0]:
            raise ValueError(f"the result of {machine(first)} lacks {name}")
        seen |= measured[0].keys()
        cells = [_number(measured[0][column]) if column in measured[0] else "" for column in COLUMNS]
        least = [_number(min(found.values())) if found else "–" for found in measured[1:]]
        rows.append([words.format(**_sizes(name)), *cells, *least])
    if absent := COLUMNS.keys() - seen:
        raise ValueError(f"the result of {machine(first)} lacks {', '.join(sorted(absent))}")
    named = f"Each competitor: {machine(first)}."
    if others:
        named += f" The last columns: {'; '.join(map(machine, others))}."
    return f"{_table(rows)}\n\n{named}"


def _of_columns(ratios: dict[str, float]) -> dict[str, float]:
    """By column the ratio of its competitor, where it was measured."""
    found = {
        column: next((ratios[peer] for peer in peers if peer in ratios), None)
        for column, peers in COLUMNS.items()
    }
    return {column: ratio for column, ratio in found.items() if ratio is not None}


def document(held: list[dict[str, Any]]) -> str:
    """RESULTS.md: of every machine a table for each operation."""
    parts = ["# Speed", ABOUT, READING]
    for result in held:
        parts.append(f"## {machine(result)}")
        groups: dict[str, dict[str, dict[str, float]]] = {}
        for name, ratios in result["ratio"].items():
            group, _, size = name.partition("[")
            groups.setdefault(group, {})[size.removesuffix("]")] = ratios
        for group, entries in groups.items():
            peers = list(dict.fromkeys(peer for ratios in entries.values() for peer in ratios))
            peers.sort(key="limit".__eq__)  # last
            rows = [["", *("of the limit" if peer == "limit" else peer for peer in peers)]]
            for size, ratios in entries.items():
                recall = result.get("recall", {}).get(f"{group}[{size}]", {})
                rows.append([size, *(_cell(peer, ratios, recall) for peer in peers)])
            parts += [f"### {group}", _table(rows)]
        if shares := result.get("share"):
            names = list(dict.fromkeys(name for found in shares.values() for name in found))
            rows = [["", *names]]
            for name, found in shares.items():
                kind, _, size = name.removeprefix("survivors_").removesuffix("]").partition("[")
                rows.append(
                    [f"{kind}, {size}", *(_number(100 * found[one]) if one in found else "" for one in names)]
                )
            parts += ["### What screens let through", LET_THROUGH, _table(rows)]
    return "\n\n".join(parts) + "\n"


def insert(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Put a table between the markers of a document.

    Raises:
        ValueError: the document has no markers, or not one of each in this order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the document needs one line {begin} and, below it, one line {end}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def documents() -> dict[Path, str]:
    """What both files should hold."""
    held = results()
    return {README: insert(README.read_text(), summary(held)), RESULTS: document(held)}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
        print(path)
