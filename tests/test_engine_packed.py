"""A packed matrix changes the speed and nothing else: saved, mapped, its weights or its machine changed.

A stale or damaged copy would make wrong answers that look right, so what is noticed and what is refused is
pinned down here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finescope import Index, ops
from finescope.config import SaeConfig
from finescope.errors import StoreError
from finescope.ops import PackedMatrix, native
from finescope.ops.packed import PackedCache
from finescope.ops.registry import DEFAULTS
from finescope.sae import SparseAutoencoder
from support.equivalence import assert_same_bytes

CPU = native.module("cpu")


@pytest.fixture(autouse=True)
def _restore_isa() -> Iterator[None]:
    before = CPU.active_isa() if CPU is not None else None
    yield
    if before is not None:
        CPU.set_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("screen", ["auto", "int8", "bf16", "float32", None])
def test_same_bytes(screen: str | None, dtype: torch.dtype) -> None:
    x, matrix, bias = torch.randn(30, 100).to(dtype), torch.randn(2500, 100).to(dtype), torch.randn(2500)
    encoder = PackedMatrix(matrix, metric="encode", screen=screen)
    for part in (x, x[:1]):
        got = encoder.topk_encode(part, bias, 12)
        assert_same_bytes(got, ops.topk_encode(part, matrix, bias, 12))
    for metric in ("cosine", "ip"):
        corpus = PackedMatrix(matrix, metric=metric, screen=screen)
        options = {"mask": torch.rand(2500) < 0.5, "exclude": torch.randint(9, 2509, (30, 3)), "id_offset": 9}
        got = corpus.search(x, 12, min_score=0.01, **options)
        assert_same_bytes(got, ops.cosine_topk(x, matrix, 12, metric=metric, min_score=0.01, **options))


def test_wrong_use() -> None:
    matrix = torch.randn(2000, 32)
    with pytest.raises(ValueError, match="packed for metric 'cosine', not for 'encode'"):
        PackedMatrix(matrix).topk_encode(torch.randn(2, 32), None, 3)
    with pytest.raises(ValueError, match="packed for 'encode', not for a search"):
        PackedMatrix(matrix, metric="encode").search(torch.randn(2, 32), 3)
    with pytest.raises(ValueError, match="metric must be one of"):
        PackedMatrix(matrix, metric="l2")
    with pytest.raises(TypeError, match="matrix must be float16"):
        PackedMatrix(matrix.long())
    with pytest.raises(ValueError, match="k must be at most F=2000"):
        PackedMatrix(matrix, metric="encode").topk_encode(torch.randn(2, 32), None, 2001)


def test_saved_and_mapped(tmp_path: Path) -> None:
    queries, matrix = torch.randn(9, 64), torch.randn(3000, 64)
    PackedMatrix(matrix).save(tmp_path / "corpus.safetensors")
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("corpus.safetensors", "plain")]
    assert modes[0] == modes[1]  # whoever may read other files may read this one
    loaded = PackedMatrix.load(tmp_path / "corpus.safetensors", matrix)
    assert len(loaded) == 3000
    assert_same_bytes(loaded.search(queries, 8), ops.cosine_topk(queries, matrix, 8))


@pytest.mark.requires_native
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    matrix = torch.randn(3000, 64)
    path = tmp_path / "corpus.safetensors"
    PackedMatrix(matrix).save(path)
    with pytest.raises(ValueError, match="does not hold a matrix of shape"):
        PackedMatrix.load(path, matrix[:-1])
    good = load_file(path)["packed"]
    # Row numbers outside the matrix, wherever they stand, must never be followed.
    for damage in (good[:-1].clone(), torch.zeros_like(good), torch.full_like(good, 255), good[:40].clone()):
        save_file({"packed": damage}, path, metadata={"metric": "cosine"})
        with pytest.raises(ValueError, match="does not hold a matrix of shape"):
            PackedMatrix.load(path, matrix)
    pointing_out = good.clone()
    pointing_out[128:] = 127
    save_file({"packed": pointing_out}, path, metadata={"metric": "cosine"})
    with pytest.raises(ValueError, match="does not hold a matrix of shape"):
        PackedMatrix.load(path, matrix)
    save_file({"packed": good}, path, metadata={"metric": "other"})
    with pytest.raises(ValueError, match="does not hold a packed matrix"):
        PackedMatrix.load(path, matrix)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"corpus\.safetensors is truncated or corrupt .*; pack the matrix"):
        PackedMatrix.load(path, matrix)
    with pytest.raises(StoreError, match=r"none\.safetensors does not exist"):
        PackedMatrix.load(tmp_path / "none.safetensors", matrix)
    with pytest.raises(StoreError, match="can't be read: it is a folder"):
        PackedMatrix.load(tmp_path, matrix)


@pytest.mark.requires_native
def test_packed_for_another_instruction_set() -> None:
    queries, matrix = torch.randn(20, 64), torch.randn(2500, 64)
    wanted = ops.cosine_topk(queries, matrix, 8)
    for made in CPU.usable_isas():
        CPU.set_isa(made)
        packed = PackedMatrix(matrix)
        for used in CPU.usable_isas():
            CPU.set_isa(used)
            assert_same_bytes(packed.search(queries, 8), wanted, f"{made} then {used}")


def test_cache_follows_changes() -> None:
    cache, matrix = PackedCache(), torch.randn(2000, 32)
    assert cache.get(matrix, "ip") is None, "packed at first sight"
    first = cache.get(matrix, "ip")
    assert first is not None
    assert cache.get(matrix, "ip") is first
    matrix[7] += 1
    assert cache.get(matrix, "ip") is None, "a change in place went unnoticed"
    assert cache.get(matrix, "ip") is not first
    assert cache.get(matrix.clone(), "ip") is None, "another matrix was taken for this one"


def test_autoencoder() -> None:
    sae, x = SparseAutoencoder(64, SaeConfig(num_latents=2048, k=16)), torch.randn(20, 64)

    def check() -> None:
        with torch.no_grad():
            found = [sae.encode(x) for _ in range(3)]
        wanted = sae.encode(x)  # with gradients: never packed
        for output in found:
            assert torch.equal(output.top_acts, wanted.top_acts)
            assert torch.equal(output.top_indices, wanted.top_indices)

    check()
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.5)
    sae(x).fvu.backward()
    optimizer.step()
    check()
    sae.load_state_dict({name: value * 2 for name, value in sae.state_dict().items()})
    check()
    with torch.no_grad():
        sae.encoder.weight[5] *= 100
    check()
    twin = copy.deepcopy(sae)
    assert torch.equal(twin.encode(x).top_indices, sae.encode(x).top_indices)
    pickle.loads(pickle.dumps(sae))


def test_index() -> None:
    corpus, queries = torch.randn(4000, 48), torch.randn(9, 48)
    wanted = ops.cosine_topk(queries, corpus, 7, exclude=torch.arange(9)[:, None])
    for index in (Index(corpus), Index(corpus[:2500])):
        if len(index) < 4000:
            index.add(corpus[2500:])
        for _ in range(3):
            assert_same_bytes(index.search(queries, 7, exclude=torch.arange(9)[:, None]), wanted)


def test_weights_written_behind_torchs_back_are_packed_anew() -> None:
    # Neither .data nor NumPy raises the version that torch counts; a stale screen would give wrong results.
    x, weight = torch.randn(40, 64), torch.randn(512, 64)
    cache = PackedCache()
    for _ in range(2):
        packed = cache.get(weight, "encode")
    assert packed is not None
    version = weight._version
    weight.data.copy_(torch.randn(512, 64))
    assert weight._version == version
    assert cache.get(weight, "encode") is None
    packed = cache.get(weight, "encode")
    assert packed is not None
    ours = torch.ops.finescope.topk_encode_packed(x, weight, None, packed, 5)
    for left, right in zip(ours, DEFAULTS["topk_encode"](x, weight, None, 5), strict=True):
        assert torch.equal(left, right)
    weight.numpy()[:] = 1.0
    assert cache.get(weight, "encode") is None


@pytest.mark.requires_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_single_changed_element_is_noticed_wherever_it_is(dtype: torch.dtype) -> None:
    weight = torch.randn(3000, 65).to(dtype)
    for matrix in (weight, weight[:, 1:40], weight.t()):
        cache = PackedCache()
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            row, column = (int(torch.randint(size, (), generator=generator)) for size in matrix.shape)
            while cache.get(matrix, "encode") is None:
                pass
            version = matrix._version
            matrix.data[row, column] += 1
            assert matrix._version == version
            assert cache.get(matrix, "encode") is None, f"element {row}, {column}"
        while cache.get(matrix, "encode") is None:
            pass
        # Swaps leave every sum as it was.
        matrix.data[[5, 9]] = matrix.data[[9, 5]]
        assert cache.get(matrix, "encode") is None


@pytest.mark.requires_native
def test_fingerprint_depends_on_every_bit_and_its_place() -> None:
    assert CPU is not None
    for size in (1, 3, 64, 65, 4096, 65536, 65537, 3 * 65536 + 5):
        memory = torch.zeros(size, dtype=torch.uint8)
        seen = {CPU.fingerprint(memory.data_ptr(), size)}
        places = sorted({*range(min(size, 130)), *range(0, size, 4099), size - 1, size // 2})
        for place in places:
            memory[place] = 1
            seen.add(CPU.fingerprint(memory.data_ptr(), size))
            memory[place] = 0
        assert len(seen) == len(places) + 1
    before = torch.get_num_threads()
    memory = torch.randint(0, 256, (1 << 22,), dtype=torch.uint8)
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(CPU.fingerprint(memory.data_ptr(), len(memory)))
    torch.set_num_threads(before)
    assert len(found) == 1


def test_a_latent_switched_off_through_data_stays_off() -> None:
    """What people do to trained autoencoders, unseen by torch: the stale screen would still propose it."""
    sae = SparseAutoencoder(32, SaeConfig(num_latents=3000, k=4))
    x = torch.randn(64, 32)
    with torch.no_grad():
        for _ in range(3):
            values, latents = sae.encode(x).top_acts, sae.encode(x).top_indices
        off = int(latents[0, 0])
        sae.encoder.weight.data[off] = 0.0
        sae.encoder.bias.data[off] = -1.0
        again = sae.encode(x)
        assert not (again.top_indices[again.top_acts > 0] == off).any()
        assert torch.equal(again.top_indices[0, :3], latents[0, 1:])
        on = (off + 1) % 3000
        sae.encoder.weight.data[on] = 100.0 * x[0]
        assert int(sae.encode(x).top_indices[0, 0]) == on
        assert values.shape == again.top_acts.shape
