"""Several processes that train together must do what one does: the same losses, the same dead latents, each
with its share of every batch; files by the first alone; and one that fails must end all, and say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope.activations import ActivationStore
from finescope.activations.batches import DocumentActivations
from finescope.activations.store import ActivationStoreWriter
from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import load_sae, train_sae
from finescope.sae.parallel import Ranks
from finescope.sae.sources import IterableSource, StoreSource, TensorSource

WIDTH, LATENTS = 12, 64
CASES: list[dict[str, Any]] = [
    {"architecture": "topk", "multi_topk": True},
    {"architecture": "batchtopk"},
    {"architecture": "matryoshka"},
    {"architecture": "matryoshka", "matryoshka_loss": "sum"},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "sparsity": "step"},
    {"architecture": "jumprelu", "sparsity": "tanh"},
    {"architecture": "relu"},
    {"architecture": "gated"},
]
TERMS = (
    "loss",
    "fvu",
    "reconstruction_loss",
    "l1_loss",
    "auxk_loss",
    "multi_topk_fvu",
    "sparsity_loss",
    "l0",
)


def data() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(403, WIDTH, generator=generator) * torch.linspace(0.5, 2, WIDTH) + 0.3
    x[::50] = 0  # tokens that the means leave out
    return x


def training(**options: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {
        "batch_tokens": 50,
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "dead_feature_threshold": 120,
        "log_every": 1,
        "l1_weight": 0.01,
    }
    return TrainingConfig(**{**defaults, **options})


def shape(case: dict[str, Any]) -> SaeConfig:
    return SaeConfig(**{"num_latents": LATENTS, "k": 4, "multi_topk": False, **case})


# What each process of a group runs: every case in one go, again with a stop after the first epoch, the first
# epoch alone, and the second of what one process began.
PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
import test_train_parallel as test
from finescope.sae import train_sae
from finescope.sae.parallel import launched

with launched("cpu") as (ranks, device):
    assert ranks.size == 2 and device == "cpu"
    for number, case in enumerate(test.CASES):
        for name, stops in (("whole", [2]), ("parts", [1, 2]), ("fewer", [1]), ("more", [2])):
            folder = Path({folder!r}) / name / str(number)
            for epochs in stops:
                cfg = test.training(num_epochs=epochs)
                given = dict(out_dir=folder, progress=False, ranks=ranks)
                sae = train_sae(test.data(), test.shape(case), cfg, **given)
            torch.save(sae.state_dict(), Path({folder!r}) / name / f"{{number}}-{{ranks.rank}}.pt")
"""


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run two processes of a Python program, as ``torchrun --nproc-per-node=2`` does."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *arguments,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, all cases, two epochs: ``whole``, and stopped on the way: ``parts``; ``fewer``
    is for one process to go on with, and ``more`` is what one began."""
    folder = tmp_path_factory.mktemp("together")
    for number, case in enumerate(CASES):
        out = folder / "more" / str(number)
        train_sae(data(), shape(case), training(num_epochs=1), out_dir=out, progress=False)
    script = folder / "program.py"
    script.write_text(PROGRAM.format(here=str(Path(__file__).parent), folder=str(folder)))
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


every_case = pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[" ".join(map(str, c.values())) for c in CASES]
)


def assert_same_losses(one: Path, other: Path) -> None:
    mine, theirs = log(one), log(other)
    assert len(mine) == len(theirs) == 2 * 9 + 2
    for record, again in zip(mine, theirs, strict=True):
        assert record["tokens"] == again["tokens"]
        assert record["dead_fraction"] == again["dead_fraction"]
        for term in TERMS:
            assert again[term] == pytest.approx(record[term], rel=1e-6, abs=1e-7), (term, record["step"])


@every_case
def test_two_processes_have_the_losses_of_one(number: int, together: Path, tmp_path: Path) -> None:
    sae = train_sae(data(), shape(CASES[number]), training(), out_dir=tmp_path, progress=False)
    assert_same_losses(tmp_path, together / "whole" / str(number))
    first, second = (torch.load(together / "whole" / f"{number}-{rank}.pt") for rank in (0, 1))
    for name, tensor in sae.state_dict().items():
        assert torch.equal(first[name], second[name]), name  # processes don't drift apart
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


@every_case
def test_a_run_goes_on_with_another_number_of_processes(number: int, together: Path) -> None:
    fewer, more, whole = (together / name / str(number) for name in ("fewer", "more", "whole"))
    train_sae(data(), shape(CASES[number]), training(), out_dir=fewer, progress=False)
    assert_same_losses(whole, fewer)
    assert_same_losses(whole, more)
    limits = [load_sae(folder).state_dict().get("threshold") for folder in (fewer, more, whole)]
    if limits[-1] is not None:
        assert float(limits[-1].max()) > 0
        for limit in limits[:2]:
            torch.testing.assert_close(limit, limits[-1], rtol=1e-5, atol=1e-7)


def test_dead_latents_were_among_what_was_compared(together: Path) -> None:
    assert any(record["auxk_loss"] > 0 for record in log(together / "whole" / "0"))


def test_a_run_that_goes_on_is_the_run_that_never_stopped(together: Path) -> None:
    for number, case in enumerate(CASES):
        parts, whole = (torch.load(together / name / f"{number}-1.pt") for name in ("parts", "whole"))
        assert all(torch.equal(parts[name], whole[name]) for name in whole), case
        state, again = (together / name / str(number) / "trainer.safetensors" for name in ("parts", "whole"))
        assert state.read_bytes() == again.read_bytes(), case


# ---------------------------------------------------------------------- shares


def make_store(folder: Path, x: Tensor) -> ActivationStore:
    with ActivationStoreWriter(folder, x.shape[1], dtype=torch.float32, shard_tokens=700) as writer:
        for number, rows in enumerate(x.split(90)):
            ids = torch.arange(len(rows))
            writer.add(DocumentActivations(number, f"d{number}", ids, rows, "memory"))
        writer.finish()
    return ActivationStore(folder)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_shares_of_a_store_make_up_its_batches_and_are_read_apart(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.arange(4_000.0)[:, None].expand(-1, 3).contiguous()
    monkeypatch.setattr("finescope.activations.store._BUFFER_BYTES", 1_500 * 12)
    store = make_store(tmp_path, x)
    for seed in (0, 1):
        whole = [batch[:, 0].tolist() for batch in store.batches(300, seed=seed, epoch=2)]
        parts = [
            [share[:, 0].tolist() for share in store.shares(300, seed=seed, epoch=2, rank=rank, ranks=size)]
            for rank in range(size)
        ]
        assert [sorted(chain(*shares)) for shares in zip(*parts, strict=True)] == list(map(sorted, whole))
        places = [sorted(chain(*shares)) for shares in parts]
        ends = [(place[0], place[-1]) for place in places if place]
        assert all(low[1] < high[0] for low, high in pairwise(ends))  # ranges, one behind the other
        assert sum(map(len, places)) == 4_000


def test_shares_of_every_source_make_up_its_batches(tmp_path: Path) -> None:
    x = torch.arange(1_030.0)[:, None].expand(-1, 3).contiguous()
    cfg = training(batch_tokens=100, shuffle_tokens=400)
    store = make_store(tmp_path, x)

    class Plain:
        """A store that knows nothing of ranks."""

        width, num_tokens = store.width, store.num_tokens

        def batches(self, batch_size: int, *, seed: int, epoch: int) -> Any:
            return store.batches(batch_size, seed=seed, epoch=epoch)

    def sources() -> list[Any]:
        return [
            TensorSource(x, cfg),
            StoreSource(store, cfg),
            StoreSource(Plain(), cfg),
            IterableSource([x[:500], x[500:]], cfg),
        ]

    for number, source in enumerate(sources()):
        for start in (0, 3):
            whole = [batch[:, 0].tolist() for batch in source.batches(1, start)]
            parts = []
            for rank in range(3):
                part = sources()[number]
                part.ranks = Ranks(rank, 3)
                parts.append([share[:, 0].tolist() for share in part.batches(1, start)])
            assert [sorted(chain(*s)) for s in zip(*parts, strict=True)] == list(map(sorted, whole)), number


def test_the_place_of_what_is_unusable_is_that_in_the_data() -> None:
    x = torch.randn(40, 4)
    source = TensorSource(x, training(batch_tokens=40))
    source.ranks = Ranks(1, 2)
    assert source.place(0, 0, 0).endswith("row 20 of the activations")


# ---------------------------------------------------------------------- the command


def finescope(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return torchrun("-m", "finescope", *arguments, **environment)


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    make_store(tmp_path / "acts", data().repeat(8, 1))
    options = ["--num-latents", "64", "-k", "4", "--epochs", "1", "--set", "training.batch_tokens=512"]
    options += ["--set", "training.log_every=1", "--set", "sae.architecture=batchtopk"]
    given = ["train", str(tmp_path / "acts"), *options]
    done = finescope(*given, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("SAE with 64 latents") == 1
    assert done.stderr.count("training: 64 latents") == 1
    alone = subprocess.run(
        [sys.executable, "-m", "finescope", *given, "--out", str(tmp_path / "one")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stderr
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert load_sae(tmp_path / "two").architecture == "batchtopk"
    again = finescope(*given, "--out", str(tmp_path / "two"))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "training: done before" in again.stderr


def test_a_process_that_fails_ends_all_and_the_reason_is_told(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        """
import sys, torch
from finescope.cli.common import explain
from finescope.errors import FineScopeError
from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import train_sae
from finescope.sae.parallel import launched
x = torch.randn(4000, 8)
cfg = TrainingConfig(batch_tokens=100, num_epochs=500)
try:
    with launched("cpu") as (ranks, _):
        if ranks.rank == 1:
            x[3000] = float("nan")  # in this process's data alone
        train_sae(x, SaeConfig(num_latents=32, k=4), cfg, progress=False, ranks=ranks)
