"""Every source must give each token its turn, the same in 3-D and flat form, shuffled by the seed, from any
point on, in memory that doesn't grow with the data, and name the place of what is unusable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finescope.config import SaeConfig, TrainingConfig
from finescope.errors import FineScopeError, InputError
from finescope.sae import train_sae
from finescope.sae.sources import IterableSource, Source, StoreSource, TensorSource, open_source

SAE = SaeConfig(num_latents=32, k=2)


def numbered(count: int, width: int = 4) -> Tensor:
    """Rows [count,width] whose first entry is their number."""
    x = torch.randn(count, width)
    x[:, 0] = torch.arange(count)
    return x


class Again:
    """A re-iterable of batches; counts how many it handed out."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            self.read += 1
            yield part


class Store:
    """What an activation store offers, in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.width, self.num_tokens = x, x.shape[1], len(x)

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield from self.x[torch.randperm(len(self.x), generator=generator)].split(batch_size)


def sources(x: Tensor, cfg: TrainingConfig, tmp_path: Path) -> dict[str, Source]:
    memory = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, tuple(x.shape))
    memory[:] = x.numpy()
    memory.flush()
    read_only = np.load(tmp_path / "x.npy", mmap_mode="r")
    return {
        "tensor": open_source(x, cfg),
        "twisted": open_source(x.t().contiguous().t(), cfg),
        "memmap": open_source(read_only, cfg),
        "store": open_source(Store(x), cfg),
        "iterable": open_source(Again(list(x.split([30, 1, 50, 19]))), cfg),
        "arrays": open_source(Again([part.numpy() for part in x.split(33)]), cfg),
    }


@pytest.mark.parametrize("name", ["tensor", "twisted", "memmap", "store", "iterable", "arrays"])
def test_each_token_once_per_epoch_shuffled_and_from_any_batch_on(tmp_path: Path, name: str) -> None:
    x = numbered(100)
    source = sources(x, TrainingConfig(batch_tokens=10, shuffle_tokens=40), tmp_path)[name]
    first, again, second = (list(source.batches(epoch)) for epoch in (0, 0, 1))
    tokens = torch.cat(first)
    order = tokens[:, 0].long()
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(tokens, x[order])
    assert [len(batch) for batch in first] == [10] * 10
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    sets = [[set(batch[:, 0].tolist()) for batch in epoch] for epoch in (first, second)]
    assert sets[0] != sets[1]
    assert sets[0][0] != set(range(10))  # not in the order of the data
    rest = list(source.batches(0, start=7))
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(first[7:], rest, strict=True))
    assert source.sample(25).shape == (25, 4)
    assert source.sample(1000).shape == (100, 4)
    assert source.width == 4


def test_three_dimensions_and_flat_give_the_same_autoencoder() -> None:
    x = torch.randn(12, 5, 4)
    cube = train_sae(x, SAE, TrainingConfig(batch_size=3, num_epochs=2), progress=False)
    flat = train_sae(x.view(60, 4), SAE, TrainingConfig(batch_size=15, num_epochs=2), progress=False)
    tokens = train_sae(x, SAE, TrainingConfig(batch_tokens=15, num_epochs=2), progress=False)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    twisted = train_sae(strided, SAE, TrainingConfig(batch_size=3, num_epochs=2), progress=False)
    for other in (flat, tokens, twisted):
        for a, b in zip(cube.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_memory_mapped_array_trains_like_the_tensor(tmp_path: Path) -> None:
    x = torch.randn(20, 5, 4).half()
    np.save(tmp_path / "x.npy", x.numpy())
    cfg = TrainingConfig(batch_size=4, num_epochs=2)
    mapped = train_sae(np.load(tmp_path / "x.npy", mmap_mode="r"), SAE, cfg, progress=False)
    plain = train_sae(x, SAE, cfg, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(mapped.parameters(), plain.parameters(), strict=True))


def test_memory_mapped_shards_train_and_resume(tmp_path: Path) -> None:
    from finescope.activations.store import ActivationStore, ActivationStoreWriter
    from finescope.activations.tap import DocumentActivations

    x = torch.randn(30, 7, 4).half()
    with ActivationStoreWriter(tmp_path / "acts", 4, shard_tokens=50) as writer:
        for number, document in enumerate(x):
            writer.add(DocumentActivations(number, f"d{number}", torch.arange(7), document, "memory"))
        writer.finish()
    store = ActivationStore(tmp_path / "acts")
    assert len(list((tmp_path / "acts").glob("*.safetensors"))) > 2
    source = open_source(store, TrainingConfig(batch_tokens=30))
    seen = torch.cat(list(source.batches(0)))
    assert source.steps_per_epoch == 7
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, x.view(210, 4).tolist()))

    cfg = TrainingConfig(batch_tokens=30, num_epochs=2, save_every_steps=3)
    whole = train_sae(store, SAE, cfg, progress=False)

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(store, SAE, cfg, out_dir=tmp_path / "sae", progress=stop)
    again = ActivationStore(tmp_path / "acts")
    resumed = train_sae(again, SAE, cfg, out_dir=tmp_path / "sae", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_masked_tokens_take_no_part() -> None:
    x = torch.randn(10, 6, 4)
    mask = torch.rand(10, 6) < 0.7
    poisoned = x.masked_fill(~mask[..., None], float("nan"))
    cfg = TrainingConfig(batch_tokens=8, num_epochs=2)
    masked = train_sae(poisoned, SAE, cfg, mask=mask, progress=False)
    chosen = train_sae(x[mask], SAE, cfg, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), chosen.parameters(), strict=True))
    for wrong in (mask[:9], mask.float()):
        with pytest.raises(InputError, match=r"mask must be a bool tensor of shape \(10, 6\)"):
            train_sae(x, SAE, cfg, mask=wrong, progress=False)
    with pytest.raises(InputError, match="mask goes with a tensor"):
        train_sae(Again([x]), SAE, cfg, mask=mask, progress=False)


@pytest.mark.parametrize(("count", "sizes"), [(100, [33, 33, 34]), (41, [20, 21]), (7, [7])])
def test_tensors_are_cut_into_equal_batches(count: int, sizes: list[int]) -> None:
    source = TensorSource(numbered(count), TrainingConfig(batch_size=40))
    assert [len(batch) for batch in source.batches(0)] == sizes
    assert source.steps_per_epoch == len(sizes)


@pytest.mark.parametrize(("count", "sizes"), [(100, [40, 40, 20]), (99, [40, 40]), (80, [40, 40]), (3, [3])])
def test_short_ends_of_streams_get_no_step(count: int, sizes: list[int]) -> None:
    cfg = TrainingConfig(batch_tokens=40, shuffle_tokens=90)
    store = StoreSource(Store(numbered(count)), cfg)
    assert [len(batch) for batch in store.batches(0)] == sizes
    assert store.steps_per_epoch == len(sizes)
    stream = IterableSource(Again(list(numbered(count).split(7))), cfg)
    assert [len(batch) for batch in stream.batches(0)] == sizes


def test_iterables_are_read_as_needed_and_mixed_across_items() -> None:
    feed = Again([numbered(10) + 10 * i for i in range(100)])
    source = IterableSource(feed, TrainingConfig(batch_tokens=10, shuffle_tokens=50))
    feed.read = 0
    stream = source.batches(0)
    batch = next(stream)
    assert feed.read == 5  # the buffer, no more
    assert len(set((batch[:, 0] // 10).long().tolist())) > 2
    for _ in range(20):
        next(stream)
    assert feed.read <= 30


def test_a_generator_is_one_epoch() -> None:
    x = numbered(64)

    def generate() -> Iterator[Tensor]:
        yield from x.split(10)

    cfg = TrainingConfig(batch_tokens=16, num_epochs=1)
    once = train_sae(generate(), SAE, cfg, progress=False)
    anew = train_sae(Again(list(x.split(10))), SAE, cfg, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), anew.parameters(), strict=True))
    with pytest.raises(InputError, match="only once"):
        train_sae(generate(), SAE, TrainingConfig(batch_tokens=16, num_epochs=2), progress=False)


def test_iterables_of_samples_are_flattened() -> None:
    x = torch.randn(6, 5, 4)
    cfg = TrainingConfig(batch_tokens=10, num_epochs=1)
    cube = train_sae(Again(list(x.split(2))), SAE, cfg, progress=False)
    flat = train_sae(Again(list(x.view(30, 4).split(10))), SAE, cfg, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(cube.parameters(), flat.parameters(), strict=True))


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.zeros(4), r"\[N,S,D\] or \[B,D\], got torch.float32 \(4,\)"),
        (torch.zeros(2, 3, 4, 5), r"\(2, 3, 4, 5\)"),
        (torch.zeros(3, 4, dtype=torch.int32), "floating-point"),
        (np.zeros((3, 4), dtype=np.int64), "floating-point"),
        (torch.zeros(0, 4), "no tokens"),
        (torch.zeros(3, 0, 4), "no tokens"),
        ([], "no tokens"),
        ([torch.zeros(0, 4)], "no tokens"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], r"item 1 .* width 5, the items before it 4"),
        ([torch.zeros(3, 4), "text"], r"item 1 .* str"),
        ([torch.zeros(3, 4, dtype=torch.int64)], r"item 0 .* torch\.int64"),
        (Store(torch.zeros(0, 4)), "empty"),
        (3, "not int"),
    ],
)
def test_unusable_activations(activations: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_sae(activations, SAE, TrainingConfig(), progress=False)


def poison(x: Tensor, token: int, value: float) -> Tensor:
    x = x.clone()
    x.view(-1, x.shape[-1])[token, 2] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_named_with_their_place(value: float) -> None:
    cfg = TrainingConfig(batch_size=4, num_epochs=2)
    cube = poison(torch.randn(10, 6, 4), 33, value)
    with pytest.raises(InputError, match=r"batch \d of epoch 1: sample 5, token 3 .* dimension 2"):
        train_sae(cube, SAE, cfg, progress=False)
    with pytest.raises(InputError, match=r"batch \d+ of epoch 1: row 33 of the activations, dimension 2"):
        train_sae(cube.view(-1, 4), SAE, cfg, progress=False)
    with pytest.raises(InputError, match="item 3 of the iterable"):
        train_sae(Again(list(cube.view(-1, 4).split(10))), SAE, cfg, progress=False)
    with pytest.raises(InputError, match=r"batch \d+ of epoch 1, row \d+, dimension 2"):
        train_sae(Store(cube.view(-1, 4)), SAE, cfg, progress=False)


def test_nan_outside_the_first_sample_is_found_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finescope.sae.train.SAMPLE_TOKENS", 1)
    x = poison(torch.randn(60, 4), 7, float("nan"))
    with pytest.raises(InputError, match="row 7 of the activations"):
        train_sae(x, SAE, TrainingConfig(batch_size=4, num_epochs=2), progress=False)


def test_nan_leaves_the_last_state_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rotting(Store):
        """Turns bad after the first epoch."""

        def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
            for batch in super().batches(batch_size, seed=seed, epoch=epoch):
                yield batch * float("nan") if epoch == 1 else batch

    cfg = TrainingConfig(batch_tokens=16, num_epochs=2, save_every=1)
    with pytest.raises(InputError, match="epoch 2"):
        train_sae(Rotting(torch.randn(64, 4)), SAE, cfg, out_dir=tmp_path, progress=False)
    from finescope.sae import SparseAutoencoder

    assert bool(torch.isfinite(SparseAutoencoder.load(tmp_path).W_dec).all())


@pytest.mark.parametrize("save_every_steps", [0, 1])
def test_divergence_is_an_error_not_a_result(tmp_path: Path, save_every_steps: int) -> None:
    cfg = TrainingConfig(batch_size=8, num_epochs=3, learning_rate=1e39, save_every_steps=save_every_steps)
    with pytest.raises(FineScopeError, match="lower learning_rate"):
        train_sae(torch.randn(64, 4), SAE, cfg, out_dir=tmp_path, progress=False)
    assert not (tmp_path / "sae.safetensors").exists()


def test_huge_but_finite_activations_are_not_refused() -> None:
    x = torch.randn(32, 4).clamp(-3, 3)
    x[:, 1] = 3e38  # sums of such numbers overflow, the numbers don't
    source = open_source(x, TrainingConfig())
    assert source.num_tokens == 32
    from finescope.sae.train import Trainer

    trainer = Trainer(source, SAE, TrainingConfig(), None)
    assert torch.equal(trainer._checked(x), x)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(InputError, match="'no-such-device'"):
        train_sae(torch.randn(8, 4), SAE, TrainingConfig(device="no-such-device"), progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda'"):
            train_sae(torch.randn(8, 4), SAE, TrainingConfig(device="cuda"), progress=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: np.ones((20, 4), ">f4"), "convert them to float32"),
        (lambda: np.ones((20, 4), np.longdouble), "convert them to float32"),
        (lambda: [torch.randn(20, 4).half(), 1e6 * torch.randn(20, 4)], r"item 1 .*float32, .*float16"),
        (lambda: [torch.zeros(0, 0)], "item 0 of the iterable"),
    ],
)
def test_types_that_would_be_cut_or_cannot_be_read_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_sae(data(), SaeConfig(num_latents=8, k=2), TrainingConfig(num_epochs=1), progress=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_where_the_caller_has_gradients_switched_off(mode: Any) -> None:
    data, cfg = torch.randn(64, 4), TrainingConfig(num_epochs=2)
    wanted = train_sae(data, SaeConfig(num_latents=8, k=2), cfg, progress=False)
    with mode():
        got = train_sae(data, SaeConfig(num_latents=8, k=2), cfg, progress=False)
    assert torch.equal(got.W_dec, wanted.W_dec)
    assert not got.W_dec.is_inference()
