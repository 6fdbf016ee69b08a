"""Rows planted into a pool: copies, boilerplate, another language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finescope.demo.docstrings import Docstring

PLANTED = "planted"
"""What the labels of planted rows begin with."""
_BOILERPLATE = """
This module is part of the {label} package and is distributed under the terms of its licence; see the file
LICENSE that comes with {label} for the full text and for the names of all contributors.

Warning: the interface of {label} documented here is subject to change without notice. See the user guide of
{label} and the release notes of your version for further information.

For questions about {label}, please write to the mailing list or open a ticket; include the version of
{label}, that of Python and of the operating system, and a minimal example.

This page was generated from the sources of {label}. Edit on the development site. Previous topic, next topic,
index, modules: all about {label}. All rights reserved.
"""
_FOREIGN = """
Diese Funktion aus {label} gibt das Ergebnis als neues Objekt zurück und lässt die Eingabe unverändert;
ungültige Werte werden mit einer Ausnahme abgelehnt.

Cette méthode de {label} calcule la valeur demandée à partir des paramètres fournis ; si un argument est
absent, la valeur par défaut est utilisée.

Esta clase de {label} guarda los datos de entrada y los devuelve en el mismo orden; los elementos vacíos se
omiten sin aviso.

Questa funzione di {label} restituisce una copia ordinata degli elementi e solleva un errore se i tipi non
sono compatibili tra loro.
"""
_KINDS = ("copy", "boilerplate", "foreign")


def planted(pool: Sequence[Docstring], share: float, generator: np.random.Generator) -> list[Docstring]:
    """Return rows to be planted: a third each of copies, boilerplate and text in other languages.

    Copies are exact, and each of the copied rows has three of them. The others name labels of the pool, so
    that words and codes find them near.

    Args:
        pool: the rows.
        share: planted rows for each of the pool.
        generator: of the draws.
    """
    count = round(share * len(pool))
    copied = generator.choice(len(pool), max(1, min(len(pool), count // 9)), replace=False)
    labels = sorted({row.label for row in pool})
    found = []
    for place in range(count):
        kind = _KINDS[place % len(_KINDS)]
        turn = place // len(_KINDS)
        if kind == "copy":
            text = pool[int(copied[turn % len(copied)])].text
        else:
            blocks = (_BOILERPLATE if kind == "boilerplate" else _FOREIGN).split("\n\n")
            words = [" ".join(block.split()) for block in blocks]
            text = words[turn % len(words)].format(label=labels[(turn // len(words)) % len(labels)])
        found.append(Docstring(f"{PLANTED}:{place}", text, f"{PLANTED}:{kind}"))
    return found
