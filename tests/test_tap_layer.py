"""What a layer does that can't be seen from its name: it runs several times, gives [T,B,D], or sees padding.

Fails if: the first of several runs is taken for the layer's output; a family whose real tokens change under
padding is padded all the same, or every family is computed unpadded out of caution; rows and positions of a
model that puts positions first are mixed up; a mixture of experts strays further than is said.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from finescope import InputError
from finescope.activations import ActivationTap
from finescope.activations.hookpoints import last_block
from finescope.corpus import Row
from support.tiny_models import make_model, make_rows, make_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
MORE: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "num_hidden_layers": 5},
    "convbert": {"embedding_size": 64},
    "fnet": {"num_attention_heads": None},
    "mobilebert": {"embedding_size": 64},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "vocab_size": 128},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
}
EXPERTS = {"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 4}


def make(family: str, **changes: Any) -> Any:
    """A tiny model of a family, with weights large enough that every token's context shows."""
    sizes = {} if family == "xlnet" else SMALL
    given = {**sizes, **MORE.get(family, {}), **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{name: value for name, value in given.items() if value is not None}
    )
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.6 / parameter.shape[-1] ** 0.5)
    return model


def own_states(model: Any, tap: ActivationTap, row: Row) -> tuple[torch.Tensor, ...]:
    """Return the model's own hidden states of a row by itself, without the start token."""
    ids = torch.tensor([[1, *tap.tokenizer(row.text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return tuple(state[0, 1:] for state in states)


def test_of_a_shared_block_the_last_run_is_read_or_the_one_that_is_named() -> None:
    model, row = make("albert"), make_rows(1)[0]
    layer = last_block(model)
    last = ActivationTap(model, layer, tokenizer=make_tokenizer())
    wanted = own_states(model, last, row)
    assert last.layer == layer
    assert "runs 5 times" in " ".join(last.remarks)
    torch.testing.assert_close(next(last.run([row])).activations, wanted[5])
    for run in range(1, 6):
        tap = ActivationTap(model, f"{layer}@{run}", tokenizer=make_tokenizer())
        assert tap.layer == f"{layer}@{run}"
        torch.testing.assert_close(next(tap.run([row])).activations, wanted[run])
        assert (tap.fingerprint() == last.fingerprint()) == (run == 5)


def test_a_run_that_does_not_happen_is_refused() -> None:
    with pytest.raises(InputError, match=r"groups\.0@6.*runs 5 times"):
        ActivationTap(make("albert"), "albert_layer_groups.0@6", tokenizer=make_tokenizer())
    with pytest.raises(InputError, match=r"layers\.1@2.*runs 1 time "):
        ActivationTap(make_model("llama"), "layers.1@2", tokenizer=make_tokenizer())
    tap = ActivationTap(make("albert"), "albert_layer_groups.0", tokenizer=make_tokenizer())
    tap.model.encoder.config.num_hidden_layers = 3
    with pytest.raises(InputError, match="ran 3 instead of 5 times"):
        list(tap.run(make_rows(1)))


@pytest.mark.parametrize("family", ["fnet", "nystromformer", "convbert", "mobilebert", "yoso"])
def test_families_that_see_padding_get_none(family: str) -> None:
    model, rows = make(family), make_rows(6)
    padded = ActivationTap(model, "encoder.layer.1", tokenizer=make_tokenizer(), exact_lengths=False)
    assert "exact lengths" in " ".join(padded.remarks)
    exact = ActivationTap(model, "encoder.layer.1", tokenizer=make_tokenizer(), exact_lengths=True)
    assert not exact.remarks
    for found, wanted in zip(padded.run(rows), exact.run(rows), strict=True):
        assert torch.equal(found.activations, wanted.activations)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen2"])
def test_other_families_are_padded_still(family: str) -> None:
    tap = ActivationTap(make_model(family), "layers.1", tokenizer=make_tokenizer(), exact_lengths=False)
    assert not tap.remarks
    list(tap.run([Row("a", "w1 w2 w3 w4")] * 16))
    assert tap.padding_waste > 0.16, "a row of five tokens has six positions"


@pytest.mark.parametrize("max_length", [1, 2, 3, 30])
def test_a_layer_is_tried_within_the_longest_window(max_length: int) -> None:
    made = {"tokenizer": make_tokenizer(bos=False), "max_length": max_length, "exact_lengths": False}
    tap = ActivationTap(make_model("llama"), "layers.1", **made)
    assert next(tap.run([Row("a", "w1 w2 w3 w4")])).activations.shape == (4, 32)


def test_blocks_that_put_positions_first_give_rows() -> None:
    model, rows = make("xlnet"), make_rows(8)
    for exact in (True, False):
        tap = ActivationTap(model, "layer.1", tokenizer=make_tokenizer(), exact_lengths=exact)
        for row, document in zip(rows, tap.run(rows), strict=True):
            wanted = own_states(model, tap, row)[-1]
            torch.testing.assert_close(document.activations, wanted, rtol=1e-4, atol=1e-4)


def test_padding_that_a_model_adds_by_itself_is_left_out() -> None:
    model, rows = make("longformer", attention_window=[8, 8]), make_rows(8)
    tap = ActivationTap(model, "encoder.layer.1", tokenizer=make_tokenizer())
    assert {len(row.text.split()) % 8 for row in rows} > {0, 2, 7}
    for row, document in zip(rows, tap.run(rows), strict=True):
        wanted = own_states(model, tap, row)[-1]
        torch.testing.assert_close(document.activations, wanted, rtol=1e-4, atol=1e-4)


def test_tokens_put_before_a_text_are_not_taken_for_it() -> None:
    class Prompted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            self.layer = torch.nn.Identity()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            rows = input_ids[..., None] * self.weight
            return self.layer(torch.cat([rows[:, :1], rows[:, :1], rows], dim=1))

    with pytest.raises(InputError, match="one vector a token"):
        ActivationTap(Prompted(), "layer", tokenizer=make_tokenizer())


FAMILIES = {
    "qwen3_moe": {},
    "mixtral": {},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
        "first_k_dense_replace": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_mixtures_of_experts_give_the_same_bytes_in_any_company(family: str) -> None:
    tap = ActivationTap(
        make(family, **{**EXPERTS, **FAMILIES[family]}), "layers.3", tokenizer=make_tokenizer()
    )
    rows = make_rows(24)
    together = [document.activations for document in tap.run(rows)]
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(next(tap.run([row])).activations, found)
    backwards = list(tap.run(rows[::-1]))[::-1]
    assert all(torch.equal(a, b.activations) for a, b in zip(together, backwards, strict=True))
    assert tap.padding_waste == 0.0


def test_models_without_experts_are_computed_in_batches() -> None:
    tap = ActivationTap(make("llama"), "layers.1", tokenizer=make_tokenizer())
    counts = [len(batch.documents) for batch in tap.batches([Row(str(n), "a b c d") for n in range(32)])]
    assert counts == [32]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_padded_mixtures_of_experts_stay_within_the_bound_that_is_documented(family: str) -> None:
    model = make(family, **EXPERTS)
    tap = ActivationTap(model, "layers.3", tokenizer=make_tokenizer(), exact_lengths=False)
    rows = make_rows(24)
    together = [document.activations for document in tap.run(rows)]
    for row, found in zip(rows, together, strict=True):
        alone = next(tap.run([row])).activations
        assert float((alone - found).abs().max() / found.abs().max()) < 1e-6
    assert all(torch.equal(a, b.activations) for a, b in zip(together, tap.run(rows), strict=True))


@pytest.mark.parametrize("family", ["xlm", "flaubert"])
def test_of_a_block_in_parts_the_last_gives_what_the_block_gives(family: str) -> None:
    sizes = {"emb_dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 128, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **sizes, pad_index=0)).eval()
    tap, row = ActivationTap(model, last_block(model), tokenizer=make_tokenizer()), make_rows(1)[0]
    torch.testing.assert_close(next(tap.run([row])).activations, own_states(model, tap, row)[-1])
