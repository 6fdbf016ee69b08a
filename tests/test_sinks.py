"""Attention sinks are found by their norm and left out of training, FVU and codes, whatever the batches.

Fails if: one token of a huge norm in every text hides the others from the autoencoder, its FVU, the ranking;
what is left out depends on batches, shards or on whether activations come from a store; other tokens go with
them; the option is without effect, or nobody is told. The sinks are made: one position of a random model gets
a long vector.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finescope.activations import ActivationStore, ActivationTap, store_activations
from finescope.activations.batches import ActivationBatch, norms, within
from finescope.activations.coordinates import choose_coordinates, pooled_norms
from finescope.activations.sinks import FACTOR, WithoutSinks, find_sinks, sinks_of_rows, sinks_of_store
from finescope.activations.windows import Document
from finescope.config import SaeConfig
from finescope.corpus import Row, open_corpus
from finescope.embeddings import embed_rows, extract_embeddings
from finescope.errors import StoreError
from finescope.progress import Reporter
from finescope.sae import SparseAutoencoder, load_sae
from finescope.storage.files import read_json
from finescope.workflow.job import Job
from finescope.workflow.opening import Given
from finescope.workflow.run import Run
from finescope.workflow.stages.sinks import norm_limit
from support.cli_job import write_jsonl
from support.tiny_models import WIDTH, make_tokenizer

SINK = 1000.0
"""Length of what is added to the first token; others have norms of about 2."""


def save_model(folder: Path) -> Path:
    """Write a random GPT-2 whose tokens keep to themselves, and a tokenizer that adds none."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    model = GPT2Model(GPT2Config(vocab_size=128, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, **ends))
    with torch.no_grad():
        model.wte.weight.mul_(20.0)
    model.save_pretrained(folder)
    make_tokenizer(bos=False).save_pretrained(folder)
    return folder


