"""Rows that can't be embedded are set aside, up to a number, and named; nothing else changes by them.

Fails if: without the option such a row is passed over; one is selected, or not named; the code of another row
differs by a bit from that of a corpus where the row is blank; processes, shares or a resumed run leave other
files than one process; more rows than allowed are passed over, by one process or by several together; a
finished shard is made again when more are allowed; a target is set aside.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from finescope.activations import ActivationTap
from finescope.cli import main
from finescope.corpus import Row
from finescope.corpus.badrows import BadRow, check_bad, said_of
from finescope.embeddings import CodeStore
from finescope.embeddings.embedder import Embedder
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.storage.pieces import Pieces
from finescope.workflow.engines.processes import Processes
from finescope.workflow.run import Run
from finescope.workflow.setrun import SetsRun
from support.cli_job import save_job, write_jsonl
from support.run_files import contents, curated, job_of, small_shards

NAN = "layer 'encoder.layer.0' gives NaN or infinite activations"
REFUSED = "the chat template refuses the conversation: unknown role"
BAD = {5: NAN, 21: REFUSED, 40: NAN}
"""Rows that can't be embedded, in the first, the second and the third shard, and why."""
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('unknown role') }}{% endif %}"
    "{{ m['content'] }} {% endfor %}"
)


pytestmark = pytest.mark.usefixtures("shards_are_small")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives NaN wherever it reads an unknown word, and a corpus with such rows."""
    folder = save_job(tmp_path_factory.mktemp("job"), animals=20, sky=40)
    weights = load_file(folder / "model/model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][1] = torch.nan
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
    (folder / "chat.jinja").write_text(TEMPLATE)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    said = dict(enumerate(rows))
    said[5] = {**rows[5], "text": f"{rows[5]['text']} poison"}
    said[21] = {
        "id": rows[21]["id"],
        "label": "sky",
        "messages": [{"role": "narrator", "content": "stars spin"}],
    }
    said[30] = {
        "id": rows[30]["id"],
        "label": "sky",
        "messages": [{"role": "user", "content": "moons orbit"}],
    }
    said[40] = {
        **rows[40],
        "text": " ".join([rows[40]["text"]] * 12) + " poison",
    }  # in the last of its windows
    said[41] = {**rows[41], "text": ""}
    write_jsonl(folder / "corpus.jsonl", said.values())
    blank = [{**row, "text": ""} if number in BAD else row for number, row in said.items()]
    blank[21].pop("messages")
    write_jsonl(folder / "blank.jsonl", blank)
    return folder


def settings(job: Path, allowed: int = 3, **others: Any) -> dict[str, Any]:
    return {
        "chat_template": str(job / "chat.jinja"),
        "refused_chats": "stop",
        "max_bad_rows": allowed,
        **others,
    }


@pytest.fixture(scope="module")
def one(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        out = tmp_path_factory.mktemp("one") / "run"
        outcome = curated(job, out, **settings(job, selection={"k": 60}))
    assert outcome.lines()[1:] == ["set aside, because they can't be embedded: 3 rows"]
    return out


def test_they_are_named_and_never_selected(job: Path, one: Path) -> None:
    rows = [json.loads(line) for line in (job / "corpus.jsonl").read_text().splitlines()]
    named = [json.loads(line) for line in (one / "bad_rows.jsonl").read_text().splitlines()]
    assert named == [
        {"row": number, "place": f"corpus.jsonl:{number + 1}", "id": rows[number]["id"], "reason": why}
        for number, why in BAD.items()
    ]
    stages = json.loads((one / "manifest.json").read_text())["stages"]
    assert [row[0] for row in stages["embed-corpus"]["bad_rows"]] == list(BAD)
    assert [row.row for row in CodeStore(one / "codes/corpus").bad_rows] == list(BAD)
    assert "Set aside, because they can&#x27;t be embedded: 3 rows: row 5 (corpus.jsonl:6)" in (
        (one / "report.html").read_text().replace("&#39;", "&#x27;")
    )
    scores = pq.read_table(one / "scores.parquet").to_pylist()
    assert [row["index"] for row in scores if not row["valid"]] == [5, 21, 40, 41]
    assert all(row["tokens"] == 0 for row in scores if row["index"] in BAD)
    reasons = pq.read_table(one / "selection.parquet").to_pylist()
    assert all(reasons[number]["reason"] == "invalid" for number in BAD)
    assert sum(row["rank"] is not None for row in reasons) == 60 - 4


def test_scores_of_words_alone_select_none_of_them(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "run")
    done = CliRunner().invoke(main, ["select", str(tmp_path / "run"), "--scorer", "tfidf", "-k", "60", "-q"])
    assert done.exit_code == 0, done.stderr
    ranks = pq.read_table(tmp_path / "run/selection.parquet")["rank"].to_pylist()
    assert [ranks[number] for number in BAD] == [None] * 3


def test_other_rows_are_those_of_a_corpus_where_they_are_blank(job: Path, one: Path, tmp_path: Path) -> None:
    asked = settings(job, allowed=0, corpus=[str(job / "blank.jsonl")], selection={"k": 60})
    curated(job, tmp_path / "blank", **asked)
    found, blank = CodeStore(one / "codes/corpus"), CodeStore(tmp_path / "blank/codes/corpus")
    for name in ("indptr", "indices", "values"):
        assert torch.equal(getattr(found.codes(), name), getattr(blank.codes(), name))
    assert torch.equal(found.dense(), blank.dense())
    assert (found.token_counts() == blank.token_counts()).all()
    assert (one / "sae/sae.safetensors").read_bytes() == (tmp_path / "blank/sae/sae.safetensors").read_bytes()
    assert not (tmp_path / "blank/bad_rows.jsonl").exists()


def test_several_processes_leave_the_files_of_one(job: Path, one: Path, tmp_path: Path) -> None:
    curated(job, tmp_path / "two", engine=Processes(2), **settings(job, selection={"k": 60}))
    assert contents(tmp_path / "two") == contents(one)


def test_a_stopped_run_goes_on_to_the_same_files(
    job: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(job, selection={"k": 60}, batch_tokens=64)
    real = Embedder._add
    with monkeypatch.context() as patch:
        patch.setattr(Pieces, "due", lambda _: True)
        calls: list[int] = []

        def add(self: Embedder, built: Any, *more: Any) -> None:
            real(self, built, *more)
            calls.append(len(built.aside))
            if built.aside and len(calls) > 3:
                raise KeyboardInterrupt

        patch.setattr(Embedder, "_add", add)
        with pytest.raises(KeyboardInterrupt):
            curated(job, tmp_path / "run", **asked)
    curated(job, tmp_path / "run", **asked)
    for name in (
        "bad_rows.jsonl",
        "codes/corpus/shard-00000.safetensors",
        "codes/corpus/shard-00002.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (one / name).read_bytes()


def test_the_first_stops_the_run_unless_some_are_allowed(job: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.jsonl:22: the chat template refuses.*unknown role"):
        curated(job, tmp_path / "a", **settings(job, allowed=0))
    with pytest.raises(
        InputError, match=r"gives NaN or infinite activations for document .*corpus\.jsonl:41"
    ):
        curated(job, tmp_path / "b", **{**settings(job, allowed=0), "refused_chats": "plain"})


def test_one_more_than_allowed_stops_and_names_them(job: Path, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="3 rows can't be embedded, and --max-bad-rows allows 2") as caught:
        curated(job, out, **settings(job, allowed=2, sae_path=str(one / "sae"), selection={"k": 60}))
    for number, why in BAD.items():
        assert f"row {number} (corpus.jsonl:{number + 1}): {why}" in str(caught.value)
    before = {
        path.name: path.stat().st_mtime_ns for path in (out / "codes/corpus").glob("shard-*.safetensors")
    }
    assert len(before) == 3
    curated(job, out, **settings(job, allowed=3, sae_path=str(one / "sae"), selection={"k": 60}))
    after = {
        path.name: path.stat().st_mtime_ns for path in (out / "codes/corpus").glob("shard-*.safetensors")
    }
    assert after.items() >= before.items()
    assert (out / "bad_rows.jsonl").read_bytes() == (one / "bad_rows.jsonl").read_bytes()
    with pytest.raises(InputError, match="2 rows can't be embedded"):
        check_bad([BadRow(3, "", "x", "why"), BadRow(1, "", "y", "why"), BadRow(3, "", "x", "why")], 1)
    assert said_of([]) == ""


def test_tasks_count_what_the_others_have_set_aside(job: Path, one: Path, tmp_path: Path) -> None:
    def plan(allowed: int) -> None:
        asked = settings(job, allowed=allowed, sae_path=str(one / "sae"), selection={"k": 60})
        Run(job_of(job, tmp_path / "run", **asked), Reporter(quiet=True)).plan()

    def share(which: str) -> Any:
        config = str(tmp_path / "run/config.yaml")
        return CliRunner().invoke(main, ["curate", "--config", config, "--shard", which, "-q"])

    plan(2)
    assert share("1/4").exit_code == share("2/4").exit_code == 0
    done = share("3/4")
    assert done.exit_code == 1
    assert "3 rows can't be embedded, and --max-bad-rows allows 2" in done.stderr
    plan(3)
    for which in ("1/2", "2/2"):
        assert share(which).exit_code == 0
    done = CliRunner().invoke(main, ["merge", str(tmp_path / "run"), "-q"])
    assert done.exit_code == 0, done.stderr
    assert "set aside, because they can't be embedded: 3 rows" in done.stdout
    assert (tmp_path / "run/bad_rows.jsonl").read_bytes() == (one / "bad_rows.jsonl").read_bytes()
    found, expected = (CodeStore(place / "codes/corpus").codes() for place in (tmp_path / "run", one))
    assert torch.equal(found.values, expected.values)


def test_they_are_said_once_for_all_target_sets(job: Path, one: Path, tmp_path: Path) -> None:
    sets = [f"{name}={job / 'seeds.jsonl'}" for name in ("a", "b")]
    asked = job_of(
        job, tmp_path / "run", **settings(job, targets="", target_sets=sets), sae_path=str(one / "sae")
    )
    lines = SetsRun(asked, Reporter(quiet=True)).curate().lines()
    assert len(lines) == 3
    assert lines[2] == "set aside, because they can't be embedded: 3 rows"
    assert (tmp_path / "run/bad_rows.jsonl").read_bytes() == (one / "bad_rows.jsonl").read_bytes()
    assert "row 5 (corpus.jsonl:6)" in (tmp_path / "run/sets/a/report.html").read_text()


def test_a_target_is_never_set_aside(job: Path, one: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "seeds.jsonl", [{"id": "a", "text": "cats purr"}, {"id": "b", "text": "poison"}])
    asked = settings(job, targets=str(tmp_path / "seeds.jsonl"), sae_path=str(one / "sae"), label_column=None)
    with pytest.raises(InputError, match=r"NaN or infinite activations for document 'b'.*seeds\.jsonl:2"):
        curated(job, tmp_path / "run", **asked)


@pytest.mark.parametrize("ordered", [True, False])
def test_the_tap_yields_every_row_once(job: Path, ordered: bool) -> None:
    tap = ActivationTap(job / "model", "layers.0", batch_tokens=128, max_length=16).setting_aside(9)
    tap._vocabulary = 40
    texts = ["cats purr", "poison " * 3, " ".join(["dogs"] * 40 + ["poison"]), "birds sing", "new", ""]
    found = sorted(
        tap.run([Row(str(at), text) for at, text in enumerate(texts)], ordered=ordered), key=lambda d: d.index
    )
    assert [document.index for document in found] == list(range(len(texts)))
    assert [document.bad for document in found] == [
        "", NAN, NAN, "", "the tokenizer gives token 41, but the model knows 40 tokens", "",
    ]  # fmt: skip
    assert [len(document.activations) for document in found] == [2, 0, 0, 2, 0, 0]
    whole = tap.setting_aside(0)
    with pytest.raises(InputError, match="NaN or infinite activations for document '1'"):
        list(whole.run([Row("1", texts[1])]))


def test_a_row_that_the_model_fails_on_is_named_or_set_aside_and_costs_no_other(job: Path) -> None:
    """As Funnel fails on texts of two tokens, of which its pooling leaves none."""
    tap = ActivationTap(job / "model", "layers.0").setting_aside(9)
    rows = [
        Row("a", "cats purr"),
        Row("short", "cats", place="c.jsonl:2"),
        Row("b", "birds sing"),
        Row("c", "a"),
    ]
    expected = {document.id: document.activations for document in tap.run(rows)}

    def fail(module: Any, given: Any, named: dict[str, Any]) -> None:
        if named["input_ids"].shape[1] == 3 and 5 in named["input_ids"]:  # cats, alone or beside others
            raise RuntimeError("nothing to reduce\nand a trace")

    with_failure = tap.model.register_forward_pre_hook(fail, with_kwargs=True)
    found = list(tap.run(rows))
    assert [document.bad for document in found] == ["", "the model fails on it: nothing to reduce", "", ""]
    for document in found:
        kept = expected[document.id] if not document.bad else expected[document.id][:0]
        assert torch.equal(document.activations, kept)
    refused = r"the model fails on document 'short' \(c\.jsonl:2\): nothing to reduce\. --max-bad-rows"
    with pytest.raises(InputError, match=refused):
        list(tap.setting_aside(0).run(rows))
    with_failure.remove()
