"""Hidden states that vLLM has written to files, read into an activation store.

Made after ``ExampleHiddenStatesConnector`` and the models of vLLM's main branch of autumn 2026 (its
documentation of 0.22 says the same of the files; the reading was never tried on a running vLLM). Of each
request it writes ``REQUEST.safetensors`` without metadata:

    hidden_states  [T, layers, D], in the dtype of the model's hidden states
    token_ids      int64 [T]: the prompt's, special tokens included; with ``include_output_tokens`` what was
                   generated too, but for the last token

The layers stand in the order of ``eagle_aux_hidden_state_layer_ids``, which no file says. Number n among
them is the residual stream after n blocks: what ``layers.(n-1)`` gives, and of the last block that before the
final norm. Beside a file lies ``REQUEST.safetensors.lock``, locked while the file is being written.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.activations.batches import DTYPES, DocumentActivations
from finescope.activations.store import ActivationStore, ActivationStoreWriter
from finescope.activations.windows import Windower, special_ids
from finescope.corpus.reader import Corpus
from finescope.errors import InputError
from finescope.ops.checks import all_finite
from finescope.storage.files import PathLike, reading
from finescope.storage.identity import sha256_json

_NAMES = ("hidden_states", "token_ids")
_ENDING = ".safetensors"
_REMEDY = "have vLLM read that prompt again"
_WHOLE = 1 << 40
"""Tokens of a window that no text fills: vLLM reads a prompt in one."""
_ROWS = 512
"""Rows tokenised together."""


@dataclass(frozen=True)
class HiddenStates:
    """The files of one folder, of which one layer is read.

    Attributes:
        folder: where they lie, and in folders below.
        paths: of the files, by the numbers in their names.
        place: which of the layers in a file is read.
        width: D.
        layers: how many layers a file holds.
    """

    folder: Path
    paths: tuple[Path, ...]
    place: int
    width: int
    layers: int

    def read(self, path: Path) -> tuple[Tensor, Tensor]:
        """Return the token ids int64 [T] of one request and its activations [T,D].

        Raises:
            InputError: the file doesn't fit the others or can't be right; says what it holds.
            StoreError: it is truncated or damaged.
        """
        tokens, (_, layers, width) = _looked_at(path)
        if (layers, width) != (self.layers, self.width):
            raise InputError(
                f"{path} holds {layers} layers of width {width}, and {self.paths[0].name} {self.layers} of "
                f"width {self.width}; give the files of one run of vLLM"
            )
        with reading(path, _REMEDY), _opened(path) as file:
            activations = file.get_slice(_NAMES[0])[:, self.place : self.place + 1].squeeze(1)
        if not all_finite(activations):
            raise InputError(f"{path} holds NaN or infinite activations; {_REMEDY}")
        blank = int((activations == 0).all(dim=1).sum())
        if blank:
            raise InputError(
                f"{path} holds no activations of {blank} of its {len(tokens)} tokens, only zeros; older "
                "versions of vLLM need enable_chunked_prefill=False for this"
            )
        return tokens, activations

    def tokens(self, path: Path) -> Tensor:
        """Return the token ids int64 [T] of one request; its activations aren't read.

        Raises:
            InputError, StoreError: as ``read``.
        """
        return _looked_at(path)[0]

    def name(self, path: Path) -> str:
        """Return what a request is called: its file, without the ending."""
        return path.relative_to(self.folder).as_posix().removesuffix(_ENDING)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the files and the layer from others: names and sizes."""
        files = [[self.name(path), path.stat().st_size] for path in self.paths]
        return {"files": sha256_json(files), "place": self.place, "layers": self.layers}