def tap_of(model: Path, **options: Any) -> ActivationTap:
    """A tap whose layer adds to the first token of what it reads one direction, and some of another."""
    tap = ActivationTap(model, "h.1", device="cpu", **options)
    one, another = torch.nn.functional.normalize(torch.randn(2, WIDTH, generator=generator(5)))

    def sink(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        sway = torch.tanh(output[:, 0, :1])
        changed[:, 0] += SINK * (one + 0.3 * sway * another)
        return changed

    tap.model.h[1].register_forward_hook(sink)
    return tap


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def rows_about(topic: int, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 14 words; two in three are of the topic, the others of none."""
    draw = random.Random(f"{topic} {seed}")
    return [
        {
            "id": f"{topic}-{seed}-{number}",
            "text": " ".join(
                f"w{draw.randrange(25) + (25 * topic if place % 3 else 75)}" for place in range(14)
            ),
            "label": f"topic {topic}",
        }
        for number in range(count)
    ]


def batch_of(lengths: list[list[float]]) -> ActivationBatch:
    """A batch of documents whose tokens have these norms."""
    flat = torch.tensor([norm for document in lengths for norm in document])
    ends = np.cumsum([0, *map(len, lengths)]).tolist()
    documents = [Document(number, str(number), "") for number in range(len(lengths))]
    direction = torch.zeros(len(flat), 4)
    direction[:, 1] = flat
    return ActivationBatch(documents, [0] * len(lengths), ends, torch.arange(len(flat)), direction)


def test_the_limit_is_ten_medians_of_what_begins_no_text() -> None:
    whole = batch_of([[900.0, 1.0, 2.0], [800.0, 3.004, 4.0, 31.0], [700.0, 5.0], [30.0]])
    found = find_sinks([whole])
    assert FACTOR == 10
    assert found.median == pytest.approx(3.004)
    assert found.max_norm == 30.0, "three digits"
    assert (found.tokens, found.sinks, found.beginnings) == (10, 4, 3)
    parts = [batch_of([[900.0, 1.0, 2.0]]), batch_of([[800.0, 3.004, 4.0, 31.0], [700.0, 5.0], [30.0]])]
    assert find_sinks(parts) == found
    left = whole.without_sinks(30.0)
    assert left.offsets == [0, 2, 4, 5, 6]
    assert left.token_ids.tolist() == [1, 2, 4, 5, 8, 9]
    assert left.activations[:, 1].tolist() == pytest.approx([1.0, 2.0, 3.004, 4.0, 5.0, 30.0])
    assert whole.without_sinks(1e4) is whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e18, 1e25])
def test_who_is_within_a_limit_is_told_as_by_norms_in_float64(size: float, dtype: torch.dtype) -> None:
    rows = (torch.randn(2000, 37) * size).to(dtype)
    rows[3, 1], rows[5, 2] = torch.nan, torch.inf
    length = norms(rows)
    middle = length[7]
    below, above = (torch.nextafter(middle, middle.new_tensor(other)) for other in (0.0, torch.inf))
    for limit in (middle, below, above, 0.0, torch.inf):
        assert torch.equal(within(rows, float(limit)), length <= float(limit))


def test_texts_of_one_token_have_no_limit() -> None:
    found = find_sinks([batch_of([[900.0], [800.0], []])])
    assert found.max_norm is None
    assert (found.tokens, found.sinks) == (2, 0)
    assert find_sinks([]).max_norm is None


def stored(model: Path, folder: Path) -> tuple[ActivationTap, list[Row], ActivationStore]:
    tap = tap_of(model).rounding_to("float32")
    rows = [Row(row["id"], row["text"]) for row in rows_about(0, 60)]
    rows += [Row("long", " ".join(f"w{n % 90}" for n in range(150))), Row("one", "w3"), Row("none", "")]
    return tap, rows, store_activations(tap, rows, folder, dtype=torch.float32)


def test_training_reads_every_other_token_once_in_full_batches(model: Path, tmp_path: Path) -> None:
    _, _, store = stored(model, tmp_path / "s")
    found = sinks_of_store(store)
    # 60 texts, and the three windows of the long one, and the text of one word.
    assert found.sinks == found.beginnings == 64
    assert found.max_norm is not None
    kept = WithoutSinks(store, found.max_norm, found.sinks)
    assert kept.num_tokens == 60 * 13 + 147
    wanted = [
        token
        for document in store.documents()
        for place, token in enumerate(document.activations)
        if place % 64
    ]
    for epoch in (0, 1):
        batches = list(kept.batches(100, seed=3, epoch=epoch))
        assert [len(batch) for batch in batches] == [100] * 9 + [27]
        got = torch.cat(batches)
        order = [sorted(map(tuple, tokens.tolist())) for tokens in (got, torch.stack(wanted))]
        assert order[0] == order[1]
    first, again = (torch.cat(list(kept.batches(100, seed=3, epoch=0))) for _ in range(2))
    assert torch.equal(first, again)


def test_the_limit_of_a_store_and_of_first_rows_agree(model: Path, tmp_path: Path) -> None:
    tap, rows, store = stored(model, tmp_path / "s")
    measured = sinks_of_rows(tap, rows)
    stated = sinks_of_store(store)
    assert measured.max_norm is not None
    assert measured.max_norm == pytest.approx(stated.max_norm, rel=0.1)
    small = tap_of(model, batch_tokens=64).rounding_to("float32")
    assert sinks_of_rows(small, rows).max_norm == measured.max_norm


def test_codes_and_means_are_those_of_the_other_tokens(model: Path, tmp_path: Path) -> None:
    tap, rows, store = stored(model, tmp_path / "s")
    limit = sinks_of_store(store).max_norm
    assert limit is not None
    torch.manual_seed(1)
    sae = SparseAutoencoder(WIDTH, SaeConfig(num_latents=256, k=8))
    bare = [document.activations for document in store.documents()]
    others = [tokens[torch.arange(len(tokens)) % 64 > 0] for tokens in bare]
    wanted = extract_embeddings(sae, others)
    assert extract_embeddings(sae, bare, max_norm=limit) == wanted
    assert extract_embeddings(sae, bare, max_norm=limit, batch_tokens=16) == wanted
    assert extract_embeddings(sae, store, max_norm=limit) == wanted
    assert extract_embeddings(sae, bare) != wanted
    small = tap_of(model, batch_tokens=64).rounding_to("float32")
    options: dict[str, Any] = {"max_norm": limit, "dtype": torch.float32}
    ways = {
        "all at once": embed_rows(sae, tap, rows, tmp_path / "a", **options),
        "small shards": embed_rows(sae, tap, rows, tmp_path / "b", shard_rows=7, **options),
        "small batches": embed_rows(sae, small, rows, tmp_path / "c", **options),
    }
    for name, codes in ways.items():
        assert codes.codes()[slice(0, len(wanted))] == wanted, name
        assert codes.num_sinks == 64, name
        assert codes.num_tokens == store.num_tokens, "sinks are tokens of their texts"
        means = torch.stack([tokens.double().sum(0) / max(1, len(tokens)) for tokens in others])
        dense = torch.from_numpy(np.asarray(codes.dense()))[: len(means)].double()
        torch.testing.assert_close(dense, means, rtol=1e-3, atol=1e-3)
    assert wanted.indptr[-1] == wanted.indptr[-2], "nothing but a sink"


class Said(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("job")
    rows = [row for topic in range(3) for row in rows_about(topic, 60)]
    random.Random(0).shuffle(rows)
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "targets.jsonl", rows_about(0, 8, seed=1))
    return {
        "model": str(model),
        "corpus": [str(folder / "corpus.jsonl")],
        "targets": str(folder / "targets.jsonl"),
        "label_column": "label",
        "selection": {"k": 20},
        "draws": 0,
        "device": "cpu",
    }


def finished(job: dict[str, Any], out: Path, **changes: Any) -> tuple[Run, Said]:
    said = Said()
    run = Run(Job.from_dict({**job, **changes, "out": str(out)}), said)
    run.context.tap = tap_of(job["model"])
    if "sae_path" in changes:
        run.context.given = Given(run.context.tap, load_sae(changes["sae_path"]), (), ())
    run.curate()
    return run, said


def average_precision(folder: Path) -> dict[str, float]:
    lines = read_json(folder / "metrics.json")["labels"]["methods"]
    return {line["name"]: line["metrics"]["average_precision"]["value"] for line in lines}


def fvu_of_others(folder: Path) -> float:
    """Share of the variance of all tokens but first ones that the run's autoencoder leaves unexplained."""
    tokens = np.concatenate(
        [
            np.asarray(document.activations[1:].double())
            for document in ActivationStore(folder / "activations").documents()
        ]
    )
    sae = load_sae(folder / "sae")
    with torch.no_grad():
        out = sae.reconstruct(torch.from_numpy(tokens).float()).double().numpy()
    return float(((out - tokens) ** 2).sum() / ((tokens - tokens.mean(0)) ** 2).sum())


def test_without_sinks_the_ranking_is_right_and_the_fvu_honest(job: dict[str, Any], tmp_path: Path) -> None:
    kept, _ = finished(job, tmp_path / "keep", sinks="keep")
    dropped, said = finished(job, tmp_path / "drop")
    shown = {run: float(run.context.ledger.facts("train")["fvu"]) for run in (kept, dropped)}
    true = {run: fvu_of_others(run.context.folder) for run in (kept, dropped)}
    assert shown[kept] < 0.02, "the sinks' variance hides everything"
    assert true[kept] > 10 * shown[kept]
    assert true[dropped] == pytest.approx(shown[dropped], rel=0.35)
    assert true[dropped] < true[kept]
    ranked = {name: average_precision(tmp_path / name) for name in ("keep", "drop")}
    # How an autoencoder comes out that was trained on sinks, and what is made of its codes, is chance.
    assert ranked["drop"]["contrast"] > 0.9
    assert ranked["drop"]["paper"] > 0.85
    assert ranked["keep"]["paper"] < 0.5
    assert ranked["drop"]["dense"] > ranked["keep"]["dense"] + 0.2
    # Everybody is told.
    facts = dropped.context.ledger.facts("sinks")
    assert (facts["sinks"], facts["beginnings"], facts["tokens"]) == (180, 180, 180 * 14)
    assert dropped.context.ledger.facts("train")["tokens"] == 180 * 13
    lines = "\n".join(said.lines)
    assert "180 tokens (7.14% of 2,520; 180 at the beginning of a text)" in lines
    assert "embedding corpus: 180 attention sinks left out, 7.14% of the tokens" in lines
    assert "embedding targets: 8 attention sinks left out" in lines
    stages = read_json(tmp_path / "drop" / "manifest.json")["stages"]
    assert stages["sinks"]["max_norm"] == facts["max_norm"]
    assert (stages["embed-corpus"]["sinks"], stages["embed-targets"]["sinks"]) == (180, 8)
    page = (tmp_path / "drop" / "report.html").read_text(encoding="utf-8")
    assert "180 attention sinks left out, 7.14% of the tokens" in page


def test_sinks_have_no_say_in_which_coordinates_are_chosen(model: Path) -> None:
    rows = [Row(row["id"], row["text"]) for row in rows_about(0, 20)]
    by_place = torch.randn(64, WIDTH, generator=generator(3))

    def pooled(tap: ActivationTap, texts: list[Row], **options: Any) -> torch.Tensor:
        """The squares, with directions that depend on the place of a token alone."""
        return pooled_norms(
            tap, texts, lambda given: by_place[: given.shape[1]].expand_as(given), **options
        ).square()

    plain, sinking = ActivationTap(str(model), "h.1", device="cpu"), tap_of(model)
    beginnings = [Row(row.id, row.text.split()[0]) for row in rows]
    # What begins a text sees nothing else, and adds nothing to what others of the last block are.
    wanted = (14 * pooled(plain, rows) - pooled(plain, beginnings)) / 13
    limit = sinks_of_rows(sinking, rows).max_norm
    torch.testing.assert_close(pooled(sinking, rows, max_norm=limit), wanted, rtol=1e-3, atol=1e-5)
    assert pooled(sinking, rows).max() > 2 * wanted.max()


def test_a_run_chooses_its_coordinates_without_sinks(job: dict[str, Any], tmp_path: Path) -> None:
    run, _ = finished(job, tmp_path / "run", preset="paper-v3", coordinates=8)
    context = run.context
    limit = context.ledger.facts("sinks")["max_norm"]
    chosen = context.ledger.facts("train")["coordinates"]
    given: dict[str, Any] = {"seed": context.job.seed}
    rows = list(context.corpus.rows())
    assert chosen == choose_coordinates(context.tap, rows, 8, max_norm=limit, **given)
    assert chosen != choose_coordinates(context.tap, rows, 8, **given)


def test_an_autoencoder_from_elsewhere_pools_without_them_too(job: dict[str, Any], tmp_path: Path) -> None:
    dropped, _ = finished(job, tmp_path / "drop")
    sae = tmp_path / "drop" / "sae"
    known, _ = finished(job, tmp_path / "known", sae_path=str(sae))
    (sae / "sinks.json").unlink()
    measured, _ = finished(job, tmp_path / "measured", sae_path=str(sae))
    wanted = dropped.context.store("codes/corpus")
    for run in (known, measured):
        found = run.context.store("codes/corpus")
        assert found.codes() == wanted.codes()
        assert found.num_sinks == 180
        assert run.context.store("codes/targets").num_sinks == 8
    limits = [run.context.ledger.facts("sinks")["max_norm"] for run in (known, dropped)]
    assert limits[0] == limits[1]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '"x"', '{"max_norm": null}', '{"max_norm": NaN}', '{"max_norm": 0}', "{"]
)
def test_a_damaged_limit_beside_an_autoencoder_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sinks.json").write_text(text)
    with pytest.raises(StoreError, match=r"sinks\.json is truncated or corrupt"):
        norm_limit(tmp_path, None, None, Said())  # type: ignore[arg-type]


