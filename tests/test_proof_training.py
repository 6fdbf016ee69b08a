"""Training the upper blocks on stored activations of the lower ones.

Fails if: a loss differs from the whole model's; a step differs from torch's AdamW on the whole model with
its lower part frozen; blocks below change; a snapshot isn't where training goes on from; a model that can't
be cut is trained all the same; budgets or numbers of steps differ between methods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from finescope.errors import InputError
from finescope.proof.training import Reader, batches, filled, mean_loss, train
from finescope.proof.upper import UpperBlocks
from support.tiny_models import make_model

RATE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of this size are done before a second thread has woken up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 120, (length,), generator=generator) for length in lengths]


def upper(blocks: int) -> UpperBlocks:
    return UpperBlocks(copy.deepcopy(make_model("llama-lm")), blocks, dtype=torch.float32)


def whole_loss(model: nn.Module, texts: list[Tensor]) -> Tensor:
    """The mean over tokens, each text by itself, from the model's own logits."""
    losses = [
        nn.functional.cross_entropy(model(input_ids=text[None]).logits[0, :-1], text[1:], reduction="sum")
        for text in texts
    ]
    return torch.stack(losses).sum() / sum(len(text) - 1 for text in texts)


@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_the_loss_is_the_whole_models(blocks: int) -> None:
    texts = rows(5, 2, 17, 9)
    model = upper(blocks)
    assert model.blocks == min(blocks, 3)
    total, count = model.loss(texts, model.below(texts))
    with torch.no_grad():
        wanted = float(whole_loss(make_model("llama-lm"), texts))
    assert count == 29
    assert total / count == pytest.approx(wanted, rel=1e-5)


def test_steps_are_those_of_the_whole_model_with_its_lower_part_frozen() -> None:
    reference = copy.deepcopy(make_model("llama-lm")).requires_grad_(False)
    stack = reference.model.layers
    stack[1:].requires_grad_(True)
    trained = [weight for weight in reference.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0)
    model = upper(2)
    for seed in range(3):
        texts = rows(6, 11, 3, seed=seed)
        optimizer.zero_grad()
        wanted = whole_loss(reference, texts)
        wanted.backward()
        optimizer.step()
        assert model.step(texts, model.below(texts), RATE) == pytest.approx(wanted.item(), rel=1e-5)
    texts = rows(12, 7, seed=9)
    total, count = model.loss(texts, model.below(texts))
    with torch.no_grad():
        assert total / count == pytest.approx(float(whole_loss(reference, texts)), rel=1e-4)


def test_what_lies_below_never_changes_and_a_snapshot_is_gone_back_to() -> None:
    texts = rows(6, 11, 3)
    model = upper(1)
    below = model.below(texts)
    model.step(texts, below, RATE)
    before, state = model.loss(texts, below), model.snapshot()
    after = [model.step(texts, below, RATE) for _ in range(3)]
    assert model.loss(texts, below)[0] < before[0]
    assert all(torch.equal(old, new) for old, new in zip(below, model.below(texts), strict=True))
    model.restore(state)
    assert model.loss(texts, below) == before
    assert [model.step(texts, below, RATE) for _ in range(3)] == after


def test_a_model_that_adds_positions_to_what_it_is_fed_is_refused() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=32, n_layer=3, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config)
    with pytest.raises(InputError, match="Llama"):
        UpperBlocks(model, 1, dtype=torch.float32)


def test_stretches_end_exactly_at_their_points() -> None:
    texts = rows(5, 4, 6, 3)
    first, second = filled(texts, [7, 12])
    assert [row.tolist() for row in first] == [texts[0].tolist(), texts[1][:2].tolist()]
    assert [row.tolist() for row in second] == [texts[2][:5].tolist()]
    (again,) = filled(texts[:2], [15])
    assert [len(row) for row in again] == [5, 4, 5]  # the last token alone teaches nothing
    assert filled([], [10]) == [[]]


@pytest.mark.parametrize("lengths", [[40] * 25, [10] * 100, [*([100] * 8), *([4] * 50)]])
def test_steps_depend_on_tokens_alone(lengths: list[int]) -> None:
    texts = rows(*lengths)
    found = list(batches(texts, 100, np.random.default_rng(0)))
    assert len(found) == 10
    assert sorted(place for places in found for place in places) == list(range(len(texts)))


def test_measured_after_each_stretch_and_twice_the_same() -> None:
    texts, held_out = rows(9, 8, 7, 12, 3, 15), rows(10, 4, 6, seed=5)
    results = []
    for _ in range(2):
        model = upper(2)
        reader = Reader(model)
        seen: list[int] = []
        results.append(
            train(
                model, reader, filled(texts, [20, 40]), 16, lambda step: RATE, np.random.default_rng(1),
                lambda tokens, m=model, r=reader: (tokens, mean_loss(m, r, held_out, 16)), seen.append,
            )
        )  # fmt: skip
        assert sum(seen) == 40
    assert [tokens for tokens, _ in results[0]] == [20, 40]
    assert results[0] == results[1]
    model = upper(2)
    with torch.no_grad():
        wanted = float(whole_loss(make_model("llama-lm"), held_out))
    assert mean_loss(model, Reader(model), held_out, 16) == pytest.approx(wanted, rel=1e-5)
