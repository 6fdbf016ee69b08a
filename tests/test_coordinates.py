"""The paper's coordinates: chosen by the Jacobian's rows, trained on alone, and read by nothing else.

Fails if: the norms aren't those of the Jacobian; an estimate from few directions is far off; the autoencoder
of a run reads a coordinate that wasn't chosen, or its codes aren't those of the one that was trained; scores
of the preset are given of codes that were made otherwise.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel

from finescope import InputError
from finescope.activations import ActivationTap
from finescope.activations.coordinates import choose_coordinates, jacobian_norms, pooled_norms
from finescope.cli import main
from finescope.config import SaeConfig
from finescope.corpus import Row
from finescope.sae import SparseAutoencoder, load_sae
from finescope.sae.spread import spread
from finescope.workflow.job import Job
from support.cli_job import save_run
from support.tiny_models import WIDTH, WORDS, make_model, make_tokenizer

LAYER = "layers.1"
TEXTS = [" ".join(WORDS[at : at + 4]) for at in range(0, 12, 4)]


def tap_of(kind: str) -> ActivationTap:
    model = copy.deepcopy(make_model(kind)).double()
    return ActivationTap(model, LAYER, tokenizer=make_tokenizer(bos=kind != "bert"))


def by_definition(tap: ActivationTap) -> np.ndarray:
    """The root of the mean over tokens of the squared norms of the rows of the whole Jacobian."""
    embeddings, squares, tokens = tap.model.get_input_embeddings(), torch.zeros(WIDTH).double(), 0
    for text in TEXTS:
        ids = torch.tensor(
            [[*tap.windower.prefix, *tap.tokenizer(text, add_special_tokens=False)["input_ids"]]]
        )
        kept = len(tap.windower.prefix)
        inner = getattr(tap.model, "model", tap.model)
        seen: dict[str, torch.Tensor] = {}

        def see(_module, _given, output, seen=seen):
            seen["hidden"] = output[0] if isinstance(output, tuple) else output

        handle = inner.get_submodule(tap.layer).register_forward_hook(see)

        def hidden(given, inner=inner, seen=seen, kept=kept):
            inner(inputs_embeds=given)
            return seen["hidden"][0, kept:]

        with sdpa_kernel(SDPBackend.MATH):
            whole = torch.autograd.functional.jacobian(hidden, embeddings(ids).detach())
        handle.remove()
        squares += whole.reshape(whole.shape[0], WIDTH, -1).square().sum(dim=(0, 2))
        tokens += whole.shape[0]
    return (squares / tokens).sqrt().numpy()


def rows() -> list[Row]:
    return [Row(str(number), text) for number, text in enumerate(TEXTS)]


@pytest.mark.parametrize(("kind", "rounding"), [("llama", 1e-6), ("gpt2", 1e-10)])  # RMSNorm is in float32
def test_with_every_direction_the_norms_are_the_jacobian_s(kind: str, rounding: float) -> None:
    tap = tap_of(kind)
    found = np.zeros(WIDTH)
    length = 4 + len(tap.windower.prefix)
    for at in range(length * WIDTH):  # one element of the embeddings after the other

        def one(given: torch.Tensor, at: int = at) -> torch.Tensor:
            basis = torch.zeros(given.shape[1] * given.shape[2], dtype=given.dtype)
            basis[at] = 1
            return basis.reshape(1, *given.shape[1:]).expand_as(given)

        found += pooled_norms(tap, rows(), one).square().numpy()
    np.testing.assert_allclose(np.sqrt(found), by_definition(tap), rtol=rounding)


def test_few_random_directions_come_near() -> None:
    tap = tap_of("llama")
    exact, found = by_definition(tap), jacobian_norms(tap, rows(), probes=200, seed=0).numpy()
    np.testing.assert_allclose(found, exact, rtol=0.25)
    assert np.corrcoef(found, exact)[0, 1] > 0.7
    again = jacobian_norms(tap, rows(), probes=200, seed=0)
    assert torch.equal(torch.from_numpy(found), again), "the same directions for the same seed"


def test_the_largest_are_chosen() -> None:
    tap = tap_of("llama")
    chosen = choose_coordinates(tap, rows(), 7)
    norms = jacobian_norms(tap, rows(), seed=0)
    assert chosen == sorted(norms.topk(7).indices.tolist())
    assert choose_coordinates(tap, rows(), WIDTH + 1) == list(range(WIDTH))
    with pytest.raises(InputError, match="no token"):
        choose_coordinates(tap, [Row("empty", "")], 3)


def test_neither_threads_nor_batches_have_a_say_in_it() -> None:
    held = [Row(str(at), " ".join(WORDS[at % 5 : at % 5 + 3 + at % 4])) for at in range(30)]
    found, threads = set(), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for batch_tokens in (8, 16, 8192):
                tap = ActivationTap(
                    make_model("gpt2"), "h.1", tokenizer=make_tokenizer(), batch_tokens=batch_tokens
                )
                found.add(tuple(choose_coordinates(tap, held, 8)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_spread_codes_are_those_of_the_coordinates() -> None:
    narrow = SparseAutoencoder(5, SaeConfig(num_latents=40, k=4), seed=3)
    torch.nn.init.normal_(narrow.b_dec, generator=torch.Generator().manual_seed(0))
    place = [0, 3, 4, 9, 11]
    wide = spread(narrow, place, 12)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    one, two = narrow.encode(x[:, place]), wide.encode(x)
    assert torch.equal(one.top_indices, two.top_indices)
    torch.testing.assert_close(one.top_acts, two.top_acts)
    made = torch.zeros(20, 12)
    made[:, place] = narrow.decode(one.top_acts, one.top_indices)
    torch.testing.assert_close(wide.decode(two.top_acts, two.top_indices), made)


def test_a_run_of_the_preset(tmp_path) -> None:
    run = save_run(tmp_path, "--preset", "paper-v3", "--set", "coordinates=9")
    facts = json.loads((run / "manifest.json").read_text())["stages"]["train"]
    chosen = facts["coordinates"]
    assert len(chosen) == 9
    sae = load_sae(run / "sae")
    assert sae.d_in == 32
    assert sae.encoder.weight.abs().sum(dim=0).nonzero().ravel().tolist() == chosen
    again = save_run(tmp_path / "again", "--preset", "paper-v3", "--set", "coordinates=9")
    scores = [(folder / "scores.parquet").read_bytes() for folder in (run, again)]
    assert scores[0] == scores[1]


def test_codes_made_otherwise_are_refused(tmp_path) -> None:
    run = save_run(tmp_path, "--preset", "paper")
    result = CliRunner().invoke(main, ["select", str(run), "--preset", "paper-v3"])
    assert result.exit_code != 0
    assert "needs an autoencoder that was trained for it, on 128 coordinates" in result.stderr
    with pytest.raises(InputError, match="leave sae_path out"):
        Job.from_dict({"preset": "paper-v3", "sae_path": "somewhere"})
    Job.from_dict({"preset": "paper-v3", "coordinates": 0, "sae_path": "somewhere"})
