"""What explain, latents and diff say of a run is what its files say, counted and added up by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from finescope import InputError, SparseCodes
from finescope.activations import ActivationStore
from finescope.cli import main
from finescope.curation.enrichment import enriched, holders, neighbours, sure
from finescope.embeddings.store import CodeStore
from finescope.report.explain import adding_up
from finescope.sae import load_sae
from finescope.workflow import context as run_context
from support import curation_oracle as oracle
from support.cli_job import save_run


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def asked(*arguments: Any) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("job"), "--scorer", "contrast+tfidf")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dense_codes(run: Path) -> np.ndarray:
    return CodeStore(run / "codes" / "corpus").codes().to_dense().double().numpy()


def chosen_rows(run: Path) -> list[int]:
    table = pq.read_table(run / "selection.parquet").to_pylist()
    return [row["index"] for row in table if row["rank"] is not None]


def test_parts_of_any_row_sum_to_its_score(run: Path) -> None:
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    selection = pq.read_table(run / "selection.parquet").to_pylist()
    wanted = [chosen_rows(run)[0], 3, next(row["index"] for row in scores if row["is_target"])]
    found = asked("explain", run, *[f"#{row}" for row in wanted])
    order = sorted((row for row in scores if row["valid"]), key=lambda row: (-row["score"], row["index"]))
    for row, each in zip(wanted, found, strict=True):
        assert (each["row"], each["id"]) == (row, scores[row]["id"])
        assert each["score"] == scores[row]["score"]
        assert math.isclose(sum(each["parts"].values()) + each["constant"], each["score"], abs_tol=1e-9)
        assert set(each["parts"]) == {"codes", "words"}
        assert order[each["place"] - 1]["index"] == row
        assert (each["reason"], each["rank"]) == (selection[row]["reason"], selection[row]["rank"])
        assert each["nearest"] == scores[row]["nearest_target"]
        assert {word for word, _ in each["words"]} <= set(each["text"].lower().split())
    assert found[2]["reason"] == "target"
    assert asked("explain", run, scores[3]["id"]) == [found[1]]
    for each in found:
        for space, listed in (("codes", each["latents"]), ("words", each["words"])):
            total = each["others"][space][1] + math.fsum(addend[1] for addend in listed)
            assert math.isclose(total, each["parts"][space], abs_tol=1e-12)


def test_what_is_printed_of_a_score_adds_up_digit_by_digit(run: Path) -> None:
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    others = 0
    for row in range(0, 60, 3):
        text = invoke("explain", run, f"#{row}").stdout
        shown = [
            (len(indent), Decimal(number)) for indent, number in re.findall(r"(?m)^( +)([+-][\d.]+) ", text)
        ]
        assert sum(number for indent, number in shown if indent == 2) == Decimal(
            f"{scores[row]['score']:.4f}"
        )
        assert f"\n  = {scores[row]['score']:.4f}\n" in text
        starts = [at for at, (indent, _) in enumerate(shown) if indent == 2]
        for start, end in zip(starts, [*starts[1:], len(shown)], strict=True):
            below = [number for _, number in shown[start + 1 : end]]
            assert not below or sum(below) == shown[start][1]
        others += text.count("sum of ")
        assert "from words" in text
    assert others


@pytest.mark.parametrize(
    "parts", [[0.33333, 0.33333, 0.33334], [1e-5] * 7, [-0.12345, 0.5, 0.00005], [math.inf, 1]]
)
def test_rounded_parts_have_the_rounded_sum(parts: list[float]) -> None:
    shown = adding_up(parts)
    assert f"{sum(shown):.4f}" == f"{sum(parts):.4f}"
    assert all(abs(one - other) < 1e-4 for one, other in zip(shown, parts, strict=True) if other != math.inf)


def test_a_row_that_is_not_there_is_named(run: Path) -> None:
    for name in ("nobody", "#100000", "#-1", "#"):
        result = invoke("explain", run, name)
        assert (result.exit_code, repr(name) in result.stderr) == (1, True), result.stderr


def test_a_latent_s_rows_are_counted_and_its_neighbours_are_the_decoder_s(run: Path) -> None:
    dense = dense_codes(run)
    latent = int(np.argmax((dense != 0).sum(axis=0)))
    rare = int(np.flatnonzero((dense != 0).sum(axis=0) == 0)[0]) if not dense.any(axis=0).all() else latent
    first, *others = asked("latents", run, latent, rare, "--examples", 2)
    assert first["rows"] == int((dense[:, latent] != 0).sum())
    assert first["share"] == pytest.approx(first["rows"] / len(dense))
    assert first["selected"] == int((dense[chosen_rows(run), latent] != 0).sum())
    share = dense[:, latent] / np.maximum(np.linalg.norm(dense, axis=1), 1e-300)
    ids = pq.read_table(run / "scores.parquet").column("id").to_pylist()
    best = np.lexsort((np.arange(len(share)), -share))[:2]
    assert [name for name, _, _ in first["examples"]] == [ids[row] for row in best]
    np.testing.assert_allclose([each[2] for each in first["examples"]], share[best], rtol=1e-9)
    unit = oracle.unit(load_sae(run / "sae").W_dec.detach().numpy())
    cosines = unit @ unit[latent]
    cosines[latent] = -2
    assert [near for near, _ in first["neighbours"]] == np.argsort(-cosines, kind="stable")[:5].tolist()
    assert [(each["rows"], each["examples"]) for each in others] == [(0, [])] * (rare != latent)
    shown = asked("latents", run, "--top", 3)
    assert 0 < len(shown) <= 3
    assert f"latent {shown[0]['latent']}:" in invoke("latents", run, "--top", 3).stdout
    refused = invoke("latents", run, dense.shape[1])
    assert (refused.exit_code, "there is no latent" in refused.stderr) == (1, True)


def tokens_by_hand(run: Path, latent: int, rows: list[int], count: int) -> list[tuple[str, int, float]]:
    """Id, place and value of the tokens of some rows at which a latent is strongest."""
    store, sae = ActivationStore(run / "activations"), load_sae(run / "sae")
    ids = pq.read_table(run / "scores.parquet").column("id").to_pylist()
    found = []
    for document in store.documents():
        if document.index in rows:
            column = sae.encode_sparse(document.activations).to_dense()[:, latent]
            found += [(ids[document.index], at, float(value)) for at, value in enumerate(column) if value]
    return sorted(found, key=lambda token: -token[2])[:count]


def strongest_rows(run: Path, latent: int, count: int = 12) -> list[int]:
    dense = dense_codes(run)
    share = dense[:, latent] / np.maximum(np.linalg.norm(dense, axis=1), 1e-300)
    return np.lexsort((np.arange(len(share)), -share))[: min(count, int((share > 0).sum()))].tolist()


def test_a_latent_s_tokens_are_those_where_the_autoencoder_has_it_strongest(run: Path) -> None:
    latent = int(np.argmax((dense_codes(run) != 0).sum(axis=0)))
    (found,) = asked("latents", run, latent, "--tokens", 7)
    wanted = tokens_by_hand(run, latent, strongest_rows(run, latent), 7)
    assert [(each["id"], each["place"]) for each in found["tokens"]] == [token[:2] for token in wanted]
    values = [each["value"] for each in found["tokens"]]
    np.testing.assert_allclose(values, [token[2] for token in wanted], rtol=1e-6)
    texts = {row["id"]: row["text"] for row in read_rows(run.parent / "corpus.jsonl")}
    for each in found["tokens"]:
        words = texts[each["id"]].split()
        assert words[each["place"]] == each["token"]
        assert each["before"].split() == words[max(0, each["place"] - 6) : each["place"]]
        assert each["after"].split() == words[each["place"] + 1 : each["place"] + 7]
    first, shown = found["tokens"][0], invoke("latents", run, latent, "--tokens", 7).stdout
    assert f"›{first['token']}‹" in shown
    assert f"at {first['value']:.3g} {first['id']}" in shown
    assert asked("latents", run, latent, "--tokens", 0)[0]["tokens"] == []


def test_tokens_of_rows_that_are_not_stored_are_read_anew_only_where_that_is_wanted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = int(np.argmax((dense_codes(run) != 0).sum(axis=0)))
    wanted = asked("latents", run, latent, "--tokens", 7)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "activations")
    again = asked("latents", copy, latent, "--tokens", 7, "--run-model")[0]["tokens"]
    assert [(each["id"], each["place"]) for each in again] == [
        (each["id"], each["place"]) for each in wanted[0]["tokens"]
    ]
    monkeypatch.setattr(run_context, "open_tap", None)  # whoever loads the model fails
    without = invoke("latents", copy, latent)
    assert without.exit_code == 0, without.stderr
    assert "›" not in without.stdout
    assert re.search(r"tokens are not shown of 12 rows of 12 .* --run-model", without.stderr)
    assert f"›{wanted[0]['tokens'][0]['token']}‹" in invoke("latents", run, latent).stdout


def test_diff_of_a_run_compares_the_selection_with_the_other_rows(run: Path) -> None:
    dense, chosen = dense_codes(run) != 0, np.zeros(len(dense_codes(run)), bool)
    chosen[chosen_rows(run)] = True
    found = asked("diff", run, "--level", 0.5, "--top", 50)
    assert (found["rows_a"], found["rows_b"]) == (
        int(dense[chosen].any(axis=1).sum()),
        int(dense[~chosen].any(axis=1).sum()),
    )
    assert found["latents"]
    for line in found["latents"]:
        assert line["rows_a"] == int(dense[chosen, line["latent"]].sum())
        assert line["rows_b"] == int(dense[~chosen, line["latent"]].sum())
        assert line["low"] < line["ratio"] < (line["high"] or math.inf)
        assert line["low"] > 1 if line["more_in"] == "a" else line["high"] < 1
    itself = invoke("diff", run / "codes" / "corpus", run / "codes" / "targets", "--level", 0.5)
    assert itself.exit_code == 0, itself.stderr
    alone = invoke("diff", run / "codes" / "corpus")
    assert (alone.exit_code, "give B" in alone.stderr) == (2, True)


def counts_of(first, second):
    return np.stack([(first != 0).sum(axis=0), (second != 0).sum(axis=0)])


def test_the_interval_is_that_of_the_formula():
    counts = np.array([[30, 0, 5, 0, 9], [10, 0, 5, 7, 0]])
    found = enriched(counts, (40, 100), level=0.9)
    assert sorted(found.latents.tolist()) == [0, 2, 3, 4]
    from scipy.stats import binomtest

    for place, latent in enumerate(found.latents):
        a, b = counts[:, latent].tolist()
        share = binomtest(a, a + b).proportion_ci(1 - 0.1 / 4, method="exact")
        low, high = (end / (1 - end) * 100 / 40 if end < 1 else math.inf for end in share)
        assert (found.low[place], found.high[place]) == pytest.approx((low, high), rel=1e-9)
        assert found.ratio[place] == pytest.approx((a + 0.5) / (b + 0.5) * 2.5)
        assert low < found.ratio[place] < high
    assert sorted(found.latents[sure(found, 1)].tolist()) == [0, 4]
    assert (np.diff(found.low[sure(found, 1)]) <= 0).all()
    assert not set(sure(found, 1)) & set(sure(found, -1))
    for rows in ((0, 100), (40, 0)):
        with pytest.raises(InputError, match="nothing to compare"):
            enriched(counts, rows)


def test_of_two_samples_of_one_kind_hardly_ever_a_latent_is_surely_different():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.02, 0.6, 300)
    wrong = 0
    for _ in range(200):
        first, second = (rng.random((rows, 300)) < rates for rows in (80, 700))
        found = enriched(counts_of(first, second), (80, 700))
        wrong += bool(sure(found, 1).size or sure(found, -1).size)
    assert wrong <= 20  # 10 expected at most
    different = rates.copy()
    different[5] = 0.9
    found = enriched(counts_of(rng.random((80, 300)) < different, rng.random((700, 300)) < rates), (80, 700))
    assert found.latents[sure(found, 1)].tolist() == [5]


def test_holders_count_by_group_over_shards():
    rng = np.random.default_rng(1)
    dense = oracle.sparse_rows(rng, 50, 20)
    dense[7] = 0
    codes = SparseCodes.from_dense(torch.from_numpy(dense))

    class Shards:
        def iter_shards(self):
            return iter([codes[:13], codes[13:]])

    groups = rng.integers(-1, 3, 50)
    counts, rows = holders(Shards(), groups, 3)
    for group in range(3):
        mine = dense[groups == group] != 0
        assert counts[group].tolist() == mine.sum(axis=0).tolist()
        assert rows[group] == mine.any(axis=1).sum()


def test_latents_without_a_direction_are_nobody_s_neighbours():
    decoder = np.array([[1.0, 0], [2.0, 2], [0, 0], [3, 0], [0, 1]])
    assert neighbours(decoder, 0, 9) == [(3, 1.0), (1, pytest.approx(math.sqrt(0.5))), (4, 0.0)]
    assert neighbours(decoder, 2, 9) == []
