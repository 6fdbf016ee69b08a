"""The model reads a document once: what is stored is embedded from there, to the same bytes.

Fails if: the model runs twice over a row of a corpus that is stored; codes depend on where activations came
from; the SAE sees activations that aren't rounded as those it was trained on; a store or a folder of codes is
half of one dtype and half of another.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import BertModel

from finescope.activations import ActivationStore, ActivationTap, store_activations
from finescope.activations.batches import TooLargeError
from finescope.activations.windows import Window
from finescope.cli import main
from finescope.config import SaeConfig
from finescope.corpus import Row, open_corpus
from finescope.embeddings import CodeStore, embed_rows
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.sae import SparseAutoencoder
from finescope.workflow import context
from finescope.workflow.job import Job
from finescope.workflow.probe import PROBE_COPIES, PROBE_ROWS
from finescope.workflow.run import Run
from support.cli_job import make_wild, save_job
from support.tiny_models import WIDTH, make_model, make_rows, make_tokenizer


def tap(dtype: str | None = None) -> ActivationTap:
    return ActivationTap(
        make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=256, max_length=9, stride=2,
        activation_dtype=dtype,
    )  # fmt: skip


def sae() -> SparseAutoencoder:
    return SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4), seed=1)


def records() -> list[dict[str, str]]:
    rows = make_rows(30, longest=25)
    rows.insert(4, Row("blank", ""))
    rows.insert(9, Row("specials", "<s> <s>"))
    return [{"id": row.id, "text": row.content} for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of what a store holds; its manifest names the time of nothing."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


class Counted:
    """Counts how often each document went through the model, window by window."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.windows: Counter[tuple[str, int]] = Counter()
        forward: Callable[..., Any] = ActivationTap._forward

        def counting(tap: ActivationTap, group: list[Window]) -> Any:
            self.windows.update((window.document.id, window.part) for window in group)
            return forward(tap, group)

        patch.setattr(ActivationTap, "_forward", counting)

    def documents(self) -> set[str]:
        return {name for name, _ in self.windows}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("max_tokens", [None, 150])
def test_stored_rows_get_the_codes_that_the_model_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, max_tokens: int | None
) -> None:
    corpus = open_corpus(records())
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "shard_tokens": 60}
    stored = store_activations(tap(dtype), corpus, tmp_path / "acts", max_tokens=max_tokens, **options)
    assert any(document.windows for document in stored.documents()), "some have several windows"
    embed_rows(sae(), tap(dtype), corpus, tmp_path / "straight", shard_rows=7)
    counted = Counted(monkeypatch)
    found = embed_rows(sae(), tap(dtype), corpus, tmp_path / "stored", shard_rows=7, stored=stored)
    assert contents(tmp_path / "stored") == contents(tmp_path / "straight")
    assert found.dense().any(), "dense vectors were compared too"
    known = set(stored.ids())
    with_tokens = {row["id"] for row in records()} - {"blank", "specials"}
    assert counted.documents() == with_tokens - known
    assert set(counted.windows.values()) <= {1}
    assert (counted.documents() == set()) == (max_tokens is None)


def test_rounding_is_that_of_the_store_and_changes_codes(tmp_path: Path) -> None:
    corpus = open_corpus(records())
    codes = {
        dtype: embed_rows(sae(), tap(dtype), corpus, tmp_path / str(dtype), dtype=torch.float32).codes()
        for dtype in (None, "float16", "bfloat16", "float32")
    }
    assert codes[None] == codes["float32"]
    assert codes["float16"] != codes["float32"]
    assert codes["bfloat16"] != codes["float16"]
    for document in tap("bfloat16").run(make_rows(3)):
        assert document.activations.dtype == torch.bfloat16
    for plain, half in zip(tap().run(make_rows(5)), tap("float16").run(make_rows(5)), strict=True):
        assert torch.equal(plain.activations.half(), half.activations)


def test_activations_of_something_else_are_refused(tmp_path: Path) -> None:
    corpus = open_corpus(records())
    stored = store_activations(tap("float16"), corpus, tmp_path / "acts")
    with pytest.raises(ValueError, match=r"are torch\.float16, but the tap gives bfloat16|another model"):
        embed_rows(sae(), tap("bfloat16"), corpus, tmp_path / "a", stored=stored)
    with pytest.raises(ValueError, match="are of another corpus"):
        embed_rows(sae(), tap("float16"), open_corpus(records()[:-1]), tmp_path / "b", stored=stored)
    other = ActivationTap(
        make_model("llama"), "layers.0", tokenizer=make_tokenizer(), activation_dtype="float16"
    )
    with pytest.raises(ValueError, match="are of another model or layer"):
        embed_rows(sae(), other, corpus, tmp_path / "c", stored=stored)
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, float32, got 'float8'"):
        tap("float8")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"))


