"""Shapes, seeds and degenerate batches: 3-D inputs averaged over the wrong axis, MultiTopK that changed the
returned code, and divisions by a zero variance are known defects of other autoencoders."""

from __future__ import annotations

import pytest
import torch

from finescope.config import SaeConfig
from finescope.errors import InputError
from finescope.sae import ForwardOutput, SparseAutoencoder, geometric_median
from finescope.sae.initial import initialise_from_data

CFG = SaeConfig(num_latents=64, k=4)


@pytest.fixture
def sae() -> SparseAutoencoder:
    return SparseAutoencoder(8, CFG, seed=5)


@pytest.mark.parametrize("shape", [(8,), (6, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8), (2, 0, 8)])
def test_any_leading_dimensions_mean_the_same_as_flat_rows(
    sae: SparseAutoencoder, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    acts, indices = sae.encode(x)
    assert acts.shape == indices.shape == (*shape[:-1], 4)
    assert indices.dtype == torch.int64
    flat = sae.encode(x.reshape(-1, 8))
    assert torch.equal(acts.reshape(-1, 4), flat.top_acts)
    assert torch.equal(indices.reshape(-1, 4), flat.top_indices)
    decoded = sae.decode(acts, indices)
    assert decoded.shape == shape
    if x.numel():
        out, rows = sae(x), sae(x.reshape(-1, 8))
        assert out.sae_out.shape == shape
        assert torch.equal(out.sae_out, decoded)
        for name in ("fvu", "l1_loss", "reconstruction_loss", "multi_topk_fvu", "auxk_loss"):
            assert torch.equal(getattr(out, name), getattr(rows, name)), name
            assert getattr(out, name).shape == ()


def test_the_code_is_the_relu_topk_of_the_formula_and_does_not_depend_on_the_batch(
    sae: SparseAutoencoder,
) -> None:
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.encoder.bias.normal_()
    x = torch.randn(30, 8)
    pre = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias)
    values, indices = pre.topk(4)
    acts, latents = sae.encode(x)
    assert torch.equal(latents, indices)
    torch.testing.assert_close(acts, values)
    alone = [sae.encode(row) for row in x]
    assert torch.equal(torch.stack([code.top_acts for code in alone]), acts)
    assert torch.equal(torch.stack([code.top_indices for code in alone]), latents)


def test_multi_topk_never_changes_the_returned_code() -> None:
    x = torch.randn(10, 8)
    on = SparseAutoencoder(8, SaeConfig(num_latents=64, k=4, multi_topk=True), seed=5)(x)
    off = SparseAutoencoder(8, SaeConfig(num_latents=64, k=4, multi_topk=False), seed=5)(x)
    for name in ("sae_out", "latent_acts", "latent_indices", "fvu"):
        assert torch.equal(getattr(on, name), getattr(off, name)), name
    assert on.latent_acts.shape == (10, 4)
    assert 0 < on.multi_topk_fvu.item() != on.fvu.item()
    assert off.multi_topk_fvu.item() == 0


@pytest.mark.parametrize("k", [30, 64])
def test_multi_topk_stops_at_all_latents(k: int) -> None:
    x = torch.randn(10, 8)
    out = SparseAutoencoder(8, SaeConfig(num_latents=64, k=k), seed=5)(x)
    assert out.latent_acts.shape == (10, k)
    if k == 64:
        assert torch.equal(out.multi_topk_fvu, out.fvu)


def test_forward_output_keeps_the_documented_order() -> None:
    # The supplement declared one order and returned another, and so trained on the wrong term.
    assert ForwardOutput._fields == (
        "sae_out",
        "latent_acts",
        "latent_indices",
        "fvu",
        "auxk_loss",
        "l1_loss",
        "reconstruction_loss",
        "multi_topk_fvu",
    )


@pytest.mark.parametrize(
    "x",
    [torch.randn(1, 8), torch.randn(8).expand(5, 8), torch.zeros(5, 8), torch.full((5, 8), 1e-20)],
    ids=["one-token", "equal-tokens", "zeros", "tiny"],
)
def test_batches_without_variance_have_finite_losses_and_gradients(
    sae: SparseAutoencoder, x: torch.Tensor
) -> None:
    out = sae(x, torch.ones(64, dtype=torch.bool))
    loss = out.fvu + out.reconstruction_loss + out.l1_loss + out.multi_topk_fvu + out.auxk_loss
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in sae.parameters())


def test_zero_tokens_do_not_enter_the_normalised_terms(sae: SparseAutoencoder) -> None:
    x = torch.randn(6, 8)
    padded = torch.cat([x, torch.zeros(3, 8)])
    for name in ("l1_loss", "reconstruction_loss"):
        torch.testing.assert_close(getattr(sae(padded), name), getattr(sae(x), name))


