"""What a model is known by without loading it: its files."""

from __future__ import annotations

from pathlib import Path

from finescope.storage.identity import sampled_files

_ENDINGS = (".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py", ".pt", ".pth")
"""Weights, configuration, tokenizer, chat templates, and the code of models that bring their own."""


def model_files(name: str) -> dict[str, str] | None:
    """Return hashes of (samples of) a model's files, by relative name; None if they aren't on this machine.

    Args:
        name: a local folder or file, or a name on the Hugging Face hub, looked for in the local cache.
    """
    return sampled_files(_place(name), _ENDINGS) or None


def model_bytes(name: str) -> int:
    """Return the size of a model's files, as ``model_files`` finds them; 0 if they aren't on this machine."""
    place = _place(name)
    files = [place] if place.is_file() else place.rglob("*")
    return sum(
        file.stat().st_size for file in files if file.name.lower().endswith(_ENDINGS) and file.is_file()
    )


def _place(name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.exists() else _cached(name) or path


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
