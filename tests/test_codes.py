"""SparseCodes is what every stage hands to the next: a wrong slice or silent cast would corrupt them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import SparseCodes, StoreError


def random_dense(n: int, f: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.relu(torch.randn(n, f, generator=generator) - 1)
    dense[n // 2] = 0  # an empty row inside
    dense[-1] = 0  # and one at the end
    return dense


@pytest.fixture
def dense() -> torch.Tensor:
    return random_dense(9, 40)


@pytest.fixture
def codes(dense: torch.Tensor) -> SparseCodes:
    return SparseCodes.from_dense(dense)


def test_round_trips(dense: torch.Tensor, codes: SparseCodes) -> None:
    codes.validate()
    assert codes.shape == (9, 40)
    assert codes.nnz == int((dense != 0).sum())
    assert torch.equal(codes.to_dense(), dense)
    assert torch.equal(SparseCodes.from_scipy(codes.to_scipy()).to_dense(), dense)
    assert torch.equal(SparseCodes.from_torch_sparse(codes.to_torch_sparse()).to_dense(), dense)
    assert torch.equal(SparseCodes.from_torch_sparse(dense.to_sparse_coo()).to_dense(), dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_sparse_tensors_of_any_make(dtype: torch.dtype) -> None:
    places = torch.tensor([[2, 0, 0, 2, 1, 2], [1, 3, 0, 1, 2, 0]])  # neither sorted nor distinct
    values = torch.tensor([1, 2, 3, 4, 0, 6], dtype=dtype)
    sparse = torch.sparse_coo_tensor(places, values, (4, 5), check_invariants=True)
    wanted = torch.tensor([[3.0, 0, 0, 2, 0], [0] * 5, [6, 5, 0, 0, 0], [0] * 5])
    codes = SparseCodes.from_torch_sparse(sparse)
    codes.validate()
    assert torch.equal(codes.to_dense().float(), wanted)
    assert codes.values.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert codes.nnz == 4
    if dtype.is_floating_point:
        assert codes == SparseCodes.from_torch_sparse(codes.to_torch_sparse())
    for wrong, message in ((sparse[0], r"\[N, F\]"), (torch.zeros(2, 2, 2).to_sparse(), r"\[N, F\]")):
        with pytest.raises(ValueError, match=message):
            SparseCodes.from_torch_sparse(wrong)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-9, 8), max_size=12), st.data())
def test_getitem_is_dense_indexing(rows: list[int], data: st.DataObject) -> None:
    dense = random_dense(9, 40)
    codes = SparseCodes.from_dense(dense)
    assert torch.equal(codes[rows].to_dense(), dense[rows])
    low, high = data.draw(st.integers(-12, 12)), data.draw(st.integers(-12, 12))
    step = data.draw(st.sampled_from([1, 2, 3]))
    assert torch.equal(codes[low:high:step].to_dense(), dense[low:high:step])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=9, max_size=9)))
    picked = codes[mask]
    picked.validate()
    assert torch.equal(picked.to_dense(), dense[torch.from_numpy(mask)])


def test_int_and_out_of_range(dense: torch.Tensor, codes: SparseCodes) -> None:
    assert torch.equal(codes[-2].to_dense(), dense[-2:-1])
    for bad in (9, -10, [0, 9], np.ones(8, dtype=bool)):
        with pytest.raises(IndexError):
            codes[bad]


def test_cat(dense: torch.Tensor, codes: SparseCodes) -> None:
    assert SparseCodes.cat([codes[:4], codes[4:4], codes[4:]]) == codes
    with pytest.raises(ValueError, match="different numbers of latents"):
        SparseCodes.cat([codes, SparseCodes.from_dense(dense[:, :39])])
    with pytest.raises(ValueError, match="at least one"):
        SparseCodes.cat([])


def test_from_padded() -> None:
    values = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    indices = torch.tensor([[1, 4, -1], [-1, -1, -1]])
    codes = SparseCodes.from_padded(values, indices, 5)
    assert torch.equal(codes.to_dense(), torch.tensor([[0.0, 2.0, 0.0, 0.0, 1.0], [0.0] * 5]))


def test_from_scipy_sums_duplicates_and_drops_zeros() -> None:
    coo = scipy.sparse.coo_matrix(([1.0, 2.0, 0.0], ([0, 0, 1], [3, 3, 2])), shape=(2, 5))
    codes = SparseCodes.from_scipy(coo)
    assert codes.nnz == 1
    assert codes.to_dense()[0, 3] == 3.0


def test_norms_match_float64(dense: torch.Tensor, codes: SparseCodes) -> None:
    torch.testing.assert_close(codes.norms(), dense.double().norm(dim=1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("latents", [40, 70_000])
@pytest.mark.parametrize("mmap", [True, False])
def test_save_load(tmp_path: Path, latents: int, mmap: bool) -> None:
    codes = SparseCodes.from_padded(
        torch.ones(2, 2).half(), torch.tensor([[0, latents - 1], [3, 4]]), latents
    )
    codes.save(tmp_path / "codes.safetensors")
    loaded = SparseCodes.load(tmp_path / "codes.safetensors", mmap=mmap)
    assert loaded == codes
    assert loaded.values.dtype == torch.float16
    assert loaded.indices.dtype == (torch.uint16 if latents <= 65536 else torch.int32)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.safetensors"]


def test_broken_files_are_named(tmp_path: Path, codes: SparseCodes) -> None:
    path = tmp_path / "codes.safetensors"
    with pytest.raises(StoreError, match=r"codes\.safetensors does not exist"):
        SparseCodes.load(path)
    codes.save(path)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError, match=r"codes\.safetensors is truncated or corrupt"):
            SparseCodes.load(path)
    # A latent out of range inside an otherwise whole file must not reach a kernel.
    broken = SparseCodes(codes.indptr, codes.indices.clone(), codes.values, codes.num_latents, check=False)
    broken.indices[0] = 999
    broken.save(path)
    with pytest.raises(StoreError, match="latent 999 in row 0"):
        SparseCodes.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": torch.tensor([0, 2, 1])}, "run from 0"),
        ({"indptr": torch.tensor([0, 3, 2])}, "falls at row 1"),
        ({"indptr": torch.tensor([1, 1, 2])}, "run from 0"),
        ({"indptr": torch.tensor([0, 1, 2], dtype=torch.int32)}, "int64"),
        ({"indices": torch.tensor([0, 5], dtype=torch.int32)}, "latent 5 in row 1"),
        ({"indices": torch.tensor([-1, 0], dtype=torch.int32)}, "latent -1 in row 0"),
        (
            {"indices": torch.tensor([3, 3], dtype=torch.int32), "indptr": torch.tensor([0, 2, 2])},
            "row 0 does not",
        ),
        ({"values": torch.tensor([1.0])}, "values must be"),
        ({"values": torch.tensor([1, 2])}, "values must be"),
    ],
)
def test_validation(change: dict[str, torch.Tensor], message: str) -> None:
    parts = {
        "indptr": torch.tensor([0, 1, 2]),
        "indices": torch.tensor([4, 0], dtype=torch.int32),
        "values": torch.tensor([1.0, 2.0]),
    }
    SparseCodes(**parts, num_latents=5)
    with pytest.raises(ValueError, match=message):
        SparseCodes(**(parts | change), num_latents=5)


def test_latents_that_a_narrow_dtype_would_wrap_are_refused() -> None:
    """65541 is 5 as uint16: the cast must not come before the check."""
    with pytest.raises(ValueError, match=r"latent 65541 in row 1 is outside 0\.\.99"):
        SparseCodes.from_padded(torch.ones(2, 1), torch.tensor([[3], [65_541]]), 100)
    with pytest.raises(ValueError, match="num_latents"):
        # Too many for int32, to which cat and save bring latents.
        SparseCodes(torch.tensor([0, 1]), torch.tensor([1 << 33]), torch.ones(1), 1 << 34)
    with pytest.raises(ValueError, match="one shape"):
        SparseCodes.from_padded(torch.ones(2, 1), torch.zeros(1, 2, dtype=torch.int64), 9)


def test_rows_are_not_chosen_by_fractions_or_words(codes: SparseCodes) -> None:
    for bad in (np.array([0.5, 1.7]), torch.tensor([1.0]), np.array(["1"])):
        with pytest.raises(IndexError, match="integers or a boolean mask"):
            codes[bad]
    assert len(codes[[]]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_value_dtype_can_be_taken_apart(codes: SparseCodes, dtype: torch.dtype) -> None:
    values = codes.values.to(dtype).requires_grad_()
    same = SparseCodes(codes.indptr, codes.indices, values, codes.num_latents)
    picked = same[[4, 1, 1]]
    assert picked.values.dtype == dtype
    assert torch.equal(picked.to_dense(), same.to_dense()[[4, 1, 1]])
    assert same.to_scipy().dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert same.norms().shape == (9,)


def test_complex_matrices_are_refused() -> None:
    with pytest.raises(TypeError, match="complex128"):
        SparseCodes.from_scipy(scipy.sparse.csr_matrix(np.array([[1 + 2j]])))


def test_saving_makes_folders_and_names_a_place_it_cannot_write(tmp_path: Path, codes: SparseCodes) -> None:
    codes.save(tmp_path / "new" / "codes.safetensors")
    assert SparseCodes.load(tmp_path / "new" / "codes.safetensors") == codes
    (tmp_path / "file").write_text("")
    for place in ("file/codes.safetensors", "file/deeper/codes.safetensors", "new", "n" * 300):
        with pytest.raises(StoreError, match=r"can't write .*choose another place"):
            codes.save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["codes.safetensors", "file", "new"]
