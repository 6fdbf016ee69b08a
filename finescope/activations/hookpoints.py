"""Finding the module a user means by a name, and stopping a forward pass once it has run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finescope.corpus.dotted import prefixes
from finescope.errors import InputError, nearest_names

# What model families call their stack of blocks. `layers.3` finds `encoder.layer.3`, `h.3` and `block.3` too.
_BLOCK_LISTS = ("layers", "layer", "h", "blocks", "block")
_RUN = re.compile(r"(.+)@([1-9]\d*)")
_INPUT, _OUTPUT = ".input", ".output"
_FEW = 8
"""Tokens of a text that shows what runs; Funnel (transformers 5.23.0) fails on two."""
_BLOCK = re.compile(rf"(?:^|.*\.)(?:{'|'.join(_BLOCK_LISTS)})\.(\d+)((?:\.[^.]+)*)$")


def split_run(name: str) -> tuple[str, int | None]:
    """Return a module's name and the number of its run, from 1, that stands behind it with ``@``."""
    found = _RUN.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def split_side(model: nn.Module, name: str) -> tuple[str, bool]:
    """Return the name of a module, and whether it is its input that is meant: ``.input`` stands behind it.

    Args:
        model: of the module; one of its own that is called so comes first.
        name: as ``resolve_hookpoint`` returns it, without ``@n``.
    """
    if name.endswith(_INPUT) and name not in dict(model.named_modules()):
        return name.removesuffix(_INPUT), True
    return name, False


def resolve_hookpoint(model: nn.Module, name: str) -> str:
    """Return the full name of the module of ``model`` that ``name`` means, with ``@n`` if that stands there.

    ``.input`` behind a name means what goes into the module; ``.output`` what comes out, as no ending does.

    Tried in this order: the exact name; the name with leading parts that the model lacks removed
    (``model.layers.3`` for ``layers.3``); a module whose name ends so (``layer.3`` for ``encoder.layer.3``);
    block number n of the model's only stack of blocks, whatever its name (``layers.3`` for ``h.3``).

    Raises:
        InputError: nothing fits, or more than one module does; lists the nearest names.
    """
    modules = [found for found, _ in model.named_modules() if found]
    known = set(modules)
    if name in known:
        return name
    bare, run = split_run(name)
    if run is not None:
        return f"{resolve_hookpoint(model, bare)}@{run}"
    shorter = name
    while "." in shorter:
        shorter = shorter.split(".", 1)[1]
        if shorter in known and not shorter.isdigit():
            return shorter
    ending = [found for found in modules if found.endswith(f".{name}")]
    if len(ending) == 1:
        return str(ending[0])
    stacks = _stacks(model)
    block = _BLOCK.match(name)
    if not ending and block and len(stacks) == 1:
        candidate = f"{stacks[0]}.{block.group(1)}{block.group(2)}"
        if candidate in known:
            return candidate
    if name.endswith(_INPUT):
        return resolve_hookpoint(model, name.removesuffix(_INPUT)) + _INPUT
    if name.endswith(_OUTPUT):
        return resolve_hookpoint(model, name.removesuffix(_OUTPUT))
    raise InputError(_no_such_module(name, modules, ending, stacks, model))


def last_block(model: nn.Module) -> str:
    """Return the name of the last block of the stack that a text runs through.

    A few tokens are sent through the model to see which of its outermost lists of modules run: towers for
    images and sound don't. Of an encoder-decoder the encoder is what reads a text. Where the parts of a block
    lie in lists of their own (XLM, FlauBERT), the part that runs last gives what the block gives. Where a
    block gives no vector a token (several streams, as DeepSeek-V4 has them), or hides its run (SqueezeBERT),
    the first module behind the stack that gives one is returned.

    Raises:
        InputError: the model has no list of modules.
    """
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    stacks = {
        name: module
        for name, module in stacks.items()
        if len(module) and not any(name.startswith(f"{outer}.") for outer in stacks)
    }
    if not stacks:
        names = ", ".join(name for name, _ in list(model.named_modules())[1:8])
        raise InputError(
            f"the model has no stack of blocks to choose a layer from; name one with --layer: {names}, …"
        )
    ran = _last_runs(model, stacks)
    candidates = list(ran or stacks)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        candidates = [name for name in candidates if "decoder" not in name.split(".")] or candidates
    last = {name: place for place, name in enumerate(ran)}
    name = max(candidates, key=lambda item: (len(stacks[item]), last.get(item, 0), -len(item)))
    return _giving_vectors(model, f"{name}.{ran.get(name, len(stacks[name]) - 1)}")


