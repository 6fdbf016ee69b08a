"""YAML as version 1.2 reads it: ``1e-4`` is a number, ``010`` is ten; ``yes``, ``on`` and dates are texts.

PyYAML parses it; what a plain word stands for is the core schema of YAML 1.2.2, §10.3.2. Merge keys (``<<``)
work.
"""

from __future__ import annotations

import functools
import re
from typing import Any

_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        ValueError: it isn't YAML, or names a key of a mapping twice; the line is given.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def dump_yaml(value: Any) -> str:
    """Return plain values as a YAML document that ``load_yaml`` reads back as they are."""
    import yaml

    dumped: str = yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100)
    return dumped


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers = _resolvers()

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: dict[str, Any] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, key) is not key:
                    raise yaml.constructor.ConstructorError(
                        "in a mapping", seen[key.value].start_mark, f"{key.value!r} twice", key.start_mark
                    )
            return node

    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _int(node.value))
    Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _float(node.value))
    Loader.add_constructor("tag:yaml.org,2002:merge", lambda _, node: node.value)  # a lone <<
    return Loader


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        # Texts that either version would read as something else are quoted.
        yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | _resolvers()

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        # PyYAML folds at these, and reads back a space.
        style = '"' if any(letter in value for letter in "\x85\u2028\u2029") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def _resolvers() -> dict[str | None, list[tuple[str, re.Pattern[str]]]]:
    """Return what PyYAML asks of a plain word, whatever its first letter."""
    return {
        None: [(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{words})\\Z")) for name, words in _CORE.items()]
    }


def _int(word: str) -> int:
    base = {"0o": 8, "0x": 16}.get(word[:2], 10)
    return int(word if base == 10 else word[2:], base)


def _float(word: str) -> float:
    lowered = word.lower()
    return float(lowered.replace(".", "") if lowered.endswith(("inf", "nan")) else lowered)
