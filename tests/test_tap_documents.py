"""What a document's activations are made of: no special token by id, every token once, conversations whole.

Fails if: start tokens or chat markers reach the codes; a token of a long document is lost, doubled or taken
from a window where it has less context than another gives it; a bad model, document or option is not named.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from finescope import hub
from finescope.activations import ActivationTap
from finescope.activations.windows import Windower, special_ids
from finescope.corpus import Row
from finescope.errors import InputError
from support.tiny_models import WORDS, make_model, make_rows, make_tokenizer


def _tap(**options: object) -> ActivationTap:
    options.setdefault("tokenizer", make_tokenizer())
    return ActivationTap(make_model("llama"), "layers.1", **options)  # type: ignore[arg-type]


def test_special_tokens_are_left_out_by_id_and_unknown_words_are_not() -> None:
    tokenizer = make_tokenizer(eos=True)
    assert special_ids(tokenizer) == {0, 1, 2, 4}, "padding, start, end, chat marker; 3 is the unknown word"
    document = next(_tap(tokenizer=tokenizer).run([Row("a", "w1 <s> w2 nonsense </s> w3 <turn> w4")]))
    assert document.token_ids.tolist() == [6, 7, 3, 8, 9]
    kept = next(_tap(tokenizer=tokenizer, exclude_special=False).run([Row("a", "w1 <s> w2")]))
    assert kept.token_ids.tolist() == [1, 6, 1, 7, 2]


def test_a_special_token_in_the_middle_still_counts_as_context() -> None:
    tap = _tap()
    with_marker = next(tap.run([Row("a", "w1 w2 <turn> w3")])).activations
    without = next(tap.run([Row("a", "w1 w2 w3")])).activations
    assert with_marker.shape == without.shape == (3, tap.width)
    torch.testing.assert_close(with_marker[:2], without[:2], rtol=1e-4, atol=1e-4)
    assert (with_marker[2] - without[2]).abs().max() > 1e-2


@pytest.mark.parametrize("stride", [0, 3, 6])
@pytest.mark.parametrize("words", [1, 6, 7, 8, 14, 15, 50])
def test_windows_give_every_token_once_in_order(words: int, stride: int) -> None:
    text = " ".join(f"w{n}" for n in range(words))
    tap = _tap(max_length=8, stride=stride, batch_tokens=16)
    document = next(tap.run([Row("a", text)]))
    assert document.token_ids.tolist() == [5 + n for n in range(words)]
    assert document.activations.shape == (words, tap.width)
    # Token n is read from the first window it is in, which is where it has most context before it.
    room, step = 7, 7 - stride
    for token in range(words):
        window = 0 if token < room else -(-(token - room + 1) // step)
        context = " ".join(f"w{n}" for n in range(window * step, token + 1))
        wanted = next(tap.run([Row("b", context)])).activations[-1]
        torch.testing.assert_close(document.activations[token], wanted, rtol=1e-4, atol=1e-4)


def test_truncation_reads_the_first_window_only() -> None:
    document = next(_tap(max_length=8, long="truncate").run([Row("a", " ".join(WORDS))]))
    assert document.token_ids.tolist() == [5 + n for n in range(7)]


def test_rows_without_tokens_keep_their_place() -> None:
    rows = [
        Row("a", "w1"),
        Row("b", ""),
        Row("c", " \n"),
        Row("d", "<s> </s>"),
        Row("e", "w2"),
        Row("f", None),
    ]
    found = list(_tap().run(rows))
    assert [(document.id, document.activations.shape[0]) for document in found] == [
        ("a", 1),
        ("b", 0),
        ("c", 0),
        ("d", 0),
        ("e", 1),
        ("f", 0),
    ]


def test_conversations_go_through_the_chat_template_without_a_second_start_token() -> None:
    talk = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    tokenizer = make_tokenizer(chat=True)
    windower = Windower(tokenizer, max_length=64)
    assert windower.template_kind == "tokenizer"
    (window,) = windower.cut([Row("a", None, talk)])
    wanted = ["<s>", "<turn>", "user", "w1", "w2", "<turn>", "assistant", "w3"]
    assert tokenizer.convert_ids_to_tokens(window.ids) == wanted
    assert [window.ids[n] for n in window.kept] == [105, 6, 7, 106, 8]
    given = Windower(tokenizer, max_length=64, chat_template="{{ messages[0]['content'] }}")
    assert given.cut([Row("a", None, talk)])[0].ids == [1, 6, 7]
    plain = Windower(make_tokenizer(), max_length=64)
    assert plain.template_kind == "plain"
    assert [plain.cut([Row("a", None, talk)])[0].ids[n] for n in (2, 3)] == [6, 7]


def test_a_conversation_the_template_refuses_is_named() -> None:
    row = Row("a", None, [{"role": "robot", "content": "w1"}], place="chat.jsonl:7")
    with pytest.raises(InputError, match=r"chat\.jsonl:7: the chat template refuses.*unknown role"):
        Windower(make_tokenizer(chat=True), max_length=64).cut([row])


def test_nan_activations_name_the_document() -> None:
    tap = _tap(batch_tokens=256)
    rows = make_rows(20)
    rows[13] = Row("poisoned", "w1 w99 w2", place="corpus.jsonl:14")
    rows = [
        Row(row.id, row.text.replace("w99", "w98"), place=row.place) if row.id != "poisoned" else row
        for row in rows
    ]
    embedding = tap.model.embed_tokens.weight
    saved = embedding[104].clone()
    with torch.no_grad():
        embedding[104] = float("nan")
    try:
        with pytest.raises(InputError, match=r"'layers\.1' gives NaN.*'poisoned' \(corpus\.jsonl:14\)"):
            list(tap.run(rows))
    finally:
        with torch.no_grad():
            embedding[104] = saved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "no room beside the tokenizer's 1 special tokens"),
        ({"max_length": 65}, "more than the 64 tokens the model takes"),
        ({"max_length": 8, "stride": 7}, "stride 7 must be from 0 to 6"),
        ({"device": "cuda:99"}, "device 'cuda:99' can't be used"),
        ({"dtype": "float31"}, "dtype 'float31' is unknown"),
        ({"tokenizer": None}, "pass tokenizer="),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActivationTap(make_model("llama"), "layers.1", **{"tokenizer": make_tokenizer(), **options})


def test_wrong_model_paths_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"')
    for name, message in [
        (tmp_path / "none", "does not exist"),
        ("./none", "does not exist"),
        (tmp_path / "empty", r"has no config\.json"),
        (tmp_path / "file.bin", "is a file"),
        (tmp_path / "broken", "can't load the model in"),
        ("nobody/nothing", "neither a folder here nor in the local Hugging Face cache"),
    ]:
        with pytest.raises(InputError, match=message):
            ActivationTap(name, "layers.1")


def test_a_model_from_a_folder_without_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tap = ActivationTap(tmp_path, "layers.1")
    assert capfd.readouterr() == ("", "")
    rows = make_rows(3)
    for found, wanted in zip(tap.run(rows), _tap().run(rows), strict=True):
        torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-4, atol=1e-4)
    assert tap.fingerprint() == _tap().fingerprint(), "saving and loading a model changes nothing"
    half = ActivationTap(tmp_path, "layers.1", dtype="bfloat16")
    assert next(half.run(rows)).activations.dtype == torch.bfloat16
    assert half.fingerprint() != tap.fingerprint()


def test_fingerprint_follows_what_decides_the_activations() -> None:
    base = _tap().fingerprint()
    assert _tap(batch_tokens=64).fingerprint() == base
    assert _tap(max_length=32).fingerprint() != base
    assert ActivationTap(make_model("llama"), "layers.0", tokenizer=make_tokenizer()).fingerprint() != base
    tap = _tap()
    weight = tap.model.layers[0].mlp.up_proj.weight
    saved = weight.clone()
    try:
        with torch.no_grad():
            weight.add_(1e-3)
        assert tap.fingerprint() != base
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_tokens_that_the_model_does_not_know_are_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"new{number}" for number in range(40)])
    tap = _tap(tokenizer=tokenizer)
    with pytest.raises(
        InputError, match=r"token 14\d in document 'b' \(t:2\), but the model knows 128 tokens"
    ):
        list(tap.run([Row("a", "w1"), Row("b", "w1 new39", place="t:2")]))


def test_a_padding_token_that_the_model_does_not_know_pads_all_the_same() -> None:
    tokenizer = make_tokenizer(pad=False)
    tokenizer.add_tokens([f"new{number}" for number in range(40)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= 128
    rows = [Row("a", "w1 w2 w3"), Row("b", "w4")]
    padded = list(_tap(tokenizer=tokenizer, exact_lengths=False).run(rows))
    for got, wanted in zip(padded, _tap(exact_lengths=False).run(rows), strict=True):
        assert torch.equal(got.activations, wanted.activations)