except FineScopeError as error:
    explain("error", str(error))
    sys.exit(1)
"""
    )
    done = torchrun(str(script))
    assert done.returncode != 0
    assert "row 3000 of the activations" in done.stderr


def test_no_thread_of_the_connections_is_left_after_an_error(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        """
import os, pathlib, sys, time
from finescope.errors import FineScopeError
from finescope.sae.parallel import launched

def threads():
    names = (pathlib.Path("/proc/self/task") / task / "comm" for task in os.listdir("/proc/self/task"))
    return [name.read_text().strip() for name in names]

try:
    with launched("cpu") as (ranks, _):
        ranks.take("hello")
        assert any("gloo" in name for name in threads())
        if ranks.first:
            raise OSError("the disk is full")
except OSError:
    said = "the disk is full"
except FineScopeError as error:
    said = str(error)
left = [name for name in threads() if "gloo" in name or "tcp" in name]
(pathlib.Path(sys.argv[1]) / str(ranks.rank)).write_text(f"{said}\\n{left}")
"""
    )
    result = torchrun(str(script), str(tmp_path))
    assert result.returncode == 0, result.stderr
    first, second = ((tmp_path / name).read_text().splitlines() for name in "01")
    assert first == ["the disk is full", "[]"]
    assert "process 1 of 2 stops, because another ended" in second[0]
    assert second[1:] == ["[]"]


def test_other_commands_refuse_to_run_several_times(tmp_path: Path) -> None:
    env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "finescope", *arguments],
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
        )

    done = call("curate", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "'finescope curate' is work for one process, but 2 were started" in done.stderr
    assert not (tmp_path / "out").exists()
    assert call("info").returncode == 0
    assert call("--version").stdout.startswith("finescope")
    assert "Pick the rows" in call("--help").stdout


def test_one_gpu_for_all_is_refused() -> None:
    code = """
import sys, torch
from finescope.sae.parallel import launched
torch.cuda.device_count = lambda: 1
try:
    with launched(sys.argv[1]):
        pass
except ValueError as error:
    print(error)
"""
    for device, message in (
        ("cuda:0", "2 processes can't all train on cuda:0; say cuda"),
        ("cuda", "process 1 of this machine has no GPU of its own, there are 1"),
    ):
        env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, device], capture_output=True, text=True, env=env, timeout=120
        )
        assert message in done.stdout, done.stderr
