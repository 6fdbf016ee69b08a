"""The figures in README.md and RESULTS.md are those of the results, and of nothing else."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks import peers, proof_table, run, table, truth

ROOT = Path(__file__).resolve().parent.parent


def test_the_documents_say_what_the_results_say() -> None:
    for path, text in table.documents().items():
        assert path.read_text() == text, f"{path} is of other results; run python -m benchmarks.table"


def test_results_are_named_after_what_they_are() -> None:
    paths = list((ROOT / "benchmarks/results").glob("*.json"))
    assert paths
    for path in paths:
        machine = json.loads(path.read_text())["machine"]
        isa = machine["isa"].replace("_", "-")
        assert path.name.startswith(machine["date"])
        assert path.name.endswith(f"-{isa}-{machine['threads']}threads.json")


def result(date: str, isa: str, ratio: float) -> dict[str, object]:
    machine = {"processor": "P", "threads": 2, "torch": "2", "finescope": "0", "isa": isa, "date": date}
    peers = {peer: ratio for names in table.COLUMNS.values() for peer in names}
    return {"machine": machine, "ratio": {name: {**peers, "limit": 0.5} for _, name in table.ROWS}}


def test_the_newest_of_each_machine_counts(tmp_path: Path) -> None:
    for date, isa, ratio in [
        ("2026-01-02", "avx2", 2.0),
        ("2026-01-01", "avx2", 9.0),
        ("2025-01-01", "amx", 3.0),
    ]:
        (tmp_path / f"{date}-{isa}.json").write_text(json.dumps(result(date, isa, ratio)))
    held = table.results(tmp_path)
    lines = table.summary(held).splitlines()
    assert lines[0].endswith("| sparse_dot_topn | fastest of these with avx2 |")
    assert lines[2].endswith("| 3 | 3 | 3 | 3 | 3 | 2 |")
    wide, narrow = "amx (torch 2, finescope 0, 2025-01-01)", "avx2 (torch 2, finescope 0, 2026-01-02)"
    assert lines[-1] == f"Each competitor: P, 2 threads, {wide}. The last columns: P, 2 threads, {narrow}."
    assert table.document(held).count("| 0.5 |") == 2 * len(table.ROWS)


def test_of_the_other_machines_the_fastest_competitor_counts() -> None:
    first, other = result("2026-01-02", "amx", 4.0), result("2026-01-01", "avx2", 5.0)
    (_, name), *rest = table.ROWS
    other["ratio"][name] |= {"torch bfloat16": 0.5, "numpy": 0.1}  # type: ignore[index]
    del other["ratio"][rest[0][1]]  # type: ignore[attr-defined]
    lines = table.summary([first, other]).splitlines()  # type: ignore[list-item]
    assert [line.rpartition(" | ")[2] for line in lines[2:5]] == ["0.5 |", "– |", "5 |"]


def test_a_row_or_a_column_without_results_is_an_error() -> None:
    whole = result("2026-01-01", "avx2", 2.0)
    del whole["ratio"][table.ROWS[3][1]]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"P, 2 threads, avx2 .* lacks sparse_cosine_topk"):
        table.summary([whole])  # type: ignore[list-item]
    whole = result("2026-01-01", "avx2", 2.0)
    for ratios in whole["ratio"].values():  # type: ignore[attr-defined]
        del ratios["scipy"]
    with pytest.raises(ValueError, match="lacks scipy"):
        table.summary([whole])  # type: ignore[list-item]


def test_a_document_without_markers_is_refused() -> None:
    for text in ("", f"{table.END}\n{table.BEGIN}", f"{table.BEGIN}{table.BEGIN}{table.END}"):
        with pytest.raises(ValueError, match="bench:begin"):
            table.insert(text, "")
    filled = table.insert(f"a\n{table.BEGIN}\nold\n{table.END}\nb", "new")
    assert filled == f"a\n{table.BEGIN}\nnew\n{table.END}\nb"


def test_the_tables_of_the_proof_are_those_of_its_numbers() -> None:
    numbers = json.loads((proof_table.HELD / "proof.json").read_text(encoding="utf-8"))
    for path, text in proof_table.documents(numbers).items():
        assert path.read_text() == text, f"{path} is of other results; run python -m benchmarks.proof_table"


def test_the_readme_takes_retrieval_from_the_page_on_scorers() -> None:
    page = proof_table.SCORERS.read_text(encoding="utf-8")
    found = proof_table.retrieval(page)
    assert [option for _, option in proof_table.METHODS if option and option not in found] == []
    name, (first, second) = found["--preset default"]
    assert f"| **{name}** | `--preset default` | **{first}**" in page
    changed = page.replace(f"| `--preset default` | **{first}**", "| `--preset default` | **.123**")
    numbers = json.loads((proof_table.HELD / "proof.json").read_text(encoding="utf-8"))
    lines = proof_table.summary_table(numbers, proof_table.retrieval(changed)).splitlines()
    assert f"| **`--preset default`** | **.123** | **{second}** |" in lines[3]
    for broken in ("", page.replace("| MiniLM, last block |", "| BERT |")):
        with pytest.raises(ValueError, match="no table of methods with MiniLM and SmolLM2"):
            proof_table.retrieval(broken)


def test_the_readme_fits_on_a_screen_or_two() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert sum(line.startswith("![") for line in lines) == 1


def test_what_is_approximate_stands_with_its_recall() -> None:
    found = result("2026-01-01", "avx2", 2.0) | {
        "recall": {table.ROWS[0][1]: {"torch bfloat16": 0.99996, "faiss IndexFlatIP": 1.0}}
    }
    line = next(line for line in table.document([found]).splitlines() if line.startswith("| Q1-N200000"))
    assert line.count("2 (0.999)") == line.count("2 (1.000)") == 1  # what isn't all isn't said to be


def test_shares_of_pairs_have_a_table_of_their_own() -> None:
    shares = {"survivors_dense[k10]": {"first": 0.01, "k of N": 0.0005}, "survivors_sparse[k1]": {"first": 1}}
    lines = table.document([result("2026-01-01", "avx2", 2.0) | {"share": shares}]).splitlines()
    assert lines[-4:] == [
        "|   | first | k of N |",
        "| --- | --- | --- |",
        "| dense, k10 | 1 | 0.05 |",
        "| sparse, k1 | 1e+02 |   |",
    ]


def test_a_record_keeps_what_was_found_of_each_kind() -> None:
    infos = [
        {"machine": {"isa": "avx2"}, "ratio": {"peer": 1.23456, "near": 2}, "recall": {"near": 0.123456}},
        {"machine": {"isa": "avx2"}, "share": {"passed": 0.00123456}},
    ]
    entries = [{"name": f"bench_{name}", "extra_info": info} for name, info in zip("ab", infos, strict=True)]
    assert run.compact({"benchmarks": entries}, "today") == {
        "machine": {"isa": "avx2", "date": "today"},
        "ratio": {"a": {"peer": 1.23, "near": 2}},
        "recall": {"a": {"near": 0.12346}},
        "share": {"b": {"passed": 0.00123}},
    }


def test_a_peer_that_is_not_there_is_left_out_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with peers.installed("a peer"):
            importlib.import_module("no_such_peer")
    assert capsys.readouterr().out == (
        "  left out: a peer (No module named 'no_such_peer'; pip install 'finescope[bench]')\n"
    )


def test_recall_counts_what_was_found() -> None:
    wanted = torch.tensor([[1, 2], [3, 4]])
    assert truth.recall([[2, 1], [4, 9]], wanted) == 0.75
    assert truth.recall(wanted.numpy(), wanted) == 1
