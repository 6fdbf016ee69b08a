"""A GGUF file is a model, and what can't be read of one is said before anything is loaded.

Fails if: the activations of a file aren't those of the model that it was made from; missing libraries, parts
of a file or other files end in a stack trace; a tokenizer that transformers doesn't know is taken for a known
one. The first needs gguf and accelerate.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope import InputError
from finescope.activations import ActivationTap, load_model, load_tokenizer
from finescope.activations.gguf import gguf_remark, text_in
from finescope.activations.identity import model_files
from finescope.corpus import Row

READERS = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate"))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(entries: list[tuple[str, int, bytes]]) -> bytes:
    """The beginning of a GGUF file, by the specification."""
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body


def save_header(path: Path, pre: str | None) -> Path:
    entries = [
        ("general.architecture", 8, text("llama")),
        ("a.whole.number", 10, struct.pack("<Q", 7)),
        ("a.flag", 7, b"\1"),
        ("texts", 9, struct.pack("<IQ", 8, 2) + text("é") + text("")),
        ("numbers", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
        ("lists", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 8, 1) + text("within")),
    ]
    if pre is not None:
        entries.append(("tokenizer.ggml.pre", 8, text(pre)))
    path.write_bytes(header([*entries, ("last", 8, text("end"))]))
    return path


def test_text_is_found_behind_values_of_every_kind(tmp_path: Path) -> None:
    path = save_header(tmp_path / "m.gguf", "smollm")
    assert text_in(path, "tokenizer.ggml.pre") == "smollm"
    assert text_in(path, "last") == "end"
    assert text_in(path, "a.whole.number") is None
    assert text_in(path, "nowhere") is None


@pytest.mark.parametrize(
    ("pre", "said"), [("of-another-time", True), ("gpt-2", False), ("default", False), (None, False)]
)
def test_an_unknown_way_of_cutting_words_is_said(tmp_path: Path, pre: str | None, said: bool) -> None:
    remark = gguf_remark(save_header(tmp_path / "m.GGUF", pre))
    assert (remark is not None) == said
    if remark is not None:
        assert f"m.GGUF cuts words in a way called '{pre}'" in remark


def test_only_files_have_remarks(tmp_path: Path) -> None:
    assert gguf_remark(tmp_path) is None
    assert gguf_remark("some/model.gguf") is None
    assert gguf_remark(object()) is None


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_cannot_be_read_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any
) -> None:
    (tmp_path / "no.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match=r"no\.gguf is no GGUF file"):
        load(tmp_path / "no.gguf")
    part = save_header(tmp_path / "m-00001-of-00003.gguf", None)
    with pytest.raises(InputError, match=r"one of 3 parts .*--merge"):
        load(part)
    whole = save_header(tmp_path / "m-00001-of-00001.gguf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf and accelerate: pip install 'finescope\[gguf\]'"):
        load(whole)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file, and no GGUF file"):
        load(tmp_path / "weights.bin")


def test_a_folder_of_nothing_else_names_the_file(tmp_path: Path) -> None:
    path = save_header(tmp_path / "m.gguf", None)
    with pytest.raises(InputError, match=r"has no config\.json; name the file: .*m\.gguf"):
        load_model(tmp_path)
    assert list(model_files(str(path)) or {}) == ["m.gguf"]


def save_llama(path: Path) -> Any:
    """Write a tiny Llama of random weights as llama.cpp lays it out; return it."""
    import gguf
    from transformers import LlamaConfig, LlamaModel

    # Byte-level letters, and two merges.
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    vocabulary = ["<|end|>", *letters, "Ġt", "he"]
    heads, groups, size, width = 4, 2, 8, 32
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=64,
        max_position_embeddings=128,
        rope_theta=10000.0,
    )
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)

    def paired(weight: torch.Tensor, count: int) -> torch.Tensor:
        """llama.cpp turns neighbouring dimensions, transformers those half a head apart."""
        return weight.reshape(count, 2, size // 2, width).transpose(1, 2).reshape(weight.shape)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(64)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("of-another-time")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in model.state_dict().items():
        bare = name.removesuffix(".weight")
        block = ""
        if bare.startswith("layers."):
            _, number, bare = bare.split(".", 2)
            block = f"blk.{number}."
        if bare.endswith(("q_proj", "k_proj")):
            weight = paired(weight, heads if bare.endswith("q_proj") else groups)
        writer.add_tensor(f"{block}{names[bare]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.skipif(not READERS, reason="gguf and accelerate are not installed (the extra gguf)")
def test_activations_are_those_of_the_model_in_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.gguf"
    model = save_llama(path)
    tap = ActivationTap(path, "layers.0", device="cpu")
    assert capfd.readouterr().err == "", "no bar of the loader's"
    assert "of-another-time" in " ".join(tap.remarks)
    document = next(tap.run([Row("a", "over the lazy dog")]))
    assert "".join(tap.tokenizer.convert_ids_to_tokens(document.token_ids.tolist())) == "overĠtheĠlazyĠdog"
    assert len(document.token_ids) == len("over") + 2 + len(" lazy dog")
    with torch.no_grad():
        states = model(input_ids=document.token_ids[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(document.activations, states[1][0])
