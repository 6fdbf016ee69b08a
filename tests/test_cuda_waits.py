"""No operation waits for the device, but for those whose results have a size that is only known by then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finescope import SaeConfig, TrainingConfig
from finescope.optim import SaeAdam
from finescope.sae import SparseAutoencoder
from finescope.sae.sources import TensorSource
from finescope.sae.train import Trainer
from support import cuda_calls
from support.cuda_calls import arguments, every_queued_call, run

pytestmark = cuda_calls.ONLY_CUDA

# About half a second on any GPU of these years; what is tested takes milliseconds on the host.
VERY_LONG = 1_000_000_000


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    """torch's own waits raise; those of kernels' bindings show by the event below."""
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def _is_queued(work: object) -> bool:
    """Whether ``work`` comes back although what is queued before it takes long."""
    torch.cuda.synchronize()
    torch.cuda._sleep(VERY_LONG)
    before = torch.cuda.Event()
    before.record()
    torch.cuda.set_sync_debug_mode("error")
    work()  # type: ignore[operator]
    torch.cuda.set_sync_debug_mode("default")
    return not before.query()


@every_queued_call
@pytest.mark.usefixtures("_waiting_is_an_error")
def test_an_operation(call: str) -> None:
    args = arguments(call)
    run(call, args)
    assert _is_queued(lambda: run(call, args)), f"{call} waited for the device"


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("multi_topk", [False, True])
@pytest.mark.usefixtures("_waiting_is_an_error")
def test_a_training_step(multi_topk: bool, capturable: bool) -> None:
    sae = SparseAutoencoder(48, SaeConfig(num_latents=3000, k=16, multi_topk=multi_topk), device="cuda")
    free = [sae.encoder.weight, sae.encoder.bias, sae.b_dec]
    groups = [{"params": free}, {"params": [sae.W_dec], "unit_norm": True}]
    adam = SaeAdam(groups, capturable=capturable)
    x = torch.randn(64, 48, device="cuda")

    def step() -> None:
        terms = sae(x)
        (terms.fvu + terms.multi_topk_fvu / 8).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    step()
    assert _is_queued(step), "a training step waited for the device"


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_a_step_of_a_run_with_dead_latents() -> None:
    """The size of AuxK's problem is known from the step before."""
    x = torch.randn(256, 48, device="cuda")
    cfg = TrainingConfig(batch_size=64, dead_feature_threshold=64, device="cuda")
    trainer = Trainer(TensorSource(x, cfg), SaeConfig(num_latents=3000, k=16), cfg, None)
    trainer.prepare(resume=False)
    for _ in range(3):
        trainer._step(x[:64])
    assert len(trainer.dead.latents(64))
    assert _is_queued(lambda: trainer._step(x[:64])), "a step with AuxK waited for the device"


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_encoding_without_gradients() -> None:
    sae = SparseAutoencoder(48, SaeConfig(num_latents=3000, k=16), device="cuda")
    x = torch.randn(64, 48, device="cuda")

    def encode() -> None:
        with torch.no_grad():
            sae.encode(x)

    for _ in range(3):
        encode()
    assert _is_queued(encode), "encoding waited for the device"