def find_hidden_states(folder: PathLike, layer: str, numbers: Sequence[int] = ()) -> HiddenStates:
    """Find the files that vLLM has written into a folder, and a layer in them.

    Args:
        folder: ``shared_storage_path``.
        layer: name of the block whose output is wanted; it ends with its number.
        numbers: ``eagle_aux_hidden_state_layer_ids`` as vLLM had them; where a file holds one layer, () takes
            that as the one.

    Raises:
        InputError: no files, one that is still being written or isn't one of these, or no such layer in them.
        StoreError: the first file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the shared_storage_path that vLLM wrote into")
    packed = sorted(folder.rglob(f"*{_ENDING}.zst"))
    if packed:
        raise InputError(f"{packed[0]} is packed; unpack such files first: zstd -d --rm FILE")
    paths = sorted(folder.rglob(f"*{_ENDING}"), key=lambda path: _numbers_in(path.relative_to(folder)))
    if not paths:
        raise InputError(f"{folder} holds no *{_ENDING}; give the shared_storage_path that vLLM wrote into")
    for path in paths:
        _refuse_unfinished(path)
    _, (_, layers, width) = _looked_at(paths[0])
    return HiddenStates(folder, tuple(paths), _place(layer, numbers, layers, paths[0]), width, layers)


def _place(layer: str, numbers: Sequence[int], layers: int, path: Path) -> int:
    """Which of the layers in a file is the output of a block."""
    if not numbers and layers == 1:
        return 0
    if not numbers:
        raise InputError(
            f"{path} holds {layers} layers; say with --vllm-layers which, as "
            "eagle_aux_hidden_state_layer_ids had them"
        )
    if len(numbers) != layers or len(set(numbers)) != layers:
        raise InputError(
            f"{path} holds {layers} layers, and --vllm-layers names {', '.join(map(str, numbers))}; name "
            "each of eagle_aux_hidden_state_layer_ids, in that order"
        )
    block = re.search(r"(?:^|\.)(\d+)$", layer)
    if block is None:
        raise InputError(
            f"layer {layer!r} is no block: of what vLLM writes only the outputs of whole blocks can be had, "
            "such as layers.10"
        )
    wanted = int(block[1]) + 1
    if wanted not in numbers:
        raise InputError(
            f"layer {layer!r} gives what vLLM calls {wanted}, the state after so many blocks; the files hold "
            f"{', '.join(map(str, numbers))}"
        )
    return list(numbers).index(wanted)


def store_hidden_states(
    found: HiddenStates,
    directory: PathLike,
    tokenizer: Any,
    *,
    rows: Corpus | None = None,
    dtype: torch.dtype = torch.float16,
    shard_tokens: int | None = None,
    mode: str = "resume",
    source: dict[str, Any] | None = None,
    chat_template: str | None = None,
    refused_chats: str = "plain",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> ActivationStore:
    """Write the activations of all requests into a store, special tokens left out, and open it.

    Without rows a document is called as its request is, and stands in the order of the files' names. With
    rows it has the id and the place of the row whose tokens it has; equal rows are served in order.

    Args:
        found: the files.
        directory: the store.
        tokenizer: of the model.
        rows: what was sent to vLLM; rows that weren't are left out, and said.
        dtype: float16, bfloat16 or float32.
        shard_tokens, mode: as ``store_activations``.
        source: what was read, for people and for the autoencoder's file: ``model`` and ``layer``.
        chat_template, refused_chats: how conversations among the rows became prompts: see ``Renderer``.
        progress: called with (documents done, tokens done).
        say: told how many rows have no file.

    Raises:
        InputError: a file that doesn't fit or is of no row (named), or no token but special ones.
        StoreError: the folder holds other work, a file is damaged, a value is too large for the dtype, or the
            disk is full.
    """
    special = special_ids(tokenizer)
    fingerprint = {
        "corpus": None if rows is None else rows.fingerprint(),
        "vllm": found.fingerprint(),
        "special": sorted(special),
    }
    options: dict[str, Any] = {"dtype": dtype, "shard_tokens": shard_tokens, "mode": mode}
    with ActivationStoreWriter(directory, found.width, fingerprint=fingerprint, **options) as writer:
        if not writer.complete:
            pairs: Iterator[tuple[int, str, str, Path]]
            if rows is None:
                names = ((found.name(path), path) for path in found.paths)
                pairs = ((number, name, str(path), path) for number, (name, path) in enumerate(names))
            else:
                windower = Windower(
                    tokenizer, max_length=_WHOLE, chat_template=chat_template, refused_chats=refused_chats
                )
                pairs = _paired(found, rows, windower, special, say)
            start, done, tokens = int(writer.reached.get("next_row", 0)), 0, writer.num_tokens
            for done, (index, name, place, path) in enumerate(pairs, start=1):
                if index < start:
                    continue
                ids, activations = found.read(path)
                kept = _kept(ids, special)
                document = DocumentActivations(index, name, ids[kept], activations[kept], place)
                writer.add(document, next_row=index + 1)
                tokens += int(kept.sum())
                if progress is not None:
                    progress(done, tokens)
            if tokens == 0:
                raise InputError(f"the files in {found.folder} hold no token but special ones")
            writer.finish(next_row=done, source=source)
    return ActivationStore(directory)


def _paired(
    found: HiddenStates, rows: Corpus, windower: Windower, special: frozenset[int], say: Callable[[str], None]
) -> Iterator[tuple[int, str, str, Path]]:
    """Return number, id and place of each row that was sent to vLLM, and its file, in the rows' order."""
    waiting: dict[bytes, deque[Path]] = defaultdict(deque)
    for path in found.paths:
        ids = found.tokens(path)
        waiting[_key(ids[_kept(ids, special)])].append(path)
    pairs, without, first = list[tuple[int, str, str, Path]](), 0, ""
    source, number = rows.rows(records=False), 0
    while chunk := list(itertools.islice(source, _ROWS)):
        for row, window in zip(chunk, windower.cut(chunk), strict=True):
            key = _key(torch.tensor([window.ids[at] for at in window.kept], dtype=torch.int64))
            if not row.empty and waiting.get(key):
                pairs.append((number, row.id, row.place, waiting[key].popleft()))
            elif not row.empty:
                without, first = without + 1, first or row.place
            number += 1
    left = [path for paths in waiting.values() for path in paths]
    if left:
        tokens = len(found.tokens(left[0]))
        raise InputError(
            f"{left[0]} has {tokens} tokens that no row of {rows.name} has (so have {len(left) - 1} more "
            "files): give rows and tokenizer as vLLM had them, without include_output_tokens, or no corpus"
        )
    if without:
        say(f"{without:,} rows have no file of vLLM's and are left out, the first at {first}")
    return iter(pairs)


