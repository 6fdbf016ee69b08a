"""Accidents to processes that embed: ended at a chosen moment, as kill -9 does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent.parent


def finescope(
    *arguments: object, dies: str = "", before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own.

    Args:
        arguments: of ``finescope``.
        dies: the process ends as a file of this name is about to get its name ("shard-00001.parquet").
        before: run before the command, in its process.
        environment: variables besides those that there are.
    """
    script = f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        rename = os.replace
        def dying(old, new, **options):
            if os.path.basename(new) == {dies!r}:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new, **options)
        os.replace = dying
        from finescope.corpus.plan import Planner
        from finescope.workflow import context
        context.Planner = lambda: Planner(16)
        exec({textwrap.dedent(before)!r})
        import torch
        torch.set_num_threads({torch.get_num_threads()})  # training adds up in another order with others
        from finescope.cli import main
        main({[str(argument) for argument in arguments]!r})
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=TESTS,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def killed(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a process was ended so."""
    return done.returncode == -signal.SIGKILL
