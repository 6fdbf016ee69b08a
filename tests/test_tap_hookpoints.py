"""Layers are found by the names people use, nothing after them runs, and a wrong name says what there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finescope.activations import ActivationTap, resolve_hookpoint
from finescope.activations.hookpoints import last_block
from finescope.errors import InputError
from support.tiny_models import WIDTH, make_model, make_rows, make_tokenizer


@pytest.mark.parametrize(
    ("family", "name", "found"),
    [
        ("llama", "layers.2", "layers.2"),
        ("llama", "model.layers.2", "layers.2"),
        ("llama", "transformer.h.2", "layers.2"),
        ("llama", "layers.0.mlp", "layers.0.mlp"),
        ("llama-lm", "layers.2", "model.layers.2"),
        ("llama-lm", "model.layers.2.self_attn", "model.layers.2.self_attn"),
        ("gpt2", "layers.1", "h.1"),
        ("gpt2", "transformer.h.1.mlp", "h.1.mlp"),
        ("bert", "layer.1", "encoder.layer.1"),
        ("bert", "layers.1", "encoder.layer.1"),
        ("bert", "bert.encoder.layer.1", "encoder.layer.1"),
        ("bert", "embeddings", "embeddings"),
    ],
)
def test_names_people_use(family: str, name: str, found: str) -> None:
    assert resolve_hookpoint(make_model(family), name) == found


def test_a_wrong_name_lists_blocks_and_nearest_names() -> None:
    with pytest.raises(InputError, match=r"no module 'layers\.9'; its blocks are layers\.0 … ") as caught:
        resolve_hookpoint(make_model("llama"), "layers.9")
    assert "layers.0" in str(caught.value).split("nearest names are")[1]
    with pytest.raises(InputError, match=r"nearest names are .*encoder\.layer\.1"):
        ActivationTap(make_model("bert"), "encoder.lyer.1", tokenizer=make_tokenizer())


def test_an_ambiguous_name_lists_the_candidates() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})
            self.decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})

    with pytest.raises(
        InputError, match=r"several modules; name one of encoder\.layers\.0, decoder\.layers\.0"
    ):
        resolve_hookpoint(Two(), "layers.0")


@pytest.mark.parametrize("layer", ["layers.0", "layers.1.mlp", "embed_tokens", "layers.1.self_attn", "norm"])
def test_nothing_after_the_layer_runs_and_the_hook_is_gone_afterwards(layer: str) -> None:
    model = make_model("llama")
    tap = ActivationTap(model, layer, tokenizer=make_tokenizer())
    before = [len(module._forward_hooks) for module in model.modules()]  # transformers keeps some of its own
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
    ]
    try:
        document = next(tap.run(make_rows(1)))
    finally:
        for handle in handles:
            handle.remove()
    assert document.activations.shape[1] == tap.width == WIDTH
    assert ran[-1] != "", "the model's own forward never ended"
    stop = next((n for n, name in enumerate(ran) if name == layer), len(ran))
    assert ran[stop:] in ([], [layer]), "no module ran after the layer"
    assert ("norm" in ran) == (layer == "norm")
    assert [len(module._forward_hooks) for module in model.modules()] == before
    assert model(input_ids=torch.tensor([[1, 5]])).last_hidden_state.shape == (1, 2, WIDTH)


def test_the_hook_is_removed_when_the_forward_fails() -> None:
    model = make_model("llama")
    tap = ActivationTap(model, "layers.1", tokenizer=make_tokenizer())
    before = [len(module._forward_hooks) for module in model.modules()]
    handle = model.layers[0].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            list(tap.run(make_rows(1)))
    finally:
        handle.remove()
    assert [len(module._forward_hooks) for module in model.modules()] == before


class _Shaped(nn.Module):
    """A model whose layer gives whatever it is told to, and which swallows exceptions, as some do."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.layer, self.idle = nn.Identity(), nn.Identity()
        self.make = make

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        try:
            return self.layer(self.make(input_ids))
        except Exception:
            return None


