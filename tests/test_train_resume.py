"""A run that was stopped, killed or interrupted and resumed ends with the bytes of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.config import SaeConfig, TrainingConfig
from finescope.errors import InputError, StoreError
from finescope.sae import SparseAutoencoder, train_sae
from finescope.sae import train as train_module

SAE = SaeConfig(num_latents=48, k=3)
# Dead latents, warm-up and a half-filled log window: everything that has a memory is in play.
CFG = TrainingConfig(
    batch_size=16,
    num_epochs=4,
    learning_rate=1e-2,
    save_every=1,
    log_every=3,
    dead_feature_threshold=60,
    lr_warmup_steps=12,
)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(80, 8, generator=torch.Generator().manual_seed(1))  # 5 steps per epoch


class StopHereError(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(record: dict[str, Any]) -> None:
        if record["step"] >= step:
            raise StopHereError

    return progress


def same(first: SparseAutoencoder, second: SparseAutoencoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def records(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("tokens_per_second", "eta_seconds")}
        for line in lines
    ]


def test_seeds_decide_everything(x: torch.Tensor) -> None:
    first, second = (train_sae(x, SAE, CFG, progress=False) for _ in range(2))
    assert same(first, second)
    assert not same(first, train_sae(x, SAE, replace(CFG, seed=7), progress=False))


@pytest.mark.parametrize("stop", [6, 9, 10, 18])
@pytest.mark.parametrize("every_steps", [0, 2])
def test_resumed_equals_never_stopped(tmp_path: Path, x: torch.Tensor, stop: int, every_steps: int) -> None:
    cfg = replace(CFG, save_every_steps=every_steps)
    whole = train_sae(x, SAE, cfg, out_dir=tmp_path / "whole", progress=False)
    with pytest.raises(StopHereError):
        train_sae(x, SAE, cfg, out_dir=tmp_path / "parts", progress=stop_at(stop))
    # The last checkpoint is usable while the run is down.
    assert SparseAutoencoder.load(tmp_path / "parts").num_latents == 48
    steps: list[int] = []
    resumed = train_sae(
        x, SAE, cfg, out_dir=tmp_path / "parts", progress=lambda record: steps.append(record["step"])
    )
    assert steps[0] > 3  # it did resume
    assert same(whole, resumed)
    assert same(whole, SparseAutoencoder.load(tmp_path / "parts"))
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_more_epochs_extend_a_finished_run(tmp_path: Path, x: torch.Tensor) -> None:
    whole = train_sae(x, SAE, CFG, progress=False)
    train_sae(x, SAE, replace(CFG, num_epochs=2), out_dir=tmp_path, progress=False)
    assert same(whole, train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False))
    # Finished: nothing to do, the same weights come back.
    again = train_sae(x, SAE, CFG, out_dir=tmp_path, progress=stop_at(0))
    assert same(whole, again)


def test_a_run_killed_between_its_two_files_mends_itself(tmp_path: Path, x: torch.Tensor) -> None:
    whole = train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    (tmp_path / "sae.safetensors").unlink()
    (tmp_path / ".sae.safetensors.123.tmp").write_bytes(b"half")
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    assert same(whole, SparseAutoencoder.load(tmp_path))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_failed_write_leaves_the_last_state(
    tmp_path: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopHereError):
        train_sae(x, SAE, CFG, out_dir=tmp_path, progress=stop_at(9))
    before = (tmp_path / "trainer.safetensors").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="disk is full"):
            train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    assert (tmp_path / "trainer.safetensors").read_bytes() == before
    resumed = train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    assert same(train_sae(x, SAE, CFG, progress=False), resumed)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes_to_the_bit(tmp_path: Path, x: torch.Tensor, kind: signal.Signals) -> None:
    torch.save(x, tmp_path / "x.pt")
    script = f"""
import os, signal, torch
from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import train_sae
torch.set_num_threads({torch.get_num_threads()})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background work is born without
def progress(record):
    if record["step"] >= 12:
        os.kill(os.getpid(), {int(kind)})
