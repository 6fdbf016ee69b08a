"""One self-contained HTML page: no script, no request, every foreign text escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finescope.report.page import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Control characters, lone surrogates (UTF-8 has none), and marks that reorder the text after them.
# Joiners stay: Persian, Indic scripts and emoji need them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MAX_TEXT = 700
_MAX_LONG_TEXT = 20_000


@dataclass(frozen=True)
class LatentShare:
    """A latent's part in one row's score."""

    latent: int
    contribution: float
    """Part of the score that this latent adds; all latents of a row together give the score."""
    hint: str = ""
    """Words typical for the rows in which the latent is strong."""


@dataclass(frozen=True)
class SelectedRow:
    """One selected row as the report shows it."""

    rank: int
    id: str
    text: str
    score: float
    nearest_id: str = ""
    nearest_text: str = ""
    nearest_similarity: float = float("nan")
    latents: Sequence[LatentShare] = ()
    label: str | None = None
    on_target: bool | None = None
    """Whether the label is a target label; None without labels."""


@dataclass(frozen=True)
class Figure:
    """A PNG with its caption."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A small table; columns after the first are numbers and aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: int | None = None
    """Row that is set in bold."""


@dataclass
class Report:
    """Everything on the page, in reading order."""

    title: str
    subtitle: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Key numbers for the cards on top: value and name."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """What was asked: name and value."""
    warnings: list[str] = field(default_factory=list)
    verdict: str = ""
    """One paragraph about how far the numbers can be trusted."""
    methods: Table | None = None
    methods_note: str = ""
    averaged: Table | None = None
    """The methods averaged over several target domains."""
    averaged_note: str = ""
    quality: Table | None = None
    figures: list[Figure] = field(default_factory=list)
    rows: list[SelectedRow] = field(default_factory=list)
    total_selected: int = 0
    rows_note: str = ""
    settings: str = ""
    """Full configuration as text."""


def render(report: Report) -> str:
    """Return the page as a string.

    Every text that comes from data is escaped, control characters are replaced, and right-to-left texts are
    isolated, so that a corpus row can neither run code, nor call home, nor rearrange the page. A content
    security policy that allows only inlined styles and images states the same to the browser.
    """
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{text(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
        f"<header><h1>{text(report.title)}</h1><p>{text(report.subtitle)}</p></header>",
        _facts(report.facts),
        "".join(f'<p class="warn">{text(warning)}</p>' for warning in report.warnings),
        _section("What was asked", _pairs(report.asked)),
        _section("How good is the selection?", _trust(report)),
        _section("Figures", "".join(_figure(item) for item in report.figures)),
        _section("Selected rows", _rows(report)),
        _section("Settings", _settings(report.settings)),
        "</main>\n</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def text(value: object, lines: bool = False) -> str:
    """Return ``value`` escaped for HTML, without control characters; ``lines`` keeps line ends and tabs."""
    plain = _UNSAFE.sub("\ufffd", str(value).replace("\r\n", "\n"))
    if not lines:
        plain = " ".join(plain.split())
    return html.escape(plain, quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def _settings(settings: str) -> str:
    if not settings:
        return ""
    return f"<details><summary>Full configuration</summary><pre>{text(settings, True)}</pre></details>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    cards = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for value, name in facts)
    return f'<div class="facts">{cards}</div>' if cards else ""


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return f"<dl>{body}</dl>" if body else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{text(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr{' class=best' if at == table.highlight else ''}>{_cells(row)}</tr>"
        for at, row in enumerate(table.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{text(cell)}</td>" for cell in row)


def _trust(report: Report) -> str:
    parts = [f"<p>{text(report.verdict)}</p>" if report.verdict else ""]
    if report.methods is not None:
        parts.append(_table(report.methods))
    if report.methods_note:
        parts.append(f'<p class="note">{text(report.methods_note)}</p>')
    if report.averaged is not None:
        parts.append(f"<p>{text(report.averaged_note)}</p>{_table(report.averaged)}")
    if report.quality is not None:
        parts.append(_table(report.quality))
    return "".join(parts)


def _figure(item: Figure) -> str:
    data = base64.b64encode(item.path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{text(item.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text(item.caption)}</figcaption></figure>"
    )


def _rows(report: Report) -> str:
    if not report.rows:
        return "<p>No row was selected.</p>"
    parts = [f'<p class="note">{text(report.rows_note)}</p>' if report.rows_note else ""]
    parts.extend(_row(row) for row in report.rows)
    hidden = report.total_selected - len(report.rows)
    if hidden > 0:
        parts.append(f'<p class="note">{hidden:,} more selected rows are in the curated file.</p>')
    return "\n".join(parts)


def _row(row: SelectedRow) -> str:
    badge = ""
    if row.label is not None:
        kind = "" if row.on_target is None else " on" if row.on_target else " off"
        badge = f'<span class="badge{kind}">{text(row.label)}</span>'
    nearest = ""
    if row.nearest_id:
        nearest = (
            f'<p class="near"><span>nearest target, cosine {row.nearest_similarity:.3f}:</span> '
            f"<code>{text(row.nearest_id)}</code> "
            f'<span dir="auto">{_excerpt(row.nearest_text, 200)}</span></p>'
        )
    return (
        f'<article><div class="head"><b>{row.rank}</b><code>{text(row.id)}</code>{badge}'
        f'<span class="score">{row.score:.4f}</span></div>'
        f'<div class="text" dir="auto">{_body(row.text)}</div>{nearest}{_latents(row)}</article>'
    )


def _excerpt(value: str, length: int) -> str:
    return text(value if len(value) <= length else value[:length].rstrip() + "…")


def _body(value: str) -> str:
    if len(value) <= _MAX_TEXT:
        return text(value, True)
    cut = "" if len(value) <= _MAX_LONG_TEXT else f"\n… ({len(value):,} characters in all)"
    return (
        f"<details><summary>{text(value[:_MAX_TEXT].rstrip())}… <i>more</i></summary>"
        f"{text(value[_MAX_TEXT:_MAX_LONG_TEXT] + cut, True)}</details>"
    )


def _latents(row: SelectedRow) -> str:
    if not row.latents:
        return ""
    widest = max(abs(share.contribution) for share in row.latents) or 1.0
    items = "".join(
        f"<li><code>{share.latent}</code>"
        f'<span class="bar"><i style="width:{abs(share.contribution) / widest:.0%}"'
        f"{' class=minus' if share.contribution < 0 else ''}></i></span>"
        f"<span>{share.contribution:+.4f}</span><em>{text(share.hint)}</em></li>"
        for share in row.latents
    )
    return f'<ul class="latents">{items}</ul>'
