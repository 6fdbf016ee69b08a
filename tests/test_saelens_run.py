"""The whole way with an autoencoder that sae-lens trained on a real model's activations, and only it saved.

Runs where sae-lens and the demonstration's model are installed (the extras ``peers`` and ``demo``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from finescope.cli import main
from finescope.demo.docstrings import collect_docstrings
from finescope.demo.text import find_model
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.workflow.job import Job
from finescope.workflow.opening import open_given

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BLOCK = 4
LATENTS = 1536


@pytest.fixture(scope="module")
def model() -> str:
    pytest.importorskip("sae_lens", reason="sae-lens isn't installed; pip install sae-lens")
    try:
        return find_model()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings of the standard library and of numpy, and a few of one topic as targets."""
    place = tmp_path_factory.mktemp("job")
    rows = [
        row.to_dict() for row in collect_docstrings(("stdlib", "numpy"), min_per_label=20, max_per_label=24)
    ]
    seeds = [row for row in rows if row["label"] == "numpy.polynomial"][:12]
    assert len(rows) > 300
    for name, chosen in (("corpus", rows), ("seeds", seeds)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return place


@pytest.fixture(scope="module")
def activations(model: str, job: Path) -> torch.Tensor:
    """What block 4 gives for the words of the corpus, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, reader = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    found = []
    for line in (job / "corpus.jsonl").read_text().splitlines():
        inputs = tokenizer(json.loads(line)["text"], return_tensors="pt", truncation=True)
        with torch.no_grad():
            states = reader(**inputs, output_hidden_states=True).hidden_states[BLOCK + 1]
        found.append(states[0, 1:-1])
    return torch.cat(found)


@pytest.fixture(scope="module")
def sae(activations: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JumpReLU of sae-lens, trained by its own trainer and written by its own ``save_inference_model``."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    where = {"model_name": "all-MiniLM-L6-v2", "hook_name": f"encoder.layer.{BLOCK}"}
    untrained = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=activations.shape[1], d_sae=LATENTS, normalize_activations="expected_average_only_in",
            l0_coefficient=2.0, l0_warm_up_steps=200, jumprelu_sparsity_loss_mode="tanh",
            pre_act_loss_coefficient=3e-6, jumprelu_bandwidth=2.0, jumprelu_init_threshold=0.1,
            metadata=SAEMetadata(**where),
        )
    )  # fmt: skip

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(activations)).split(512)

    drawn: Any = (activations[rows] for rows in batches() if len(rows) == 512)
    config = SAETrainerConfig(512 * 600, 512, lr=1e-3, lr_end=1e-4, n_batches_for_norm_estimate=20)
    trained = SAETrainer(config, untrained, drawn).fit()
    place = tmp_path_factory.mktemp("sae") / "jumprelu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.save_inference_model(place)
    return place


def test_its_codes_of_real_activations(model: str, sae: Path, activations: torch.Tensor) -> None:
    from sae_lens import SAE

    theirs = SAE.load_from_disk(sae)
    given = open_given(
        Job.from_dict({"model": model, "sae_path": str(sae), "device": "cpu"}), Reporter(quiet=True)
    )
    assert given.tap.layer == f"encoder.layer.{BLOCK}"
    x = activations[:2000]
    with torch.no_grad():
        wanted, out = theirs.encode(x), theirs(x)
    codes = given.sae.encode_sparse(x).to_dense()
    # In float32 a latent may be on the other side of its threshold; of three million, next to none is.
    same = (codes != 0) == (wanted != 0)
    assert int((~same).sum()) <= 3
    assert float((codes - wanted)[same].abs().max()) <= 1e-4
    assert 2 < float((wanted != 0).sum(1).float().mean()) < LATENTS / 4
    assert float((given.sae.reconstruct(x) - out).abs().median()) <= 1e-5
    assert float((out - x).square().sum() / (x - x.mean(0)).square().sum()) < 0.5


def test_curate_with_it(model: str, sae: Path, job: Path, tmp_path: Path) -> None:
    arguments = [
        "curate", "--model", model, "--sae", sae, "--targets", job / "seeds.jsonl",
        "--corpus", job / "corpus.jsonl", "--out", tmp_path, "-k", 20, "--draws", 0,
        "--label-column", "label",
    ]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert f"jumprelu of saelens, {LATENTS:,} latents" in result.stderr
    report = (tmp_path / "report.html").read_text()
    assert f"trained on all-MiniLM-L6-v2 at encoder.layer.{BLOCK}" in report
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["labels"]
    assert found["target_labels"] == ["numpy.polynomial"]
    assert found["relevant_rows"] == 12, "beside the targets"
    assert found["selected_recall"] >= 0.6, "chance would be 0.02"