@pytest.mark.parametrize("single", [False, True], ids=["a folder", "one file"])
def test_an_autoencoder_has_one_limit_for_whatever_is_embedded(
    model: Path, tmp_path: Path, single: bool
) -> None:
    sae = tmp_path / "sae"
    sae.mkdir()
    if single:
        sae = sae / "layer_20.npz"
        sae.touch()
    tap, said = tap_of(model), Said()
    first, second = (
        [Row("a", " ".join(f"w{n}" for n in range(low, high)))] for low, high in ((0, 9), (9, 60))
    )
    limits = [sinks_of_rows(tap, rows).max_norm for rows in (first, second)]
    assert None not in limits
    assert limits[0] != limits[1]
    corpora = [open_corpus([{"text": row.text} for row in rows]) for rows in (first, second)]
    assert [norm_limit(sae, tap, rows, said) for rows in corpora] == [limits[0]] * 2
    assert said.lines == []


def test_a_limit_that_cant_be_noted_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StoreError("no room")

    monkeypatch.setattr("finescope.workflow.stages.sinks.write_json", full)
    said, corpus = Said(), open_corpus([{"text": "w1 w2 w3 w4"}])
    assert norm_limit(tmp_path, tap_of(model), corpus, said) is not None
    assert "can't be noted beside the SAE: no room" in said.lines[0]
