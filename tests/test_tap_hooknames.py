"""Places that other libraries name: read at another one, an autoencoder gives plausible nonsense.

The meaning of each name is an equation of the block, which holds at one place only. With ``--run-slow`` they
are held against TransformerLens, where it is installed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
)

from finescope.activations.hooknames import is_hook_name, translate
from finescope.activations.layer import Layer
from finescope.errors import InputError

IDS = torch.tensor([[1, 5, 9, 3, 17, 40, 2, 8], [1, 30, 31, 7, 7, 90, 12, 4]])
WIDE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
ROPE: dict[str, Any] = {
    **WIDE,
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
NEOX: dict[str, Any] = {**WIDE, "intermediate_size": 64, "max_position_embeddings": 64}

MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=128, n_embd=32, n_layer=3, n_head=2, n_positions=64)),
    "neox": lambda: GPTNeoXModel(GPTNeoXConfig(**NEOX)),
    "neox-serial": lambda: GPTNeoXModel(GPTNeoXConfig(**NEOX, use_parallel_residual=False)),
    "llama": lambda: LlamaModel(LlamaConfig(**ROPE)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**ROPE)),
    "gemma2": lambda: Gemma2Model(Gemma2Config(**ROPE, head_dim=16)),
    "bert": lambda: BertModel(BertConfig(**WIDE, intermediate_size=64, max_position_embeddings=64)),
}


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> nn.Module:
    torch.manual_seed(11)
    made: nn.Module = MODELS[family]().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # Norms too: with weights of one and biases of zero, before and after them would look alike.
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
            if name.endswith("norm.weight") or "ln_" in name:
                parameter.add_(1)
    return made


def read(model: nn.Module, hook: str) -> Tensor:
    layer = Layer(model, translate(model, hook), torch.device("cpu"), {}, IDS[0].tolist())
    return layer(IDS, torch.ones_like(IDS))


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_what_is_added_to_the_residual_makes_the_next(model: nn.Module, family: str) -> None:
    def at(hook: str) -> Tensor:
        return read(model, f"blocks.1.{hook}")

    before, attended, computed, after = (
        at(f"hook_{place}") for place in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    assert float(attended.norm()) > 1e-2 < float(computed.norm())
    if family == "bert":
        block = model.get_submodule("encoder.layer.1")
        middle = at("hook_resid_mid")
        close(before + attended, middle)
        close(block.get_submodule("attention.output.LayerNorm")(middle) + computed, after)
        normed = block.get_submodule("output.LayerNorm")(after)
        close(normed, at("hook_normalized_resid_post"))
        close(normed, read(model, "blocks.2.hook_resid_pre"))
        return
    close(before + attended + computed, after)
    close(after, read(model, "blocks.2.hook_resid_pre"))
    if family == "neox":
        with pytest.raises(InputError, match="the same residual"):
            at("hook_resid_mid")
        return
    close(before + attended, at("hook_resid_mid"))
    close(at("hook_resid_mid") + computed, after)


def test_inside_attention_and_mlp(model: nn.Module, family: str) -> None:
    block = translate(model, "blocks.1.hook_normalized_resid_post" if family == "bert" else "layer 1")
    inside = model.get_submodule(block)
    names = {
        "gpt2": ("attn.c_proj", "mlp.c_proj"),
        "neox": ("attention.dense", "mlp.dense_4h_to_h"),
        "neox-serial": ("attention.dense", "mlp.dense_4h_to_h"),
        "bert": ("attention.output.dense", "output.dense"),
    }.get(family, ("self_attn.o_proj", "mlp.down_proj"))
    for hook, name, out, norm in zip(
        ("attn.hook_z", "mlp.hook_post"),
        names,
        ("hook_attn_out", "hook_mlp_out"),
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        strict=True,
    ):
        made = inside.get_submodule(name)(read(model, f"blocks.1.{hook}"))
        if family == "gemma2":
            made = inside.get_submodule(norm)(made)
        close(made, read(model, f"blocks.1.{out}"))
    if family != "bert":
        made = inside.get_submodule("mlp")(read(model, "blocks.1.mlp.hook_in"))
        made = inside.get_submodule("post_feedforward_layernorm")(made) if family == "gemma2" else made
        close(made, read(model, "blocks.1.hook_mlp_out"))


def test_embeddings(model: nn.Module, family: str) -> None:
    if family == "bert":
        with pytest.raises(InputError, match="positions"):
            read(model, "hook_embed")
        return
    words = model.get_input_embeddings().weight[IDS]  # type: ignore[operator]
    close(read(model, "hook_embed"), words * (32**0.5 if family == "gemma2" else 1))


def test_names_of_modules(model: nn.Module, family: str) -> None:
    post = "blocks.1.hook_normalized_resid_post" if family == "bert" else "blocks.1.hook_resid_post"
    close(read(model, "layers.1"), read(model, post))
    close(read(model, "model.layers.1"), read(model, post))
    if family != "bert":  # whose blocks have a part called so
        close(read(model, "model.layers.1.output"), read(model, post))
        close(read(model, "resid_post_layer_1"), read(model, post))
    close(read(model, "layers.2.input"), read(model, post))


def test_what_cannot_be_read_is_refused_in_words(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"is of block 12, but the model's blocks are .*\.0 … .*\.2"):
        translate(model, "blocks.12.hook_resid_post")
    with pytest.raises(InputError, match="name it with --layer"):
        translate(model, "blocks.1.ln2.hook_normalized")
    with pytest.raises(InputError, match=r"hook_z\[3\] can't be read"):
        translate(model, "blocks.1.attn.hook_z[3]")
    with pytest.raises(InputError, match="no module"):
        translate(model, "somewhere")


def test_a_module_that_adds_the_residual_itself_is_no_mlp_out() -> None:
    model = BloomModel(BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=2)).eval()
    with pytest.raises(InputError, match=r"can't be read in this model: h\.1\.mlp adds the residual"):
        translate(model, "blocks.1.hook_mlp_out")
    assert translate(model, "blocks.1.hook_resid_post") == "h.1"


def test_what_looks_like_a_place() -> None:
    for name in (
        "blocks.3.hook_z",
        "hook_embed",
        "layers.10",
        "h.3.mlp",
        "model.layers.4.output",
        "layer 5",
        "layers.1@2",
    ):
        assert is_hook_name(name), name
    for name in ("sae", "trainer_0", "average_l0_71", "layer_5", "width_16k", "final_100"):
        assert not is_hook_name(name), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformer_lens_has_the_same_there(model: nn.Module, family: str) -> None:
    pytest.importorskip("transformer_lens", reason="transformer-lens isn't installed; it comes with sae-lens")
    lens = lens_of(model, family)
    _, cache = lens.run_with_cache(IDS)
    places = [
        "hook_resid_pre",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_out",
        "attn.hook_z",
        "mlp.hook_post",
    ]
    places += [] if family == "neox" else ["hook_resid_mid"]
    for place in places:
        found = read(model, f"blocks.1.{place}")
        torch.testing.assert_close(
            cache[f"blocks.1.{place}"].reshape(found.shape), found, rtol=1e-4, atol=1e-4
        )


def lens_of(model: nn.Module, family: str) -> Any:
    """The same weights in a HookedTransformer or HookedEncoder."""
    from types import SimpleNamespace

    from transformer_lens import HookedEncoder, HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as converted

    common: dict[str, Any] = {
        "n_layers": 3, "d_model": 32, "n_heads": 2, "d_head": 16, "d_vocab": 128, "n_ctx": 64, "eps": 1e-5,
    }  # fmt: skip
    whole = {"gpt2": "transformer", "neox": "gpt_neox", "neox-serial": "gpt_neox", "bert": "bert"}
    head = nn.Linear(32, 128)
    wrapped: Any = SimpleNamespace(**{whole.get(family, "model"): model}, lm_head=head, embed_out=head)
    if family == "gpt2":
        cfg = HookedTransformerConfig(**common, d_mlp=128, act_fn="gelu_new", normalization_type="LN")
        state = converted.convert_gpt2_weights(wrapped, cfg)
    elif family.startswith("neox"):
        cfg = HookedTransformerConfig(
            **common, d_mlp=64, act_fn="gelu", normalization_type="LN", positional_embedding_type="rotary",
            rotary_dim=4, rotary_adjacent_pairs=False, parallel_attn_mlp=family == "neox",
        )  # fmt: skip
        state = converted.convert_neox_weights(wrapped, cfg)
    elif family == "bert":
        cfg = HookedTransformerConfig(
            **{**common, "eps": 1e-12}, d_mlp=64, act_fn="gelu", attention_dir="bidirectional",
        )  # fmt: skip
        lens = HookedEncoder(cfg, move_to_device=False)
        wrapped.cls = SimpleNamespace(
            predictions=SimpleNamespace(
                bias=torch.zeros(128),
                transform=SimpleNamespace(dense=nn.Linear(32, 32), LayerNorm=nn.LayerNorm(32)),
                decoder=head,
            ),
            seq_relationship=nn.Linear(32, 2),
        )
        wrapped.bert.pooler = model.get_submodule("pooler")
        lens.load_state_dict(converted.convert_bert_weights(wrapped, cfg), strict=False)
        return lens
    else:
        cfg = HookedTransformerConfig(
            **{**common, "eps": 1e-6}, d_mlp=64, normalization_type="RMS", gated_mlp=True, final_rms=True,
            act_fn="gelu_pytorch_tanh" if family == "gemma2" else "silu", positional_embedding_type="rotary",
            rotary_dim=16, rotary_adjacent_pairs=False, n_key_value_heads=1,
            use_normalization_before_and_after=family == "gemma2",
            attn_scores_soft_cap=50.0 if family == "gemma2" else -1.0,
            attn_scale=256**0.5 if family == "gemma2" else -1.0,
            original_architecture="Gemma2ForCausalLM" if family == "gemma2" else None,
        )  # fmt: skip
        convert = {
            "llama": converted.convert_llama_weights,
            "qwen2": converted.convert_qwen2_weights,
            "gemma2": converted.convert_gemma_weights,
        }[family]
        wrapped.base_model = model
        state = convert(wrapped, cfg)
    lens = HookedTransformer(cfg, move_to_device=False)
    lens.load_state_dict(state, strict=False)
    return lens
