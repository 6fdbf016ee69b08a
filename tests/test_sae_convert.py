"""An autoencoder in another library's files makes the same codes there, or isn't written at all.

A file that loads proves nothing: scales, centres, biases and thresholds have to come along. So what is
written is read by that library's formula, and with ``--run-slow`` by the library itself where it is
installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from finescope.cli import main
from finescope.config import SaeConfig
from finescope.errors import InputError
from finescope.sae import load_sae
from finescope.sae.architectures import TRAINED, architecture_class
from finescope.sae.formats import known
from finescope.sae.formats.checkpoint import Origin
from support import sae_files

DATA = Path(__file__).parent / "data" / "sae"
CASES = sorted(path.parent for path in DATA.rglob("io.safetensors"))
FORMATS: dict[str, Callable[[Path, Any], sae_files.Codes]] = {
    "sparsify": sae_files.sparsify,
    "saelens": sae_files.saelens,
    "dictionary_learning": sae_files.dictionary_learning,
}
# What each format has no word for, of the cases there are.
NOT = {
    "sparsify": ("relu", "batchtopk", "matryoshka", "jumprelu", "gated", "abstopk"),
    "saelens": ("groupmax",),
    "dictionary_learning": ("groupmax", "abstopk"),
}
NOWHERE = ("capped_jumprelu", "cosine", "gated_topk", "lista")
REFUSED = {
    ("sparsify/skip", "saelens"): "skip connections of relu",
    ("sparsify/transcode", "saelens"): "transcoders",
    ("latentsae/skip", "saelens"): "skip connections of relu",
    ("latentsae/skip_lowrank", "saelens"): "skip connections of relu",
    ("sparsify/skip", "dictionary_learning"): "skip connections",
    ("sparsify/transcode", "dictionary_learning"): "transcoders",
    ("latentsae/skip", "dictionary_learning"): "skip connections",
    ("latentsae/skip_lowrank", "dictionary_learning"): "skip connections",
    ("sparsify/multi_topk", "saelens"): "multi_topk",
    ("sparsify/multi_topk", "dictionary_learning"): "multi_topk",
    ("saelens/standard_layer_norm", "dictionary_learning"): "layer norm",
    ("saelens/topk_constant_norm_rescale", "dictionary_learning"): "constant norm",
    ("saelens/topk_constant_norm_rescale", "sparsify"): "normalised",
    ("saelens/batchtopk_bf16", "dictionary_learning"): "bfloat16",
    ("saelens/batchtopk_bf16_training", "dictionary_learning"): "bfloat16",
}


def name(case: Path) -> str:
    return str(case.relative_to(DATA))


def wanted(case: Path, format: str) -> str | None:
    """The words by which a case is refused, or None."""
    architecture = load_sae(case).architecture
    if architecture in NOT[format] or architecture in NOWHERE:
        return f"no {architecture} autoencoders"
    return REFUSED.get((name(case), format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_formula_of_the_other_library_gives_the_same(case: Path, format: str, tmp_path: Path) -> None:
    checkpoint, refused = known.read(case), wanted(case, format)
    if refused is not None:
        with pytest.raises(InputError, match=refused):
            known.convert(checkpoint, format, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        return
    known.convert(checkpoint, format, tmp_path / "new")
    again = load_sae(tmp_path / "new")
    assert again.origin.format == format
    if case == DATA / "sparsify/multi_topk":
        return  # its own library's, and so is what it makes of it
    golden = load_file(case / "io.safetensors")
    if "bf16" not in case.name:  # the formula doesn't round on the way
        features, out = FORMATS[format](tmp_path / "new", golden["x"].double().numpy())
        np.testing.assert_allclose(features, golden["features"].double(), atol=1e-5)
        np.testing.assert_allclose(out, golden["recon"].double(), atol=1e-4)
    codes = again.encode_sparse(golden["x"]).to_dense()
    assert float((codes - golden["features"].float()).abs().max()) <= 1e-5
    assert float((again.reconstruct(golden["x"]).float() - golden["recon"].float()).abs().max()) <= 1e-4


def scaled(case: str, **frame: Any) -> Any:
    """A case whose activations are scaled or centred besides."""
    import dataclasses

    checkpoint = known.read(DATA / case)
    return dataclasses.replace(checkpoint, frame=dataclasses.replace(checkpoint.frame, **frame))


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(("scale", "scale_out"), [(0.3, 0.3), (1.7, 0.6)])
@pytest.mark.parametrize(
    ("case", "format"),
    [
        ("sparsify/topk", "sparsify"),
        ("sparsify/topk", "dictionary_learning"),
        ("saelens/standard", "dictionary_learning"),
        ("saelens/jumprelu", "saelens"),
        ("saelens/jumprelu", "dictionary_learning"),
        ("dictionary_learning/gated_norm", "saelens"),
        ("dictionary_learning/gated_norm", "dictionary_learning"),
        ("saelens/standard_layer_norm", "saelens"),
    ],
)
def test_scales_and_centres_go_into_the_weights(
    case: str, format: str, scale: float, scale_out: float, subtract: bool, tmp_path: Path
) -> None:
    checkpoint = scaled(case, scale=scale, scale_out=scale_out, subtract_b_dec=subtract)
    if checkpoint.frame.normalise == "none":
        checkpoint.tensors["input_mean"] = torch.linspace(-1, 1, 16)
    from finescope.sae.architectures.base import build

    sae = build(checkpoint)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3)) * 2
    known.convert(checkpoint, format, tmp_path / "new")
    features, out = FORMATS[format](tmp_path / "new", x.double().numpy())
    np.testing.assert_allclose(features, sae.encode_sparse(x).to_dense(), atol=2e-5)
    np.testing.assert_allclose(out, sae.reconstruct(x), atol=1e-4)


def test_what_no_weights_can_stand_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mean was taken out"):
        known.convert(scaled("saelens/standard", remove_mean=True), "saelens", tmp_path / "a")
    ranked = known.read(DATA / "sparsify/topk")
    ranked.tensors["value_scale"] = torch.ones(64)
    for format in FORMATS:
        with pytest.raises(InputError, match="worth another"):
            known.convert(ranked, format, tmp_path / "b")
    with pytest.raises(InputError, match="computes in bfloat16"):
        known.convert(scaled("saelens/batchtopk_bf16", scale=2.0), "saelens", tmp_path / "c")
    with pytest.raises(InputError, match="'zip'"):
        known.convert(ranked, "zip", tmp_path / "d")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(InputError, match="isn't empty"):
        known.convert(known.read(DATA / "sparsify/topk"), "sparsify", tmp_path / "full")


def trained(architecture: str, folder: Path) -> Any:
    """An autoencoder as FineScope makes them, with weights that nothing is zero of."""
    cfg = SaeConfig(num_latents=96, k=30, architecture=architecture)
    sae = architecture_class(architecture)(24, cfg, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.2)
        if architecture in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.3)
    sae.origin = Origin(model="gpt2", hook="h.3")
    sae.save(folder)
    return sae


@pytest.mark.parametrize("architecture", TRAINED)
@pytest.mark.parametrize("format", FORMATS)
def test_our_own_for_others(architecture: str, format: str, tmp_path: Path) -> None:
    sae = trained(architecture, tmp_path / "sae")
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(2))
    arguments = ["sae", "convert", str(tmp_path / "sae"), str(tmp_path / "new"), "--format", format]
    result = CliRunner().invoke(main, arguments)
    if format == "sparsify" and architecture != "topk":
        assert result.exit_code == 1
        assert f"sparsify has no {architecture} autoencoders" in result.stderr
        return
    assert result.exit_code == 0, result.stderr
    origin = load_sae(tmp_path / "new").origin
    assert (origin.model, origin.hook) == ("gpt2", "h.3")
    features, out = FORMATS[format](tmp_path / "new", x.double().numpy())
    np.testing.assert_allclose(features, sae.encode_sparse(x).to_dense(), atol=1e-5)
    np.testing.assert_allclose(out, sae.reconstruct(x), atol=1e-4)


def test_a_transcoder_stays_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "w_enc": torch.randn(16, 64, generator=generator),
        "w_dec": torch.randn(64, 24, generator=generator),
        "b_enc": torch.randn(64, generator=generator),
        "b_dec": torch.randn(24, generator=generator),
        "threshold": torch.rand(64, generator=generator),
        "affine_skip_connection": torch.randn(16, 24, generator=generator),
    }
    place = tmp_path / "transcoder/layer_3_width_64"
    place.mkdir(parents=True)
    save_file(tensors, place / "params.safetensors")
    known.convert(known.read(place), "saelens", tmp_path / "new")
    x = torch.randn(20, 16, generator=generator)
    features, out = sae_files.saelens(tmp_path / "new", x.double().numpy())
    p = x @ tensors["w_enc"] + tensors["b_enc"]
    f = torch.relu(p) * (p > tensors["threshold"])
    np.testing.assert_allclose(features, f, atol=1e-5)
    wide = f @ tensors["w_dec"] + tensors["b_dec"] + x @ tensors["affine_skip_connection"]
    np.testing.assert_allclose(out, wide, atol=1e-4)
    said = json.loads((tmp_path / "new/cfg.json").read_text())
    assert (said["architecture"], said["d_out"]) == ("jumprelu_skip_transcoder", 24)
    with pytest.raises(InputError, match="no transcoders"):
        known.convert(known.read(place), "dictionary_learning", tmp_path / "other")


def invoke_info(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["sae", "info", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_info_says_what_the_files_do(tmp_path: Path) -> None:
    said = invoke_info(DATA / "saelens/topk_training")
    assert (said["format"], said["architecture"], said["width"], said["latents"], said["k"]) == (
        "saelens", "topk", 16, 64, 4,
    )  # fmt: skip
    assert (said["model"], said["reads"]) == ("gpt2", "blocks.3.hook_resid_post")
    assert invoke_info(DATA / "llama_scope/residual")["activations"] == "multiplied by 0.2"
    assert invoke_info(DATA / "sparsify")["several"][:2] == ["expansion/layers.0", "groupmax/layers.0"]
    plain = CliRunner().invoke(main, ["sae", "info", str(DATA / "sparsify/topk/layers.0")])
    assert "latents                   64\n" in plain.stdout


def test_info_names_what_is_still_needed(tmp_path: Path) -> None:
    weights = {"W_enc": torch.ones(8, 4), "W_dec": torch.ones(4, 8), "b_enc": torch.ones(8)}
    torch.save(weights | {"b_dec": torch.ones(4)}, tmp_path / "layer7.sae.pt")
    said = invoke_info(tmp_path / "layer7.sae.pt")
    assert list(said["asks for"]) == ["k"]
    assert "k" not in said
    assert said["reads"] == "model.layers.7"
    said = invoke_info(tmp_path / "layer7.sae.pt", "--set", "sae_facts.k=5")
    assert said["k"] == 5
    assert "asks for" not in said
    with pytest.raises(InputError, match="give it as k="):
        known.read(tmp_path / "layer7.sae.pt")
    wrong = CliRunner().invoke(main, ["sae", "info", str(tmp_path), "--set", "k=5"])
    assert wrong.exit_code == 2
    assert "sae_facts" in wrong.stderr


# ---------------------------------------------------------------------- the libraries themselves

LIBRARIES = {
    "sparsify": "eai-sparsify",
    "saelens": "sae-lens",
    "dictionary_learning": "dictionary-learning",
}


def by_library(format: str, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [B,F] and reconstructions of what the library loads."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if format == "sparsify":
            from sparsify import SparseCoder  # type: ignore[import-not-found, unused-ignore]

            sae = SparseCoder.load_from_disk(folder)
            given = sae(x)
            codes = torch.zeros(len(x), sae.num_latents)
            return codes.scatter_(1, given.latent_indices, given.latent_acts), given.sae_out
        if format == "saelens":
            from sae_lens import SAE  # type: ignore[import-not-found, unused-ignore]

            sae = SAE.load_from_disk(folder)
            return sae.encode(x.to(sae.dtype)).float(), sae(x.to(sae.dtype)).float()
        from dictionary_learning.utils import load_dictionary  # type: ignore[import-not-found, unused-ignore]

        sae, _ = load_dictionary(str(folder), "cpu")
        return sae.encode(x), sae.decode(sae.encode(x))


def need(format: str) -> None:
    try:
        importlib.metadata.version(LIBRARIES[format])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{LIBRARIES[format]} isn't installed; pip install {LIBRARIES[format]}")


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_library_itself_gives_the_same(case: Path, format: str, tmp_path: Path) -> None:
    need(format)
    if wanted(case, format) is not None or case == DATA / "sparsify/multi_topk":
        return
    known.convert(known.read(case), format, tmp_path / "new")
    golden = load_file(case / "io.safetensors")
    features, out = by_library(format, tmp_path / "new", golden["x"].float())
    assert float((features - golden["features"].float()).abs().max()) <= 1e-5
    assert float((out - golden["recon"].float()).abs().max()) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("architecture", TRAINED)
def test_the_library_itself_reads_our_own(architecture: str, format: str, tmp_path: Path) -> None:
    """Also what ``save`` writes: 4K of these latents would be more than there are."""
    need(format)
    sae = trained(architecture, tmp_path / "sae")
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(2))
    folders = [tmp_path / "sae"] if format == "sparsify" and architecture == "topk" else []
    if format != "sparsify" or architecture == "topk":
        known.convert(known.read(tmp_path / "sae"), format, tmp_path / "new")
        folders.append(tmp_path / "new")
    for folder in folders:
        features, out = by_library(format, folder, x)
        assert float((features - sae.encode_sparse(x).to_dense()).abs().max()) <= 1e-5
        assert float((out - sae.reconstruct(x)).abs().max()) <= 1e-4
