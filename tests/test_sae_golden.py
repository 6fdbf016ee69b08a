"""Files that the libraries themselves wrote, and the codes and reconstructions that they made.

An autoencoder that is read a little wrong gives plausible codes. So every kind of file is held against
numbers that its own library computed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finescope.sae import load_sae

DATA = Path(__file__).parent / "data" / "sae"
CASES = sorted(path.parent for path in DATA.rglob("io.safetensors"))
ARCHITECTURES = {
    "sparsify": {"topk", "groupmax"},
    "saelens": {"topk", "abstopk", "batchtopk", "jumprelu", "matryoshka", "relu"},
    "dictionary_learning": {"relu", "batchtopk", "gated", "jumprelu", "matryoshka", "topk"},
    "latentsae": {"topk", "abstopk", "capped_jumprelu", "cosine", "gated_topk", "lista"},
    "goodfire": {"relu"},
    "gemma_scope": {"jumprelu"},
    "llama_scope": {"jumprelu"},
}


def name(case: Path) -> str:
    return str(case.relative_to(DATA))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_codes_and_reconstructions_are_the_librarys_own(case: Path, tmp_path: Path) -> None:
    library = case.relative_to(DATA).parts[0]
    wanted = load_file(case / "io.safetensors")
    sae = load_sae(case)
    assert sae.origin.format == library
    assert sae.architecture in ARCHITECTURES[library]
    assert (sae.d_in, sae.num_latents) == (wanted["x"].shape[1], wanted["features"].shape[1])
    codes = sae.encode_sparse(wanted["x"])
    codes.validate()
    features = wanted["features"].float()
    assert torch.equal(codes.to_dense() != 0, features != 0)
    assert float((codes.to_dense() - features).abs().max()) <= 1e-5
    out = sae.reconstruct(wanted["x"])
    assert float((out.float() - wanted["recon"].float()).abs().max()) <= 1e-4
    if sae.frame.wide == 1:
        assert torch.equal(sae.decode(codes, inputs=wanted["x"]), out)

    sae.save(tmp_path)
    again = load_sae(tmp_path)
    assert again.architecture == sae.architecture
    assert again.encode_sparse(wanted["x"]) == codes
    assert torch.equal(again.reconstruct(wanted["x"]), out)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_token_does_not_depend_on_the_others(case: Path) -> None:
    sae = load_sae(case)
    x = load_file(case / "io.safetensors")["x"]
    whole = sae.encode_sparse(x)
    for row in (0, 5, 11):
        assert sae.encode_sparse(x[row : row + 1]) == whole[row]
    assert torch.equal(sae.reconstruct(x)[3:7], sae.reconstruct(x[3:7]))
    assert torch.equal(sae.reconstruct(x.view(3, 4, -1)).view_as(x), sae.reconstruct(x))
    assert len(sae.encode_sparse(x[:0])) == 0


def test_there_are_cases_of_every_library() -> None:
    assert {case.relative_to(DATA).parts[0] for case in CASES} == set(ARCHITECTURES)
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", sorted((DATA / "saelens_checkpoints").iterdir()), ids=lambda path: path.name)
def test_checkpoints_of_a_training_take_raw_activations(case: Path) -> None:
    """What the library folds at the end of a run stands beside the weights until then."""
    weights = load_file(case / "sae_weights.safetensors")
    x = torch.randn(30, 16, dtype=torch.float64) * 3 + 1
    mean, into, back, scale = torch.zeros(16), torch.eye(16), torch.eye(16), 1.0
    if "whitening" in case.name:
        stored = load_file(case / "activation_whitening.safetensors")
        mean, into, back = stored["mean"], stored["matrix"], stored["inverse_matrix"]
    else:
        scale = 0.201966368459304
    seen = (x - mean.double()) @ into.double() * scale
    w = {key: value.double() for key, value in weights.items()}
    p = (seen - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    norms = w["W_dec"].norm(dim=1)
    if "topk" in case.name:
        p = p * norms
        best = torch.relu(p).topk(4)
        features = torch.zeros_like(p).scatter(1, best.indices, best.values)
        out = (features / norms) @ w["W_dec"] + w["b_dec"]
    else:
        features = torch.relu(p)
        out = features @ w["W_dec"] + w["b_dec"]
    out = (out / scale) @ back.double() + mean.double()
    sae = load_sae(case)
    torch.testing.assert_close(sae.encode_sparse(x).to_dense(), features, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(sae.reconstruct(x).double(), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", sorted((DATA / "saelens_narrow").iterdir()), ids=lambda path: path.name)
def test_in_a_narrow_type_every_step_of_a_normalisation_is_rounded(case: Path) -> None:
    """The mean, what is left of it, its length: a latent near its threshold fires by these roundings."""
    made = load_file(case / "made.safetensors")
    sae = load_sae(case)
    assert sae.frame.normalise != "none"
    assert sae.frame.round_to
    codes = sae.encode_sparse(made["x"])
    assert torch.equal(codes.to_dense(), made["features"])
    assert torch.equal(sae.reconstruct(made["x"]).float(), made["recon"])
    given = made["x"].to(sae.dtype)  # as a model in that type gives them: no step is rounded twice
    assert sae.encode_sparse(given) == codes
    assert torch.equal(sae.reconstruct(given).float(), made["recon"])
