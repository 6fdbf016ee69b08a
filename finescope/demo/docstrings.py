"""A real, labelled text corpus on every machine: the docstrings of the libraries that are installed.

Sources are parsed, never imported: parsing runs no foreign code, prints nothing and is an order of magnitude
faster. The label of a text is its library's public sub-package (``scipy.signal``) or, in the standard
library, its module.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finescope.storage.files import PathLike, atomic_path

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

LIBRARIES = ("numpy", "scipy", "sklearn", "torch", "matplotlib", "networkx", "sympy", "pandas", "stdlib")
"""What is looked for by default; a library that isn't installed is left out."""

_SKIPPED_PARTS = frozenset(
    {"tests", "test", "testing", "externals", "conftest", "site-packages", "dist-packages", "__pycache__"}
    | {"idlelib", "lib2to3", "ensurepip", "turtledemo", "distutils", "pydoc_data", "encodings"}
)
_SECTION = re.compile(
    r"^\s*(?:>>>|\.\. |(?:Args|Arguments|Parameters|Returns?|Yields|Raises|Examples?|Notes?|See Also"
    r"|References|Attributes|Keyword Args|Shape|Usage|Warnings?)\s*:{0,2}\s*$"
    r"|:(?:param|returns?|rtype|type|raises)\b)"
)
_UNDERLINE = re.compile(r"^\s*([-=~^])\1{2,}\s*$")
_ROLE = re.compile(r":[a-zA-Z:]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")


@dataclass(frozen=True)
class Docstring:
    """One text of the corpus: the qualified name it documents, its prose, and its topic."""

    id: str
    text: str
    label: str

    def to_dict(self) -> dict[str, str]:
        """Return the row as it is written to a file."""
        return {"id": self.id, "text": self.text, "label": self.label}


def prose(docstring: str, max_chars: int = 600) -> str:
    """Return the describing part of a docstring on one line.

    The text ends where the first section, field list or doctest begins: parameter tables and example code
    name their library in every line and would make the topic trivial to guess.

    Args:
        docstring: a cleaned docstring.
        max_chars: longer prose is cut at the last sentence, or else the last word, before this length.
    """
    kept: list[str] = []
    for line in docstring.splitlines():
        if _UNDERLINE.match(line):
            if kept:
                kept.pop()  # the heading that this line underlines
            break
        if _SECTION.match(line):
            break
        kept.append(line)
    text = _ROLE.sub(r"\1", " ".join(" ".join(kept).split())).replace("``", "`")
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    stop = max(head.rfind(". "), head.rfind("; "))
    return head[: stop + 1] if stop > max_chars // 2 else head[: head.rfind(" ")]


def library_root(library: str) -> Path | None:
    """Return the source folder of an installed library without importing it, or None."""
    if library == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def collect_docstrings(
    libraries: Sequence[str] = LIBRARIES,
    *,
    roots: Mapping[str, Path] | None = None,
    min_words: int = 10,
    max_chars: int = 600,
    min_per_label: int = 30,
    max_per_label: int = 250,
) -> list[Docstring]:
    """Return the labelled docstrings of the installed libraries, without duplicates, in a fixed order.

    A text that occurs under two labels belongs to neither and is left out; one that is repeated under a
    single label is kept once. A label with too many texts keeps those with the smallest hash, which is a
    fixed random sample.

    Args:
        libraries: names of packages, and ``stdlib``; those that are not installed are left out.
        roots: source folder by library, instead of the installed ones.
        min_words: shorter texts are left out.
        max_chars: length at which a text is cut.
        min_per_label: labels with fewer texts are left out.
        max_per_label: texts kept per label; 0 keeps all.
    """
    found: dict[str, Docstring] = {}
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for library in libraries:
        root = roots.get(library) if roots is not None else library_root(library)
        if root is None:
            continue
        for row in _library_docstrings(library, root, max_chars):
            if len(row.text.split()) < min_words:
                continue
            key = " ".join(re.findall(r"\w+", row.text.lower()))
            labels_of[key].add(row.label)
            found.setdefault(key, row)
    by_label: defaultdict[str, list[Docstring]] = defaultdict(list)
    for key, row in found.items():
        if len(labels_of[key]) == 1:
            by_label[row.label].append(row)
    rows: list[Docstring] = []
    for group in by_label.values():
        if len(group) < min_per_label:
            continue
        if max_per_label and len(group) > max_per_label:
            group = sorted(group, key=lambda row: hashlib.sha256(row.text.encode()).digest())[:max_per_label]
        rows.extend(group)
    return _with_unique_ids(sorted(rows, key=lambda row: (row.label, row.id, row.text)))


def label_counts(rows: Sequence[Docstring]) -> dict[str, int]:
    """Return the number of texts of each label, most frequent first."""
    return dict(sorted(Counter(row.label for row in rows).items(), key=lambda item: (-item[1], item[0])))


def write_docstrings(path: PathLike, rows: Sequence[Docstring]) -> None:
    """Write rows of ``id``, ``text`` and ``label``: Parquet where the name ends so, else JSON lines.

    Raises:
        StoreError: the file can't be written; nothing is left behind.
    """
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([row.to_dict() for row in rows]), temporary)
        else:
            lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")


def _with_unique_ids(rows: list[Docstring]) -> list[Docstring]:
    """Number the names that one module defines twice, for instance in the branches of an ``if``."""
    seen: Counter[str] = Counter()
    unique: list[Docstring] = []
    for row in rows:
        seen[row.id] += 1
        count = seen[row.id]
        unique.append(row if count == 1 else Docstring(f"{row.id}#{count}", row.text, row.label))
    return unique


def _library_docstrings(library: str, root: Path, max_chars: int) -> Iterator[Docstring]:
    for path, module in _modules(library, root):
        label = _label(library, module)
        if label is None:
            continue
        tree = _parse(path)
        if tree is None:
            continue
        for name, docstring in _documented(tree, ".".join(module)):
            text = prose(docstring, max_chars)
            if text:
                yield Docstring(name, text, label)


def _modules(library: str, root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield source files and dotted names in sorted order, pruning folders that can carry no label."""
    base: tuple[str, ...] = () if library == "stdlib" else (library,)
    stack = [(root, base)]
    while stack:
        folder, package = stack.pop()
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError:
            continue
        folders = []
        for entry in entries:
            name = entry.stem if entry.suffix == ".py" else entry.name
            if name in _SKIPPED_PARTS or name.startswith("test_") or name.endswith("_test"):
                continue
            if entry.suffix == ".py":
                yield entry, package if name == "__init__" else (*package, name)
            elif name.isidentifier() and _label(library, (*package, name)) is not None and entry.is_dir():
                folders.append((entry, (*package, name)))
        stack.extend(reversed(folders))


def _label(library: str, module: tuple[str, ...]) -> str | None:
    """Return the topic of a module, or None for private and top-level parts that belong to no topic."""
    if library == "stdlib":
        top = module[0] if module else ""
        return top if top in sys.stdlib_module_names and not top.startswith("_") else None
    if len(module) < 2 or module[1].startswith("_"):
        return None
    return f"{module[0]}.{module[1]}"


def _parse(path: Path) -> ast.Module | None:
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in foreign sources are not our user's business
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a module, its public classes, their methods, and its functions."""
    stack: list[tuple[_Documented, str]] = [(tree, module)]
    while stack:
        node, name = stack.pop()
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        children = [
            (child, f"{name}.{child.name}")
            for child in node.body
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and not child.name.startswith("_")
        ]
        stack.extend(reversed(children))