def run(folder: Path, out: Path, reporter: Reporter | None = None, **settings: Any) -> Run:
    asked = {
        "model": str(folder / "model"), "layer": "layers.0", "targets": str(folder / "seeds.jsonl"),
        "corpus": [str(folder / "corpus.jsonl")], "out": str(out), "device": "cpu", "draws": 0,
        "training": {"num_epochs": 1}, "selection": {"k": 5}, **settings,
    }  # fmt: skip
    return Run(Job.from_dict(asked), reporter or Reporter(quiet=True))


def ids_of(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("train_tokens", [1_000_000, 300])
def test_a_run_sends_every_row_through_the_model_once(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_tokens: int
) -> None:
    counted = Counted(monkeypatch)
    run(job, tmp_path / "out", train_tokens=train_tokens).curate()
    assert counted.documents() == ids_of(job / "corpus.jsonl") | ids_of(job / "seeds.jsonl")
    assert set(counted.windows.values()) == {1}
    stored = ActivationStore(tmp_path / "out" / "activations")
    assert (len(stored) == 120) == (train_tokens > 300)


def test_a_run_that_says_how_long_it_takes_times_the_model_on_a_few_rows_and_says_that(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counted(monkeypatch)
    run(job, tmp_path / "out", Reporter()).curate()
    timed = {name for (name, _), times in counted.windows.items() if times > 1}
    assert len(timed) == PROBE_ROWS
    assert {counted.windows[name, 0] for name in timed} == {1 + PROBE_COPIES}
    assert counted.documents() == ids_of(job / "corpus.jsonl") | ids_of(job / "seeds.jsonl")
    assert f"by the model's time on {PROBE_ROWS} rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"k": 65, "expansion_factor": 2}, "k=65 latents per token were asked for"),
        (
            {"architecture": "matryoshka", "matryoshka_widths": [8, 65], "expansion_factor": 2},
            "must be .* 64",
        ),
        ({"device": "mps:3"}, "device 'mps:3' can't be used"),
        ({"coordinates": 8}, "has no module of input embeddings"),
    ],
)
def test_what_training_would_refuse_is_refused_before_the_model_reads_a_row(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], words: str
) -> None:
    counted = Counted(monkeypatch)
    settings: dict[str, Any] = {"sae": wrong}
    if "device" in wrong:
        settings = {"training": {"num_epochs": 1, **wrong}}
    if "coordinates" in wrong:
        settings = wrong
        monkeypatch.setattr(BertModel, "get_input_embeddings", lambda _: None)
    with pytest.raises(InputError, match=words):
        run(job, tmp_path / "out", **settings).curate()
    assert not counted.windows