def test_outputs_of_every_shape_are_unpacked() -> None:
    def hidden(ids: torch.Tensor) -> torch.Tensor:
        return ids[..., None] * torch.ones(3)

    for make in (
        hidden,
        lambda i: (hidden(i), None),
        lambda i: [hidden(i)],
        lambda i: hidden(i).reshape(-1, 3),
    ):
        tap = ActivationTap(_Shaped(make), "layer", tokenizer=make_tokenizer())
        document = next(tap.run(make_rows(1)))
        assert torch.equal(document.activations[:, 1], document.token_ids.float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ids: ids[..., None], "int64.*one vector a token"),
        (lambda ids: torch.zeros(1, 3), "one vector a token"),
        (lambda ids: {"a": None}, "no hidden states"),
        (lambda ids: None, "returns NoneType and no hidden states"),
    ],
)
def test_layers_without_hidden_states_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActivationTap(_Shaped(make), "layer", tokenizer=make_tokenizer())


def test_a_layer_that_never_runs_is_refused() -> None:
    with pytest.raises(InputError, match="'idle' did not run"):
        ActivationTap(_Shaped(lambda ids: ids[..., None].float()), "idle", tokenizer=make_tokenizer())


class _Streams(nn.Module):
    """Blocks that hand on several vectors a token, as DeepSeek-V4's, and a head that makes one of them."""

    class _Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Identity()

        def forward(self, streams: torch.Tensor) -> torch.Tensor:
            return self.norm(streams.flatten(2))[..., :8].clone()

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.head = self._Head()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        streams = self.embed(input_ids)[:, :, None].expand(-1, -1, 4, -1)
        for layer in self.layers:
            streams = layer(streams)
        return self.head(streams)


def towers(kind: str) -> tuple[Any, str]:
    """A model of several stacks, and the last block of the one that a text runs through."""
    import transformers as t

    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    if kind == "llava":
        vision = t.CLIPVisionConfig(
            **small, num_hidden_layers=6, image_size=28, patch_size=14, projection_dim=16
        )
        text = t.LlamaConfig(**small, num_hidden_layers=3, num_key_value_heads=1, vocab_size=40)
        config: Any = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
        return t.AutoModel.from_config(config), "language_model.layers.2"
    if kind == "deep decoder":
        config = t.BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=2,
            decoder_layers=5,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=32,
        )
        return t.AutoModel.from_config(config), "encoder.layers.1"
    if kind.startswith("t5"):
        # Each block is itself a list, of two layers.
        blocks = 1 if kind == "t5 of one block" else 2
        config = t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=blocks, num_heads=2)
        return t.AutoModel.from_config(config), f"encoder.block.{blocks - 1}"
    if kind == "hidden runs":  # of its blocks: it calls their ``forward``, which no hook sees
        config = t.SqueezeBertConfig(
            **small, vocab_size=40, embedding_size=16, num_hidden_layers=2, max_position_embeddings=32
        )
        for name in ("q", "k", "v", "post_attention", "intermediate", "output"):
            setattr(config, f"{name}_groups", 1)
        return t.AutoModel.from_config(config), "encoder"
    if kind == "images last":  # a block that looks at an image has nothing to do on a text
        text = {**small, "vocab_size": 40, "num_hidden_layers": 4, "num_key_value_heads": 1}
        config = t.MllamaConfig(
            text_config={**text, "cross_attention_layers": [1, 3], "pad_token_id": 0},
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 6,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 28,
                "intermediate_layers_indices": [1],
                "vision_output_dim": 32,
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
        )
        return t.AutoModel.from_config(config), "language_model.layers.2"
    if kind == "funnel":  # its encoder shortens the text, and can't run on two tokens
        config = t.FunnelConfig(vocab_size=40, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32)
        return t.FunnelModel(config), "decoder.layers.1"
    if kind == "streams":
        return _Streams(), "head"
    config = t.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return t.AutoModel.from_config(config), "h.0"


@pytest.mark.parametrize(
    "kind",
    [
        "llava",
        "deep decoder",
        "t5 of two blocks",
        "t5 of one block",
        "one block",
        "hidden runs",
        "streams",
        "images last",
        "funnel",
    ],
)
def test_the_default_layer_is_the_last_block_that_a_text_runs_through(kind: str) -> None:
    model, wanted = towers(kind)
    assert last_block(model.eval()) == wanted
    assert not any(module._forward_hooks for module in model.modules())