def test_nan_tokens_are_seen_in_the_loss(sae: SparseAutoencoder) -> None:
    x = torch.randn(6, 8)
    x[2, 3] = float("nan")
    assert bool(torch.isnan(sae(x).fvu))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = SparseAutoencoder(8, CFG, seed=1), SparseAutoencoder(8, CFG, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.encoder.weight, second.encoder.weight)
    assert not torch.equal(first.encoder.weight, SparseAutoencoder(8, CFG, seed=2).encoder.weight)


def test_the_decoder_starts_tied_and_normalised_if_asked() -> None:
    sae = SparseAutoencoder(8, CFG)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec, sae.encoder.weight)
    torch.testing.assert_close(cosine, torch.ones(64))
    loose = SparseAutoencoder(8, SaeConfig(num_latents=64, k=4, normalize_decoder=False))
    assert torch.equal(loose.W_dec, loose.encoder.weight)
    with torch.no_grad():
        sae.W_dec.mul_(3)
    sae.set_decoder_norm_to_unit_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_half_precision_activations_are_exact_for_the_values_they_hold(sae: SparseAutoencoder) -> None:
    x = torch.randn(5, 8).half()
    assert torch.equal(sae.encode(x).top_acts, sae.encode(x.float()).top_acts)
    assert torch.equal(sae(x).fvu, sae(x.float()).fvu)


def test_parameters_in_half_precision_run_every_term() -> None:
    small = SparseAutoencoder(8, CFG, dtype=torch.bfloat16)
    out = small(torch.randn(5, 8), torch.arange(64) < 3)
    assert out.sae_out.dtype == torch.bfloat16
    assert bool(torch.isfinite(out.fvu + out.auxk_loss + out.multi_topk_fvu))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 9), r"\(3, 9\) don't fit this autoencoder of width 8"),
        (torch.tensor(1.0), "width 8"),
        (torch.zeros(3, 8, dtype=torch.int64), "floating-point"),
    ],
)
def test_refuses_activations_that_do_not_fit(sae: SparseAutoencoder, x: torch.Tensor, message: str) -> None:
    for method in (sae, sae.encode):
        with pytest.raises(InputError, match=message):
            method(x)


def test_refuses_bad_masks_codes_and_sizes(sae: SparseAutoencoder) -> None:
    x = torch.randn(3, 8)
    for mask in (torch.zeros(63, dtype=torch.bool), torch.zeros(64)):
        with pytest.raises(InputError, match=r"dead_mask must be bool \[64\]"):
            sae(x, mask)
    with pytest.raises(InputError, match="one shape"):
        sae.decode(torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises((IndexError, RuntimeError), match="64"):
        sae.decode(torch.ones(1, 1), torch.tensor([[64]]))
    with pytest.raises(InputError, match="only 64"):
        SparseAutoencoder(8, SaeConfig(num_latents=64, k=65))
    with pytest.raises(InputError, match="positive"):
        SparseAutoencoder(0, CFG)


def test_geometric_median_minimises_the_sum_of_distances() -> None:
    points = torch.randn(400, 5, dtype=torch.float64)
    points[:20] += 1000.0  # a few huge tokens, which would drag the mean along
    median = geometric_median(points)

    def cost(at: torch.Tensor) -> float:
        return float((points - at).norm(dim=1).sum())

    assert float(median.norm()) < 0.5 < float(points.mean(0).norm())
    for _ in range(50):
        assert cost(median) <= cost(median + 1e-3 * torch.randn(5, dtype=torch.float64))
    assert geometric_median(points.half()).dtype == torch.float16


def test_geometric_median_of_few_or_equal_points() -> None:
    point = torch.randn(1, 4)
    torch.testing.assert_close(geometric_median(point), point[0])
    torch.testing.assert_close(geometric_median(point.expand(7, 4)), point[0])
    line = torch.tensor([[0.0], [1.0], [10.0]])
    torch.testing.assert_close(geometric_median(line), torch.tensor([1.0]), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="at least 1"):
        geometric_median(torch.zeros(0, 3))


def test_initialisation_centres_and_fits_the_scale(sae: SparseAutoencoder) -> None:
    sample = 50.0 * torch.randn(3000, 8) + 400.0
    initialise_from_data(sae, sample)
    torch.testing.assert_close(sae.b_dec.detach(), torch.full((8,), 400.0), atol=5.0, rtol=0)
    fitted = sae(sample[:2048]).fvu.item()
    assert fitted < 1
    for factor in (0.8, 1.25):
        with torch.no_grad():
            sae.encoder.weight.mul_(factor)
        assert sae(sample[:2048]).fvu.item() > fitted
        with torch.no_grad():
            sae.encoder.weight.div_(factor)
