"""Progress that never shows, or shows other numbers than those of the run, was a defect of the supplement
(``log_every`` was compared with the epoch). JSON lines, text lines and the bar come from the same records."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import train_sae

SAE = SaeConfig(num_latents=32, k=2)
CFG = TrainingConfig(batch_size=10, num_epochs=3, log_every=4, dead_feature_threshold=20)  # 6 steps per epoch


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(60, 4)


def test_records_come_every_log_every_steps_and_every_epoch(tmp_path: Path, x: torch.Tensor) -> None:
    seen: list[dict[str, Any]] = []
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=seen.append)
    assert [(record["event"], record["step"]) for record in seen] == [
        ("step", 4),
        ("epoch", 6),
        ("step", 8),
        ("step", 12),
        ("epoch", 12),
        ("step", 16),
        ("epoch", 18),
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == seen
    for record in seen:
        assert record["tokens"] == 10 * record["step"]
        assert record["num_epochs"] == 3
        assert 0 < record["fvu"] < 2
        assert 0 < record["l0"] <= 2
        assert 0 <= record["dead_fraction"] <= 1
        assert record["tokens_per_second"] > 0
        assert record["eta_seconds"] >= 0
        weighted = (
            record["fvu"]
            + CFG.l1_weight * record["l1_loss"]
            + CFG.auxk_alpha * record["auxk_loss"]
            + record["multi_topk_fvu"] / 8
        )
        assert record["loss"] == pytest.approx(weighted, rel=1e-5)
    assert seen[-1]["eta_seconds"] == 0
    assert any(record["auxk_loss"] > 0 for record in seen)
    settings = json.loads((tmp_path / "training.json").read_text())
    assert settings["training"]["learning_rate"] == CFG.learning_rate
    assert settings["data"]["tokens"] == 60


def test_means_are_of_the_steps_since_the_last_record(x: torch.Tensor) -> None:
    def losses(log_every: int) -> list[float]:
        cfg = TrainingConfig(batch_size=10, num_epochs=2, log_every=log_every)
        seen: list[dict[str, Any]] = []
        train_sae(x, SAE, cfg, progress=seen.append)
        return [record["loss"] for record in seen if record["event"] == "step"]

    single, triple = losses(1), losses(3)
    assert len(single) == 12
    expected = [sum(single[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert triple == pytest.approx(expected)


def test_lines_go_to_standard_error_where_there_is_no_terminal(
    x: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    train_sae(x, SAE, CFG)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 8
    assert lines[-1].startswith("training: 18 steps in ")
    assert lines[1].startswith("Epoch 1/3: Reconstruction Loss: 0.")
    assert ", L1 Loss: " in lines[1]
    for part in ("step 4/18", "epoch 1/3", "FVU ", "L0 ", "dead ", "tokens/s", "ETA 0:00:"):
        assert part in lines[0]


def test_silence_is_silent(x: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    train_sae(x, SAE, CFG, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("length_known", [True, False])
def test_a_terminal_gets_a_bar_that_is_closed_on_errors(
    x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, length_known: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    cfg = replace(CFG, batch_tokens=10)
    train_sae(x if length_known else list(x.split(10)), SAE, cfg)
    text = terminal.getvalue()
    assert " tokens/s" in text
    assert "Epoch 3/3: Reconstruction Loss" in text
    assert "training: 18 steps in " in text
    if length_known:
        assert "100%" in text
    shown = "\x1b[?25h"  # the cursor, hidden by the bar, is given back
    assert text.count(shown) == 1
    bad = x.clone()
    bad[7] = float("nan")
    monkeypatch.setattr("finescope.sae.train.SAMPLE_TOKENS", 1)
    with pytest.raises(ValueError, match="NaN"):
        train_sae(bad, SAE, cfg)
    assert terminal.getvalue().count(shown) == 2


def test_a_half_written_line_of_a_killed_run_is_dropped(tmp_path: Path, x: torch.Tensor) -> None:
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"event": "st')
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    assert path.read_text() == whole
