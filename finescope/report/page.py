"""One self-contained HTML page: no request leaves it, no foreign text or script comes to life in it."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import finescope
from finescope.html import engine
from finescope.progress import duration
from finescope.report.explain import remainder

if TYPE_CHECKING:
    from finescope.report.data import RunData, ShownRow
    from finescope.report.figures import Figure

FOLD_CHARACTERS = 700
"""Characters of a text that are shown before the rest is folded away."""
STRONGEST_LATENTS = 10
"""Latents that are listed above the rows."""
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {}; base-uri 'none'; "
    "form-action 'none'"
)


def render(data: RunData, figures: Sequence[Figure]) -> str:
    """Return the page as a string.

    Whatever comes from data is escaped by the template engine, control characters and marks that reorder
    text are replaced, and right-to-left texts are isolated, so that a corpus row can neither run code, nor
    call home, nor rearrange the page. A content security policy states the same to the browser: no request
    at all, and no script but the page's own, which is named by its hash. Without scripts the page shows the
    same, unsorted.
    """
    from markupsafe import Markup

    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = _POLICY.format(f"'sha256-{digest}'")
    return str(
        environment().get_template("report.html.j2").render(
            run=data,
            figures=[(figure, Markup(figure.svg)) for figure in figures],
            facts=_facts(data),
            labels=sorted({row.label for row in data.rows if row.label is not None}),
            strongest=sorted(data.latents.values(), key=lambda latent: (-abs(latent.mean), latent.number))[
                :STRONGEST_LATENTS
            ],
            version=finescope.__version__,
            policy=Markup(policy),
            style=Markup(asset("style.css")),
            script=Markup(script),
        )
    )  # fmt: skip


def render_proof(proof: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the page of a proof, which has no script; else as ``render``.

    Args:
        proof: ``title``, ``plan``, ``summary`` and ``warnings``, as ``finescope.proof.page`` makes them.
        figures: to be shown.
    """
    from markupsafe import Markup

    return str(
        environment().get_template("proof.html.j2").render(
            proof=proof,
            figures=[(figure, Markup(figure.svg)) for figure in figures],
            version=finescope.__version__,
            policy=Markup(_POLICY.format("'none'")),
            style=Markup(asset("style.css")),
        )
    )  # fmt: skip


@functools.cache
def environment() -> Any:
    """Return the engine of the report's templates, with filters of their own."""
    found = engine.environment("finescope.report")
    found.filters.update(evidence=_evidence, fold=_fold, measures=_measures, rest=_rest, settings=_settings)
    return found


def asset(name: str) -> str:
    """Return a file that stands beside the templates."""
    return resources.files("finescope.report").joinpath("templates").joinpath(name).read_text("utf-8")


def _facts(data: RunData) -> list[tuple[str, str]]:
    facts = [
        (f"{len(data.selected):,}", "rows selected"),
        (f"{data.count:,}", "rows scored"),
        (f"{len(data.target_ids):,}", "targets"),
    ]
    labelled = data.measured.metrics.get("labels")
    if labelled and labelled["selected_precision"] is not None:
        facts.append((f"{labelled['selected_precision']:.1%}", "of the selection on target"))
        own = next((line for line in labelled.get("methods", ()) if line["name"] == data.about.method), None)
        if own is not None:
            facts.append((f"{own['metrics']['average_precision']['value']:.3f}", "average precision"))
    if data.about.seconds is not None:
        facts.append((duration(data.about.seconds), "run time"))
    return facts


# ---------------------------------------------------------------------- filters


def _fold(text: str) -> tuple[str, str]:
    """A text in two: what is shown, and what is folded away."""
    if len(text) <= FOLD_CHARACTERS:
        return text, ""
    end = text.rfind(" ", FOLD_CHARACTERS * 3 // 4, FOLD_CHARACTERS)
    end = FOLD_CHARACTERS if end < 0 else end
    return text[:end], text[end:]


def _measures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures beside average precision that a table of methods shows."""
    names = list(lines[0]["metrics"])
    precision = [name for name in names if name.startswith("precision@")]
    return precision + [name for name in names if name.startswith("lift@")][-1:]


def _rest(row: ShownRow) -> float:
    """What the latents and words that aren't listed add to a row's score."""
    return remainder(row.score, [*(share.value for share in row.shares), *(value for _, value in row.words)])


_KINDS = {"codes": "latents", "constant": "what none accounts for"}


def _evidence(row: ShownRow) -> list[tuple[str, float]]:
    """What every kind of evidence adds to a row's score, by a reader's names for them."""
    return [
        ("mean activations" if space.startswith("dense") else _KINDS.get(space, space), part)
        for space, part in row.parts.items()
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False, default=str)