def _key(tokens: Tensor) -> bytes:
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).digest()


def _kept(ids: Tensor, special: frozenset[int]) -> Tensor:
    return torch.from_numpy(~np.isin(ids.numpy(), sorted(special)))


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(os.fspath(path), framework="pt")


def _looked_at(path: Path) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the token ids [T] in a file and the shape [T, layers, D] of its activations.

    Raises:
        InputError: it isn't what vLLM writes; says what it holds.
        StoreError: it is truncated or damaged.
    """
    with reading(path, _REMEDY), _opened(path) as file:
        names = sorted(file.keys())
        if not set(_NAMES) <= set(names):
            raise InputError(
                f"{path} holds {', '.join(names) or 'nothing'}, not {' and '.join(_NAMES)}: it isn't a file "
                "of vLLM's hidden states"
            )
        states, tokens = file.get_slice(_NAMES[0]), file.get_tensor(_NAMES[1])
        shape, kind = tuple(states.get_shape()), states[:0].dtype
    if kind not in DTYPES.values():
        raise InputError(f"{path} holds hidden states in {kind}; they are read in {', '.join(DTYPES)}")
    if tokens.dim() != 1 or len(shape) != 3 or shape[0] != len(tokens):
        raise InputError(
            f"{path} holds hidden states {list(shape)} for token ids {list(tokens.shape)}, not "
            "[T, layers, D] for [T]: it was written by another version or connector of vLLM"
        )
    if not len(tokens):
        raise InputError(f"{path} holds no token: prompts that are embeddings can't be read")
    return tokens.to(torch.int64), (shape[0], shape[1], shape[2])


def _refuse_unfinished(path: Path) -> None:
    """Refuse a file that vLLM is writing.

    Raises:
        InputError: its lock is held.
    """
    try:
        lock = open(f"{path}.lock", "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path} is being written by vLLM; wait until that has ended") from None


def _numbers_in(path: Path) -> list[tuple[int, int | str]]:
    """A key by which request 10 comes after request 9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
