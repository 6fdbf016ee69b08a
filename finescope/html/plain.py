"""Texts of strangers, made harmless."""

from __future__ import annotations

import re

# Control characters, lone surrogates (UTF-8 has none), and marks that reorder the text after them.
# Joiners stay: Persian, Indic scripts and emoji need them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Return ``text`` with characters that break or rearrange a page replaced by U+FFFD.

    Line ends (as ``\\n``) and tabs stay. Nothing is escaped.
    """
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))
