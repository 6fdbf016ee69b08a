"""Turn a benchmark record into a Markdown table: ``python -m benchmarks.table results/FILE.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(record: dict) -> str:
    """One line per benchmark: how many times longer each peer took, from medians of interleaved runs."""
    lines = ["| work | against (times longer than ours) |", "|---|---|"]
    for entry in record["benchmarks"]:
        ratios = entry["extra_info"]["ratio"]
        against = " · ".join(f"{name} {ratio:.1f}×" for name, ratio in ratios.items())
        lines.append(f"| {entry['name'].removeprefix('bench_')} | {against} |")
    machine = record["benchmarks"][0]["extra_info"]["machine"]
    lines.append("")
    lines.append(
        f"{machine['processor']}, {machine['threads']} threads, {machine['isa']}; torch {machine['torch']}, "
        f"finescope {machine['finescope']}; medians of interleaved runs."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