train_sae(torch.load({str(tmp_path / "x.pt")!r}), SaeConfig(**{SAE.to_dict()}),
TrainingConfig(**{CFG.to_dict()}),
          out_dir={str(tmp_path / "run")!r}, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -kind, done.stderr
    assert SparseAutoencoder.load(tmp_path / "run").num_latents == 48
    resumed = train_sae(x, SAE, CFG, out_dir=tmp_path / "run", progress=False)
    assert same(train_sae(x, SAE, CFG, progress=False), resumed)


class Stream:
    """A re-iterable of batches of uneven size."""

    def __init__(self, x: torch.Tensor) -> None:
        self.parts = x.split([7, 13, 1, 29, 30])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.parts)


def test_an_iterable_resumes_to_the_bit_too(tmp_path: Path, x: torch.Tensor) -> None:
    cfg = replace(CFG, batch_tokens=16, shuffle_tokens=40, save_every_steps=2)
    whole = train_sae(Stream(x), SAE, cfg, progress=False)
    with pytest.raises(StopHereError):
        train_sae(Stream(x), SAE, cfg, out_dir=tmp_path, progress=stop_at(9))
    assert same(whole, train_sae(Stream(x), SAE, cfg, out_dir=tmp_path, progress=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, r"training\.learning_rate was 0\.01, now 0\.001"),
        ({"seed": 1}, r"training\.seed"),
        ({"batch_size": 8}, r"training\.batch_size"),
    ],
)
def test_refuses_to_resume_with_other_settings(
    tmp_path: Path, x: torch.Tensor, change: dict[str, Any], message: str
) -> None:
    train_sae(x, SAE, replace(CFG, num_epochs=1), out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match=message):
        train_sae(x, SAE, replace(CFG, **change), out_dir=tmp_path, progress=False)


def test_refuses_to_resume_with_other_data_or_shape_unless_starting_over(
    tmp_path: Path, x: torch.Tensor
) -> None:
    train_sae(x, SAE, replace(CFG, num_epochs=1), out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"data\.rows"):
        train_sae(x + 1, SAE, CFG, out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"data\.tokens was 80, now 79"):
        train_sae(x[:79], SAE, CFG, out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"sae\.k"):
        train_sae(x, replace(SAE, k=2), CFG, out_dir=tmp_path, progress=False)
    fresh = train_sae(x + 1, SAE, CFG, out_dir=tmp_path, resume=False, progress=False)
    assert same(fresh, train_sae(x + 1, SAE, CFG, progress=False))
    assert [record["step"] for record in records(tmp_path)][:2] == [3, 5]


def test_refuses_fewer_epochs_than_were_finished(tmp_path: Path, x: torch.Tensor) -> None:
    train_sae(x, SAE, replace(CFG, num_epochs=3), out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"finished 3 epochs, more than the 2 asked for"):
        train_sae(x, SAE, replace(CFG, num_epochs=2), out_dir=tmp_path, progress=False)


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path, x: torch.Tensor) -> None:
    train_sae(x, SAE, replace(CFG, num_epochs=1), out_dir=tmp_path, progress=False)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) >= 3
    assert len(set(modes.values())) == 1, modes


def test_starting_over_forgets_the_old_state_at_once(tmp_path: Path, x: torch.Tensor) -> None:
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    with pytest.raises(StopHereError):
        train_sae(x, SAE, CFG, out_dir=tmp_path, resume=False, progress=stop_at(3))
    first: list[int] = []
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=lambda record: first.append(record["step"]))
    assert first[0] == 3  # from the start, not from the finished run that was to be forgotten


def test_a_damaged_state_is_named(tmp_path: Path, x: torch.Tensor) -> None:
    train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
    state = tmp_path / train_module.STATE_NAME
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"trainer\.safetensors is damaged.*resume=False"):
        train_sae(x, SAE, CFG, out_dir=tmp_path, progress=False)