def _giving_vectors(model: nn.Module, block: str) -> str:
    """Return a block's name if it gives a vector a token, else that of the first module that does, behind the
    block's stack or around it.
    """
    ended: list[tuple[str, bool]] = []

    def hook(name: str, output: Any) -> None:
        hidden = None
        with contextlib.suppress(InputError):
            hidden = unpack(output, name)
        sizes = [] if hidden is None else sorted(hidden.shape[:-1])
        # One row of a few tokens, positions first as XLNet has it, flat as experts, or with padding added.
        ended.append((name, sizes == [_FEW] or (len(sizes) == 2 and sizes[0] == 1 and sizes[1] >= _FEW)))

    handles = [
        module.register_forward_hook(lambda _module, _given, output, name=name: hook(name, output))
        for name, module in model.named_modules()
        if name
    ]
    _run_on_few_tokens(model, handles)
    if (block, True) in ended:
        return block
    within = [place for place, (name, _) in enumerate(ended) if f"{name}.".startswith(f"{block}.")]
    behind = ended[within[-1] + 1 :] if within else []
    around = ["", *prefixes(block)[1:]]
    return next((name for name, fits in behind if fits and name.rpartition(".")[0] in around), block)


def _last_runs(model: nn.Module, stacks: dict[str, nn.ModuleList]) -> dict[str, int]:
    """Return which module of each list is the last that runs on a text, in the order of the runs.

    Lists of which none runs are left out. Blocks that look at images (Mllama's) don't run either.
    """
    ran: dict[str, int] = {}

    def hook(name: str, number: int) -> None:
        ran[name] = max(number, ran.pop(name, 0))

    handles = [
        module.register_forward_hook(lambda *_, name=name, number=number: hook(name, number))
        for name, stack in stacks.items()
        for number, module in enumerate(stack)
    ]
    _run_on_few_tokens(model, handles)
    return ran


def _run_on_few_tokens(model: nn.Module, handles: Sequence[Any]) -> None:
    """Run a model and remove the handles of its hooks."""
    ids = torch.ones((1, _FEW), dtype=torch.int64, device=next(model.parameters()).device)
    try:
        # A decoder that is given nothing raises after the encoder has run; what ran is all that is asked.
        with torch.no_grad(), contextlib.suppress(Exception):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()


def _stacks(model: nn.Module) -> list[str]:
    """Return the names of the lists of blocks, outermost only."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in _BLOCK_LISTS:
            if any(name.startswith(f"{outer}.") for outer in found):
                continue
            found.append(name)
    return found


def _no_such_module(
    name: str, modules: list[str], ending: list[str], stacks: list[str], model: nn.Module
) -> str:
    if ending:
        return f"layer {name!r} fits several modules; name one of {', '.join(ending[:6])}"
    near = nearest_names(name, modules, count=5, cutoff=0.4)
    lists = {stack: len(list(model.get_submodule(stack).children())) for stack in stacks}
    ranges = [f"{stack}.0 … {stack}.{length - 1}" for stack, length in lists.items() if length]
    parts = [f"the model has no module {name!r}"]
    if ranges:
        parts.append(f"its blocks are {', '.join(ranges)}")
    if near:
        parts.append(f"the nearest names are {', '.join(near)}")
    return "; ".join(parts)


class _Stop(BaseException):
    """Ends a forward pass. A BaseException, so that a model's own ``except Exception`` lets it through."""


def output_of(
    model: nn.Module, module: nn.Module, name: str, run: int, inputs: dict[str, Any], *, before: bool = False
) -> Tensor:
    """Return the hidden states that a module gives in a forward pass, which ends there.

    Args:
        model: of the module.
        module: the one that is read.
        name: what it is called in messages.
        run: which of its runs is read, from 1.
        inputs: of the model.
        before: read what goes into the module instead; the pass ends there then.

    Raises:
        InputError: the module doesn't run so often, or its output holds no tensor.
    """
    runs = 0
    found: Any = None

    def see(value: Any) -> None:
        nonlocal runs, found
        runs += 1
        if runs == run:
            found = value
            raise _Stop

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        see(output)

    def hook_before(_module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        see(given or tuple(named.values()))

    handle = (
        module.register_forward_pre_hook(hook_before, with_kwargs=True)
        if before
        else module.register_forward_hook(hook)
    )
    try:
        model(**inputs)
    except _Stop:
        return unpack(found, name)
    finally:
        handle.remove()
    times = f"ran {runs} instead of {run} times" if runs else "did not run"
    raise InputError(f"module {name!r} {times} in the forward pass; name a layer that always runs")


@torch.no_grad()
def count_runs(model: nn.Module, module: nn.Module, name: str, inputs: dict[str, Any]) -> int:
    """Return how often a module runs in a whole forward pass: more than once if blocks share it.

    Raises:
        InputError: never, or the model fails before.
    """
    runs = 0

    def hook(*_: Any) -> None:
        nonlocal runs
        runs += 1

    handle = module.register_forward_hook(hook)
    try:
        model(**inputs)
    except Exception as error:  # a model may fail in any way; the user needs to know which and where
        # A decoder that is given nothing raises after the encoder has run.
        if not runs:
            raise InputError(f"the model fails on a short text before layer {name!r}: {error}") from error
    finally:
        handle.remove()
    if not runs:
        raise InputError(f"module {name!r} did not run in the forward pass; name a layer that runs")
    return runs


def unpack(output: Any, name: str) -> Tensor:
    """Return the hidden states of a module's output: a tensor, or the first of a tuple or model output.

    Raises:
        InputError: the output holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"module {name!r} returns {type(output).__name__} and no hidden states; name another layer"
    )
