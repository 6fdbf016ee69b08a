"""Places in a model as other libraries name them: TransformerLens', nnsight's habits, and modules' own names.

Of a block that maps r to r + a(norm r) and that, m, to m + f(norm m), ``blocks.N.hook_…`` is

    resid_pre  r    attn_out  a    resid_mid  m    mlp_out  f    resid_post  m + f
    attn.hook_z     the heads' outputs side by side, before the projection that makes a of them
    mlp.hook_in, mlp.hook_post    what goes into the MLP, and into its last matrix

Families that normalise a and f once more before they are added (Gemma 2 and 3, OLMo 2) have them after that.
BERT's blocks end with a norm; resid_post is what goes into it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from torch import nn

from finescope.activations.hookpoints import last_block, resolve_hookpoint, split_run
from finescope.errors import InputError

_LENS = re.compile(r"blocks\.(\d+)\.(\S+)")
_NUMBERED = re.compile(r"(?:resid_post_layer_|layer )(\d+)")
_MODULE = re.compile(r"(?:.*\.)?(?:layers|layer|h|blocks|block)\.(\d+)((?:\.[^.]+)*)")

_ATTENTION = ("attention.output.dense", "self_attn", "attn.attention", "attn", "attention")
_PROJECTION = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "attn.attention.out_proj",
    "attn.c_proj",
    "attn.out_proj",
    "attention.output.dense",
    "attention.dense",
)
_MLP = ("mlp", "output.dense", "fc2")
_LAST_MATRIX = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "output.dense", "fc2")
_SECOND_NORM = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "attention.output.LayerNorm")


def is_hook_name(name: str) -> bool:
    """Whether a name is one of a place in a model, and not just that of a folder."""
    return bool(
        name.startswith("hook_")
        or _LENS.fullmatch(name)
        or _NUMBERED.fullmatch(name)
        or _MODULE.fullmatch(split_run(name)[0])
    )


def translate(model: nn.Module, hook: str) -> str:
    """Return our name of a place: a module's, with ``.input`` behind it if what goes into it is meant.

    Args:
        model: a loaded model.
        hook: ``blocks.N.hook_resid_post`` and others of TransformerLens, ``resid_post_layer_N``, or the name
            of a module.

    Raises:
        InputError: the model has no such place, or none that can be read as one.
    """
    lens, numbered = _LENS.fullmatch(hook), _NUMBERED.fullmatch(hook)
    if lens:
        return _of_block(model, _block(model, int(lens[1]), hook), lens[2], hook)
    if numbered:
        return _block(model, int(numbered[1]), hook)
    if hook == "hook_embed":
        return _embedded(model, hook)
    try:
        return resolve_hookpoint(model, hook)
    except InputError:
        inside = _MODULE.fullmatch(hook)
        if inside is None:
            raise
        # Towers for other things than text make the bare name ambiguous.
        return resolve_hookpoint(model, _block(model, int(inside[1]), hook) + inside[2])


def _block(model: nn.Module, number: int, hook: str) -> str:
    """Return the name of a block of the stack that a text runs through."""
    stack, _, last = last_block(model).rpartition(".")
    if number > int(last):
        raise InputError(
            f"{hook} is of block {number}, but the model's blocks are {stack}.0 … {stack}.{last}"
        )
    return f"{stack}.{number}"


def _of_block(model: nn.Module, block: str, place: str, hook: str) -> str:
    names: tuple[str, ...]
    inside = {name for name, _ in model.get_submodule(block).named_modules()}
    after_norm = "post_feedforward_layernorm" in inside
    ends_with_norm = {"output.LayerNorm", "attention.output.LayerNorm"} <= inside
    if place == "hook_resid_pre":
        return f"{block}.input"
    if place == "hook_resid_post":
        return f"{block}.output.LayerNorm.input" if ends_with_norm else block
    if place == "hook_normalized_resid_post" and ends_with_norm:
        return block
    if place == "hook_resid_mid":
        if getattr(getattr(model, "config", None), "use_parallel_residual", False):
            raise InputError(f"{hook} doesn't exist in this model: attention and MLP read the same residual")
        if after_norm and "pre_feedforward_layernorm" not in inside:
            return _first(inside, block, ("mlp",), hook) + ".input"
        return _first(inside, block, _SECOND_NORM, hook) + ".input"
    if place == "hook_attn_out":
        names = ("post_attention_layernorm",) if after_norm else _ATTENTION
        return _added(model, _first(inside, block, names, hook), hook)
    if place == "hook_mlp_out":
        names = ("post_feedforward_layernorm",) if after_norm else _MLP
        return _added(model, _first(inside, block, names, hook), hook)
    if place == "attn.hook_z":
        return _first(inside, block, _PROJECTION, hook) + ".input"
    if place == "mlp.hook_post":
        return _first(inside, block, _LAST_MATRIX, hook) + ".input"
    if place == "mlp.hook_in":
        return _first(inside, block, ("mlp", "intermediate.dense", "fc1"), hook) + ".input"
    raise InputError(
        f"{hook} can't be read as what goes into a module or comes out of one; if you know one that is the"
        " same, name it with --layer"
    )


def _added(model: nn.Module, name: str, hook: str) -> str:
    """Return the name of a module that gives what is added to the residual, and not the sum of both.

    BLOOM's and MPT's are handed the residual, and add to it themselves.
    """
    if "residual" in inspect.signature(model.get_submodule(name).forward).parameters:
        raise InputError(
            f"{hook} can't be read in this model: {name} adds the residual before it gives anything; if you "
            "know a module that is the same, name it with --layer"
        )
    return name


def _first(inside: set[str], block: str, names: Iterable[str], hook: str) -> str:
    for name in names:
        if name in inside:
            return f"{block}.{name}"
    raise InputError(
        f"{hook} can't be found in this model: {block} has none of {', '.join(names)}; name the module with"
        " --layer"
    )


def _embedded(model: nn.Module, hook: str) -> str:
    """Return the place of embeddings: before positions are added, where they are."""
    first = _block(model, 0, hook)
    modules: list[str] = [name for name, _ in model.named_modules()]
    words = [name for name in modules if name.rpartition(".")[2] == "wte"]
    if words:
        return words[0]
    positions = [
        name for name in modules if "position_embeddings" in name or name.endswith("embed_positions")
    ]
    if positions:
        raise InputError(
            f"{hook}: this model adds positions before its first block; name a module with --layer"
        )
    return f"{first}.input"


def same_place(left: str, right: str) -> bool:
    """Whether two names of ours mean the same: what goes into a block comes out of the one before."""
    return _as_output(left) == _as_output(right)


def _as_output(name: str) -> str:
    stack, _, number = name.removesuffix(".input").rpartition(".")
    if name.endswith(".input") and number.isdecimal() and int(number) > 0:
        return f"{stack}.{int(number) - 1}"
    return name
