"""Writing down what was run, on what, with which versions, and what came out."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import finescope
from finescope.storage.files import write_json, write_text
from finescope.workflow.layout import CODES, CONFIG, MANIFEST, METRICS, SCORES, SELECTION
from finescope.workflow.stage import Stage
from finescope.workflow.stages.select import curated_path
from finescope.workflow.tables import read_selection

if TYPE_CHECKING:
    from finescope.workflow.context import Context

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "transformers", "pyarrow")
_NOTED = ("activations", "sinks", "train", "embed-corpus", "embed-targets", "score")


@dataclass(frozen=True)
class Manifest(Stage):
    """Writes the manifest, which makes the folder that of a finished run, and the job for ``--config``."""

    name = "manifest"
    reads = (SELECTION,)
    writes = (CONFIG, MANIFEST)

    def work(self, context: Context) -> None:
        """Write configuration, versions, inputs, counts and the facts of the stages."""
        made = made_with(context)
        selection = read_selection(context.folder / SELECTION)
        job = context.job
        write_text(context.folder / CONFIG, job.to_yaml())
        write_json(
            context.folder / MANIFEST,
            {
                "format": 1,
                "configuration": job.to_dict(),
                **({"set": context.set_name} if context.set_name else {}),
                "recipe": made["recipe"],
                "selection": selection.config,
                "seed": job.seed,
                "versions": made["versions"],
                "machine": made["machine"],
                "inputs": {name: context.ledger.inputs(f"embed-{name}")["rows"] for name in CODES},
                "counts": {"rows": len(selection.reason), **selection.counts},
                "stages": made["stages"],
                "files": {
                    "curated": curated_path(context).name,
                    "scores": SCORES,
                    "selection": SELECTION,
                    "metrics": METRICS,
                },
            },
        )


def made_with(context: Context) -> dict[str, Any]:
    """Return how a run was made: recipe, seed, versions, machine and the facts of the stages."""
    import torch

    versions = {
        "finescope": finescope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return {
        "recipe": vars(context.job.recipe()),
        "seed": context.job.seed,
        "versions": versions | {name: _version(name) for name in _LIBRARIES},
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        "stages": {name: context.ledger.facts(name) for name in _NOTED},
    }


def _version(name: str) -> str:
    """Return the version of an installed library, which isn't imported for it: that takes seconds."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"
