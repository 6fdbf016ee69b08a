"""Loading models and tokenizers by hub name or local folder, with errors a user can act on."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finescope import hub
from finescope.activations.gguf import check_gguf, is_gguf, without_bar
from finescope.device import usable_device
from finescope.errors import InputError
from finescope.storage.files import PathLike

_EXPERTS = re.compile(r"Expert|Moe(?![a-z])|MoE|SparseMLP")


def load_model(
    name: PathLike, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, **options: Any
) -> nn.Module:
    """Load the body of a causal or encoder model (no head), in eval mode.

    Args:
        name: a local folder written by ``save_pretrained``, a GGUF file, or a name on the Hugging Face hub. A
            name is looked for in the local cache first; the hub is asked only if it answers within seconds.
        device: where to put it.
        dtype: of its weights; None keeps the checkpoint's own.
        options: passed to ``AutoModel.from_pretrained``, for example ``trust_remote_code=True``.

    Raises:
        InputError: the folder doesn't exist or holds no model, the name is neither cached nor reachable, or
            the device can't be used.
    """
    from transformers import AutoModel

    device = usable_device(device)
    model: nn.Module = _load(AutoModel, name, "model", **_of_type(dtype), **options)
    return moved(model, device)


def load_causal_model(name: PathLike, *, dtype: torch.dtype | None = None, **options: Any) -> nn.Module:
    """Load a causal model with its head, in eval mode, on the CPU.

    Args:
        name: as ``load_model`` takes it.
        dtype: of its weights; None keeps the checkpoint's own.
        options: passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: as ``load_model``.
    """
    from transformers import AutoModelForCausalLM

    model: nn.Module = _load(AutoModelForCausalLM, name, "model", **_of_type(dtype), **options)
    return model.eval()


def _of_type(dtype: torch.dtype | None) -> dict[str, Any]:
    parameter = "dtype" if _transformers_at_least(4, 56) else "torch_dtype"
    return {parameter: "auto" if dtype is None else dtype}


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on ``device`` in eval mode; one that its loader has placed stays where it is.

    Quantised models and those dispatched over several devices refuse to be moved.
    """
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    if not placed and any(weight.device != device for weight in model.parameters()):
        model = model.to(device)
    return model.eval()


def load_tokenizer(name: PathLike, **options: Any) -> Any:
    """Load a tokenizer by local folder or hub name, as ``load_model`` loads a model.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, "tokenizer", **options)


def _load(loader: Any, name: PathLike, what: str, **options: Any) -> Any:
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_dir():
        _refuse_adapter(path)
        if what == "model" and not (path / "config.json").is_file():
            packed = sorted(path.glob("*.gguf"))
            remedy = f"name the file: {packed[0]}" if packed else "give a folder written by save_pretrained"
            raise InputError(f"model folder {path} has no config.json; {remedy}")
        return _call(loader, os.fspath(path), f"the {what} in {path}", local_files_only=True, **options)
    if is_gguf(path):
        check_gguf(path)
        options |= {"gguf_file": path.name, "local_files_only": True}
        with without_bar():
            return _call(loader, os.fspath(path.parent), f"the {what} in {path}", **options)
    if path.exists():
        raise InputError(
            f"{what} {text!r} is a file, and no GGUF file; give the folder that holds config.json and the "
            "weights"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or os.path.isabs(text):
        raise InputError(f"{what} folder {text!r} does not exist")
    try:
        return _call(loader, text, what, local_files_only=True, **options)
    except InputError as error:
        cached = error
    if not hub.reachable():
        reason = "is switched off by HF_HUB_OFFLINE" if hub.offline_by_choice() else "can't be reached"
        raise InputError(
            f"{what} {text!r} is neither a folder here nor in the local Hugging Face cache, "
            f"and the hub {reason}; check the path, or download the model on a machine with a network"
        ) from cached
    return _call(loader, text, f"{what} {text!r}", local_files_only=False, **options)


def _refuse_adapter(folder: Path) -> None:
    description = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not description.is_file():
        return
    try:
        base = json.loads(description.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    of = f"the base model {base!r}" if base else "a base model that it doesn't name"
    raise InputError(
        f"{folder} holds an adapter of {of}, not a whole model; merge it with PEFT (merge_and_unload, then "
        "save_pretrained together with the tokenizer) and give the merged folder"
    )


def _call(loader: Any, source: str, described: str, **options: Any) -> Any:
    quiet = _quiet() if options.get("local_files_only") else contextlib.nullcontext()
    try:
        with quiet:
            return loader.from_pretrained(source, **options)
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError and others
        first = str(error).strip().split("\n", 1)[0]
        raise InputError(f"can't load {described}: {first}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bar that counts weights off the terminal; that of a download stays."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def keep_quiet() -> None:
    """Keep the library's bars and notices off the screen for good: commands report progress themselves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _transformers_at_least(major: int, minor: int) -> bool:
    import transformers

    parts = transformers.__version__.split(".")
    return (int(parts[0]), int(parts[1])) >= (major, minor)


def forward_options(model: nn.Module) -> dict[str, Any]:
    """Return the switches that keep a forward pass from building what nobody reads (the key-value cache)."""
    parameters = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in parameters else {}


def has_experts(model: nn.Module) -> bool:
    """Return whether a model is a mixture of experts, by what its modules are called.

    An expert multiplies as many tokens at a time as a batch sends it.
    """
    return any(_EXPERTS.search(type(module).__name__) for module in model.modules())


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many token ids the model has embeddings for, or None if it doesn't say."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    size = getattr(embeddings, "num_embeddings", None)
    return size if isinstance(size, int) else None


def length_limit(model: nn.Module, tokenizer: Any, cap: int = 2048) -> int:
    """Return the longest input in tokens: the least of the tokenizer's limit, the positions and ``cap``."""
    limits = [cap]
    said = getattr(tokenizer, "model_max_length", None)
    # transformers writes 1e30 where a tokenizer has no limit.
    if isinstance(said, int) and 0 < said < 1_000_000:
        limits.append(said)
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int) and positions > 0:
        # The RoBERTa family counts its positions from the padding id on.
        offset = (getattr(config, "pad_token_id", None) or 0) + 1 if _counts_from_padding(model) else 0
        limits.append(positions - offset)
    return min(limits)


def _counts_from_padding(model: nn.Module) -> bool:
    return any(
        isinstance(module, nn.Embedding)
        and name.endswith("position_embeddings")
        and module.padding_idx is not None
        for name, module in model.named_modules()
    )
