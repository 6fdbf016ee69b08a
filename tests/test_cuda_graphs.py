"""Every operation can be captured in a CUDA graph, and a replay computes on what its inputs hold by then.

But for those whose results have a size that only the device knows: no graph can hold them.
"""

from __future__ import annotations

import pytest
import torch

from finescope import SaeConfig
from finescope.optim import SaeAdam
from finescope.sae import SparseAutoencoder
from support import cuda_calls
from support.cuda_calls import arguments, every_queued_call, run
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.ONLY_CUDA


def _write(places: tuple[object, ...], values: tuple[object, ...]) -> None:
    for place, value in zip(places, values, strict=True):
        if isinstance(place, torch.Tensor):
            place.copy_(value)


@every_queued_call
def test_capture_and_replay(call: str) -> None:
    args = arguments(call, 0)
    fresh = {seed: arguments(call, seed) for seed in (1, 2)}
    # Codes of another seed have another number of entries: replays need shapes that are the same.
    same = all(
        not isinstance(a, torch.Tensor) or a.shape == b.shape for a, b in zip(args, fresh[1], strict=True)
    )
    seeds = (1, 2) if same else (0,)
    if not same:
        fresh = {0: arguments(call, 0)}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(call, args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(call, args)
    for seed in (*seeds, seeds[0]):
        wanted = tuple(tensor.cpu() for tensor in run(call, tuple(_copied(fresh[seed]))))
        _write(args, fresh[seed])
        for tensor in got:
            if not any(tensor is arg for arg in args):
                tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bytes(tuple(tensor.cpu() for tensor in got), wanted, f"{call}, seed {seed}")


def _copied(values: tuple[object, ...]) -> list[object]:
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in values]


def test_a_whole_training_step() -> None:
    """Loss, backward and optimiser in one graph: three replays are three more steps."""

    def autoencoder() -> tuple[SparseAutoencoder, SaeAdam]:
        sae = SparseAutoencoder(48, SaeConfig(num_latents=3000, k=16), device="cuda")
        free = [sae.encoder.weight, sae.encoder.bias, sae.b_dec]
        groups = [{"params": free}, {"params": [sae.W_dec], "unit_norm": True}]
        return sae, SaeAdam(groups, capturable=True)

    batches = torch.randn(6, 64, 48, device="cuda")
    x = batches[0].clone()

    def step(sae: SparseAutoencoder, adam: SaeAdam) -> None:
        adam.zero_grad(set_to_none=True)
        sae(x).fvu.backward()
        adam.step()

    eager, captured = autoencoder(), autoencoder()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in batches[:3]:
            x.copy_(batch)
            step(*captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*captured)
    for batch in batches[3:]:
        x.copy_(batch)
        graph.replay()
    for batch in batches:
        x.copy_(batch)
        step(*eager)
    torch.cuda.synchronize()
    assert_same_bytes(
        tuple(p.detach().cpu() for p in captured[0].parameters()),
        tuple(p.detach().cpu() for p in eager[0].parameters()),
    )


def test_the_first_step_and_one_counted_on_the_host_are_not_captured() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    parameter.grad = torch.ones_like(parameter)

    def capture(optimiser: SaeAdam) -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            parameter.grad.fill_(2.0)  # torch warns of a graph without any work
            optimiser.step()

    for capturable, words in ((False, "capturable=True"), (True, "before capturing")):
        optimiser = SaeAdam([parameter], capturable=capturable)
        with pytest.raises(RuntimeError, match=words):
            capture(optimiser)


def test_loss_and_gradients_of_an_autoencoder() -> None:
    """Forward and backward in one graph; the gradients of a replay are those of the batch it is given."""
    sae = SparseAutoencoder(48, SaeConfig(num_latents=3000, k=16, multi_topk=True), device="cuda")
    x = torch.randn(64, 48, device="cuda")

    def step() -> torch.Tensor:
        for parameter in sae.parameters():
            parameter.grad = None
        terms = sae(x)
        loss = terms.fvu + terms.multi_topk_fvu / 8
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    captured = [parameter.grad for parameter in sae.parameters()]
    batch = torch.randn(64, 48, device="cuda")
    x.copy_(batch)
    graph.replay()
    torch.cuda.synchronize()
    got = [loss.detach().clone(), *(grad.clone() for grad in captured)]
    # The next backward runs on another stream; torch warns if it meets nodes that this one's graph keeps.
    del loss
    wanted = [step().detach(), *(parameter.grad for parameter in sae.parameters())]
    assert_same_bytes(tuple(t.cpu() for t in got), tuple(t.cpu() for t in wanted))
