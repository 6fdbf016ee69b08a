"""What the documentation's how-tos say is what happens: their code and commands are run, in their order.

Names of models and autoencoders that only the hub has are replaced by small ones of the same kind. Fails if a
block of Python raises, or a command ends with another code than 0. Blocks titled "needs …" are compiled only
where a package that they name isn't installed; those that need Ray start clusters, and wait for --run-slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from finescope.cli import main
from support.cli_job import save_job
from support.vllm_files import write_requests

PAGES = Path(__file__).resolve().parent.parent / "docs" / "pages"
HOW_TOS = sorted(path.stem for path in (PAGES / "how-to").glob("*.md"))
BLOCK = re.compile(r'^```(python|bash)(?: title="needs ([\w, ]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SCOPE = "layer_20/width_16k/average_l0_71"


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return (language, packages that it needs, code) of a page's blocks."""
    return BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))


def save_gemma(folder: Path) -> Path:
    """Write a Gemma 2 of random weights, 21 thin layers deep, with the tokenizer that lies there."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=21,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    return folder


def save_gemma_scope(folder: Path, width: int = 32, latents: int = 128) -> Path:
    """Write a JumpReLU autoencoder as Gemma Scope lies on the hub."""
    random = np.random.default_rng(0)
    decoder = random.standard_normal((latents, width)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    file = folder / SCOPE / "params.npz"
    file.parent.mkdir(parents=True)
    np.savez(
        file,
        W_enc=decoder.T.copy(),
        W_dec=decoder,
        b_enc=np.zeros(latents, np.float32),
        b_dec=np.zeros(width, np.float32),
        threshold=np.full(latents, 0.5, np.float32),
    )
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands in the place of names that the hub has, and of names to be filled in."""
    job = save_job(tmp_path_factory.mktemp("how-to") / "job")
    gemma = tmp_path_factory.mktemp("gemma") / "gemma-2-2b"
    (job / "model").rename(job / "bert")
    for file in (job / "bert").glob("*token*"):
        gemma.mkdir(exist_ok=True)
        (gemma / file.name).write_bytes(file.read_bytes())
    scope = save_gemma_scope(tmp_path_factory.mktemp("scope") / "gemma-scope-2b-pt-res")
    texts = [json.loads(line)["text"] for line in (job / "corpus.jsonl").read_text().splitlines()]
    write_requests(job / "states", job / "bert", texts, (1, 2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {
        "google/gemma-scope-2b-pt-res": str(scope),
        "google/gemma-2-2b": str(save_gemma(gemma)),
        "corpus.jsonl": str(job / "corpus.jsonl"),
        "seeds.jsonl": str(job / "seeds.jsonl"),
        "MODEL": str(job / "bert"),
        "LAYER": "encoder.layer.0",
        "states/": str(job / "states"),
        "layers.10": "encoder.layer.0",
        "11,20": "1,2",
        "HEAD:6379": f"127.0.0.1:{port}",
        "6379": port,
    }


class Machines:
    """The machines of a Ray cluster: processes of this one, which end with the test."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets must be short

    def start(self, words: Sequence[str]) -> None:
        """Run `ray start` in the foreground, and wait until the machine is there."""
        more = ["--block", "--node-ip-address", "127.0.0.1", "--object-store-memory", str(100 << 20)]
        if "--head" in words:
            more += ["--include-dashboard", "false", "--temp-dir", self._folder]
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.append(process)
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        """End what was started here, and nothing else."""
        for process in reversed(self._running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not somebody's cluster that happens to run here
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a head asks for a token that an earlier Ray has left
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's own 15 a busy machine starves them
    found = Machines()
    yield found
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    found.stop()


@pytest.mark.parametrize("page", [f"how-to/{name}" for name in HOW_TOS] + ["api/index"])
# Ray's own remarks: on its GPUs to come, and on sockets that it leaves to the collector.
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_page_does_what_it_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    there: dict[str, str],
    machines: Machines,
    page: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = blocks(page)
    assert found
    (tmp_path / "data").mkdir()  # where a pipeline that stands in a page finds its documents
    shutil.copy(there["corpus.jsonl"], tmp_path / "data")
    left_out = set[str]()
    for language, needed, code in found:
        compiled = compile(code, f"{page}.md", "exec") if language == "python" else None
        missing = set(_missing(needed.replace(",", "").split(), slow=request.config.getoption("--run-slow")))
        left_out |= missing
        if missing:
            continue
        if compiled is not None:
            exec(compiled, names)
            continue
        for line in code.splitlines():
            program, *words = [_replaced(word, there) for word in shlex.split(line)]
            if program == "ray" and words[0] == "start":
                machines.start(words)
                continue
            assert program == "finescope", line
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"
    if len(left_out) and all(needed for _, needed, _ in found):
        pytest.skip(f"the page needs {', '.join(sorted(left_out))}")


def _missing(packages: Sequence[str], *, slow: bool) -> Iterator[str]:
    """What isn't there of what a block needs."""
    for package in packages:
        if find_spec(package) is None:
            yield f"{package}, which isn't installed"
        elif package == "ray" and not slow:
            yield "--run-slow"


COMMANDS_OF_OTHERS = re.compile(r"`((?:hf|huggingface-cli) [^`]*)`")


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda page: page.stem)
def test_commands_of_the_hub_are_there(page: Path) -> None:
    """The hub's client renames its commands from time to time."""
    ours = metadata.distribution("huggingface_hub").entry_points.select(group="console_scripts")
    for command in COMMANDS_OF_OTHERS.findall(page.read_text(encoding="utf-8")):
        program, *words = shlex.split(command)
        assert program in ours.names, command
        start = f"from {ours[program].module} import {ours[program].attr} as start; start()"
        done = subprocess.run(
            [sys.executable, "-c", start, *words, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def _replaced(word: str, there: dict[str, str]) -> str:
    for name, place in there.items():
        if word == name or word.startswith(f"{name}#"):
            return place + word[len(name) :]
    return word


def test_every_how_to_stands_in_the_menu() -> None:
    menu = (PAGES.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert HOW_TOS
    assert all(f"how-to/{name}.md" in menu for name in HOW_TOS)