def test_a_finished_run_loads_no_model(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(job, tmp_path / "out").curate()
    monkeypatch.setattr(context, "open_tap", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(context, "load_sae", lambda *_: pytest.fail("the SAE was loaded"))
    again = run(job, tmp_path / "out").curate()
    assert again.selection.indices.tolist() == first.selection.indices.tolist()


def test_a_changed_model_is_noticed_without_loading_it(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(job, tmp_path / "job")
    run(tmp_path / "job", tmp_path / "out").curate()
    weights = tmp_path / "job" / "model" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-100] ^= 1
    weights.write_bytes(changed)
    monkeypatch.setattr(context, "open_tap", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(Exception, match=r"tap\.files\.model\.safetensors was"):
        run(tmp_path / "job", tmp_path / "out").curate()


@pytest.fixture
def wild(job: Path, tmp_path: Path) -> Path:
    """The same job with a model whose activations float16 can't hold."""
    folder = tmp_path / "wild"
    shutil.copytree(job, folder)
    make_wild(folder / "model")
    return folder


def dtypes(out: Path) -> list[str]:
    said = [json.loads((out / "stages" / f"{name}.json").read_text())["facts"] for name in STAGES]
    return [facts["activation_dtype"] for facts in said]


STAGES = ("activations", "embed-corpus", "embed-targets")


def test_a_run_goes_on_in_bfloat16_where_float16_is_too_narrow(wild: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "curate", "--model", wild / "model", "--layer", "layers.0", "--targets", wild / "seeds.jsonl",
        "--corpus", wild / "corpus.jsonl", "--out", out, "-k", 5, "--draws", 0, "--device", "cpu",
        "--set", "training.num_epochs=1",
    ]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "more than float16 holds: going on in bfloat16" in result.stderr
    assert dtypes(out) == ["bfloat16"] * 3
    assert ActivationStore(out / "activations").dtype == torch.bfloat16
    assert torch.isfinite(CodeStore(out / "codes/corpus").dense().float()).all()
    again = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert again.exit_code == 0
    assert "going on in" not in again.stderr, "it is known by now"


def test_a_dtype_that_is_asked_for_by_name_and_too_narrow_is_refused_by_the_tap(wild: Path) -> None:
    opened = context.open_tap(
        Job.from_dict({"model": str(wild / "model"), "layer": "layers.0", "device": "cpu"}), Reporter()
    )
    rows = list(open_corpus(wild / "corpus.jsonl").rows())
    with pytest.raises(
        TooLargeError, match=r"document 'sky-0-\d+' \(corpus.jsonl:\d+\) reach .*e\+0|animals"
    ):
        list(opened.rounding_to("float16").run(rows))
    assert len(list(opened.rounding_to("bfloat16").run(rows))) == len(rows)


class StoppedError(Exception):
    """The run was killed."""


def stop_at(patch: pytest.MonkeyPatch, row: int) -> None:
    """Let reading activations die after some rows."""
    from finescope.activations import collect

    real = collect.ActivationStoreWriter.add

    def add(writer: Any, document: Any, **entry: Any) -> None:
        if document.index == row:
            raise StoppedError
        real(writer, document, **entry)

    patch.setattr(collect.ActivationStoreWriter, "add", add)


def test_a_killed_run_in_bfloat16_goes_on_in_it_and_leaves_no_store_of_two_kinds(
    wild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finescope.activations import store

    monkeypatch.setattr(store, "_SHARD_BYTES", 4096)
    run(wild, tmp_path / "straight").curate()
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 70)
        with pytest.raises(StoppedError):
            run(wild, out).curate()
    manifest = json.loads((out / "activations" / "manifest.json").read_text())
    assert manifest["fingerprint"]["dtype"] == "bfloat16"
    assert manifest["shards"]
    assert not manifest["complete"]
    before = {name: (out / "activations" / name).stat().st_mtime_ns for name in listed(manifest)}
    run(wild, out).curate()
    assert before == {name: (out / "activations" / name).stat().st_mtime_ns for name in before}, "kept"
    for folder in ("activations", "codes/corpus", "codes/targets"):
        assert contents(out / folder) == contents(tmp_path / "straight" / folder)


def listed(manifest: dict[str, Any]) -> Iterator[str]:
    return (str(entry["file"]) for entry in manifest["shards"])


def test_a_row_that_is_too_large_though_the_sample_fitted_makes_all_codes_bfloat16(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finescope.activations import tap as module

    out = tmp_path / "out"
    drawn = run(job, tmp_path / "first", train_tokens=300).curate()
    known = set(ActivationStore(tmp_path / "first" / "activations").ids())
    assert len(drawn.scored.ids) > len(known) + 20
    real = module.rounded

    def narrow(batch: Any, dtype: torch.dtype) -> Any:
        if dtype == torch.float16 and any(
            d.id not in known and d.id.startswith("sky") for d in batch.documents
        ):
            raise TooLargeError("activations of a document reach 1e+05, more than float16 holds")
        return real(batch, dtype)

    monkeypatch.setattr(module, "rounded", narrow)
    counted = Counted(monkeypatch)
    run(job, out, train_tokens=300).curate()
    assert dtypes(out) == ["float16", "bfloat16", "bfloat16"]
    rows = open_corpus(job / "corpus.jsonl")
    opened = context.open_tap(
        Job.from_dict({"model": str(job / "model"), "layer": "layers.0", "device": "cpu"}), Reporter()
    )
    trained = SparseAutoencoder.load(out / "sae")
    wanted = embed_rows(trained, opened.rounding_to("bfloat16"), rows, tmp_path / "all", pooling="sqrt_mean")
    assert CodeStore(out / "codes/corpus").codes() == wanted.codes(), "the stored rows are in bfloat16 too"
    assert counted.documents()
