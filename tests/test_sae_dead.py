"""Dead latents: the same set by every way of asking, whenever it is asked for."""

from __future__ import annotations

import torch

from finescope.sae.dead import DeadLatents


def test_tokens_since_each_latent_fired() -> None:
    torch.manual_seed(0)
    dead = DeadLatents(40, torch.device("cpu"))
    last = [0] * 40
    for batch in range(1, 8):
        indices = torch.randint(0, 40, (5, 3))
        fired = torch.rand(5, 3) < 0.5
        dead.count(torch.where(fired, indices, 40).view(-1), 5)
        for latent in indices[fired].tolist():
            last[latent] = batch
        wanted = torch.tensor([5 * (batch - at) for at in last])
        assert torch.equal(dead.since_fired[:-1], wanted)
        for threshold in (1, 10, 5 * batch, 100):
            found = dead.mask(threshold).nonzero().squeeze(1)
            assert torch.equal(found, (wanted >= threshold).nonzero().squeeze(1))
        dead.look(10)
        assert torch.equal(dead.latents(10), (wanted >= 10).nonzero().squeeze(1))


def test_a_count_makes_what_was_found_before_it_stale() -> None:
    dead = DeadLatents(3, torch.device("cpu"))
    dead.count(torch.tensor([0]), 1)
    assert dead.latents(1).tolist() == [1, 2]
    dead.count(torch.tensor([2]), 1)
    assert dead.latents(1).tolist() == [0, 1]
