"""Where training batches come from: tensors, memory-mapped stores, iterables.

A source is a pure function of (seed, epoch): it can be asked for the batches of any epoch from any batch on,
which is all that resuming needs. No source holds more than a batch (or its shuffle buffer) beyond the data it
was given.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Union, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from finescope.config import TrainingConfig
from finescope.errors import InputError
from finescope.ops.checks import all_finite
from finescope.sae.parallel import ALONE, Ranks

STREAM_BATCH_TOKENS = 4096
"""Tokens per step of a store or iterable, which have no samples to count."""

_FINGERPRINT_ROWS = 16


@runtime_checkable
class TokenStore(Protocol):
    """Activations on disk, as ``finescope.activations.ActivationStore`` offers them."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the store."""

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield all tokens, shuffled as (seed, epoch) says, in batches [b,D]."""


@runtime_checkable
class SharedStore(TokenStore, Protocol):
    """A store of which each of several ranks reads its own part."""

    def shares(self, batch_size: int, *, seed: int, epoch: int, rank: int, ranks: int) -> Iterator[Tensor]:
        """Yield of each of ``batches`` the tokens that are this rank's; those of all make up the batch."""


Activations = Union[Tensor, "np.ndarray[Any, Any]", TokenStore, Iterable[Any]]
"""What ``train_sae`` takes: [N,S,D] or [B,D], a store, or an iterable of [...,D] batches."""


class Source(ABC):
    """Batches [b,D] of one training set."""

    kind: str
    width: int
    num_tokens: int | None
    """None if unknown before the first pass."""
    batch_tokens: int
    steps_per_epoch: int | None
    ranks: Ranks = ALONE
    """Those that share every batch."""

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield this rank's share of the batches of ``epoch`` (from 0) from number ``start`` on."""

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """Return up to ``count`` tokens [n,D] for the initialisation."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this training set from another, in plain values."""

    def place(self, epoch: int, batch: int, row: int) -> str:
        """Say where row ``row`` of a batch is in the data, for error messages."""
        share = "" if self.ranks.alone else f" of the share of process {self.ranks.rank}"
        return f"batch {batch} of epoch {epoch + 1}, row {row}{share}"

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's part of the rows [b,...] of a batch."""
        rank, size = self.ranks.rank, self.ranks.size
        return rows[rank * len(rows) // size : (rank + 1) * len(rows) // size]


def open_source(
    activations: Activations, cfg: TrainingConfig, mask: Tensor | None = None, ranks: Ranks = ALONE
) -> Source:
    """Return the source for any kind of training data.

    Args:
        activations: Tensor or ndarray (memory-mapped too) [N,S,D] or [B,D], a :class:`TokenStore`, or an
            iterable of [...,D] tensors or arrays. An iterable that can be iterated only once, such as a
            generator, gives one epoch.
        cfg: batch sizes and seed.
        mask: bool [N,S] or [B], True for tokens to train on; only with tensors and arrays.
        ranks: the processes that share every batch.

    Raises:
        InputError: a wrong type or shape, or no tokens.
    """
    source = _source_of(activations, cfg, mask)
    source.ranks = ranks
    return source


def _source_of(activations: Activations, cfg: TrainingConfig, mask: Tensor | None) -> Source:
    if isinstance(activations, (Tensor, np.ndarray)):
        return TensorSource(activations, cfg, mask)
    if mask is not None:
        raise InputError("a mask goes with a tensor; leave masked tokens out of stores and iterables")
    if isinstance(activations, TokenStore):
        return StoreSource(activations, cfg)
    if isinstance(activations, Iterable):
        return IterableSource(activations, cfg)
    raise InputError(
        "activations must be a tensor or array [N,S,D] or [B,D], an activation store or an iterable of"
        f" batches, not {type(activations).__name__}"
    )


class TensorSource(Source):
    """Tokens of a tensor or array, drawn without replacement; samples play no part beyond the batch size.

    Every epoch is cut into batches of equal size (±1), so that none is too small to measure variance in.
    """

    kind = "tensor"

    def __init__(
        self, data: Tensor | np.ndarray[Any, Any], cfg: TrainingConfig, mask: Tensor | None = None
    ) -> None:
        floating = data.is_floating_point() if isinstance(data, Tensor) else data.dtype.kind == "f"
        if data.ndim not in (2, 3) or not floating:
            raise InputError(
                f"activations must be floating-point [N,S,D] or [B,D], got {data.dtype} {tuple(data.shape)}"
            )
        if isinstance(data, np.ndarray) and not (data.dtype.isnative and data.dtype.itemsize <= 8):
            raise InputError(
                f"activations of NumPy type {data.dtype.str} can't be trained on; convert them to float32"
            )
        self._data = data
        self._seed = cfg.seed
        self._samples, self._length = (data.shape[0], data.shape[1]) if data.ndim == 3 else (data.shape[0], 1)
        self.width = data.shape[-1]
        self._kept = None if mask is None else _kept_tokens(mask, tuple(data.shape[:-1]))
        self._tokens = self._samples * self._length if self._kept is None else len(self._kept)
        if self._tokens == 0 or self.width == 0:
            raise InputError(f"there are no tokens to train on in activations of shape {tuple(data.shape)}")
        self.num_tokens = self._tokens
        self.batch_tokens = cfg.batch_tokens or cfg.batch_size * self._length
        self._steps = self.steps_per_epoch = -(-self._tokens // self.batch_tokens)
        self._order: tuple[int, Tensor] | None = None

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        for batch in range(start, self._steps):
            yield self._take(self._tokens_of(epoch, batch))

    def sample(self, count: int) -> Tensor:
        order = torch.randperm(self._tokens, generator=_generator(self._seed, "sample"))[:count]
        return self._take(self._token_ids(order))

    def fingerprint(self) -> dict[str, Any]:
        count = min(_FINGERPRINT_ROWS, self._tokens)
        rows = self._take(self._token_ids(torch.arange(count) * self._tokens // count))
        return {"width": self.width, "tokens": self._tokens, "rows": _digest(rows)}

    def place(self, epoch: int, batch: int, row: int) -> str:
        token = int(self._tokens_of(epoch, batch)[row])
        where = f"row {token}"
        if self._data.ndim == 3:
            where = f"sample {token // self._length}, token {token % self._length}"
        return f"batch {batch} of epoch {epoch + 1}: {where} of the activations"

    def _tokens_of(self, epoch: int, batch: int) -> Tensor:
        """Return the token ids of this rank's share of a batch, ascending: gathers then run one way."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self._tokens, generator=_generator(self._seed, epoch)))
        first = batch * self._tokens // self._steps
        last = (batch + 1) * self._tokens // self._steps
        return self.share(self._token_ids(self._order[1][first:last]).sort().values)

    def _token_ids(self, order: Tensor) -> Tensor:
        return order if self._kept is None else self._kept[order]

    def _take(self, tokens: Tensor) -> Tensor:
        if isinstance(self._data, np.ndarray):
            rows: Any = tokens.numpy()
            index = rows if self._data.ndim == 2 else (rows // self._length, rows % self._length)
            return torch.from_numpy(np.ascontiguousarray(self._data[index]))
        tokens = tokens.to(self._data.device)
        if self._data.dim() == 2:
            return self._data.index_select(0, tokens)
        if self._data.is_contiguous():
            return self._data.view(-1, self.width).index_select(0, tokens)
        return self._data[tokens // self._length, tokens % self._length]


class StoreSource(Source):
    """Tokens of a store, in the order that the store shuffles them."""

    kind = "store"

    def __init__(self, store: TokenStore, cfg: TrainingConfig) -> None:
        self._store = store
        self._seed = cfg.seed
        self.width = store.width
        self.num_tokens = store.num_tokens
        if store.num_tokens == 0:
            raise InputError("the activation store is empty; there are no tokens to train on")
        self.batch_tokens = cfg.batch_tokens or STREAM_BATCH_TOKENS
        self.steps_per_epoch = steps_of_epoch(store.num_tokens, self.batch_tokens)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        order: Any = {"seed": self._seed, "epoch": epoch}
        if isinstance(self._store, SharedStore) and not self.ranks.alone:
            order |= {"rank": self.ranks.rank, "ranks": self.ranks.size}
            shares = self._store.shares(self.batch_tokens, **order)
            yield from itertools.islice(shares, start, self.steps_per_epoch)
            return
        for batch, rows in enumerate(self._store.batches(self.batch_tokens, **order)):
            if batch >= start and _worth_a_step(len(rows), self.batch_tokens, batch):
                yield self.share(rows)

    def sample(self, count: int) -> Tensor:
        return _gather(self._store.batches(self.batch_tokens, seed=self._seed, epoch=0), count)

    def fingerprint(self) -> dict[str, Any]:
        first = self._store.batches(_FINGERPRINT_ROWS, seed=0, epoch=0)
        return {"width": self.width, "tokens": self.num_tokens, "rows": _digest(next(iter(first)))}


class IterableSource(Source):
    """Tokens of an iterable of [...,D] batches of any size, mixed in a buffer of ``shuffle_tokens``."""

    kind = "iterable"

    def __init__(self, iterable: Iterable[Any], cfg: TrainingConfig) -> None:
        self._iterable = iterable
        self._once = iter(iterable) is iterable
        self._taken: list[Tensor] = []  # what was read ahead from an iterable that can't be restarted
        self._spent = False
        self._dtype: torch.dtype | None = None
        self._seed = cfg.seed
        self.batch_tokens = cfg.batch_tokens or STREAM_BATCH_TOKENS
        self._capacity = max(cfg.shuffle_tokens, 2 * self.batch_tokens)
        self.num_tokens = None
        self.steps_per_epoch = None
        self.width = self.sample(1).shape[1]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        shuffled = _shuffle(self._items(), self._capacity, self.batch_tokens, _generator(self._seed, epoch))
        for batch, rows in enumerate(shuffled):
            if batch >= start and _worth_a_step(len(rows), self.batch_tokens, batch):
                yield self.share(rows)

    def sample(self, count: int) -> Tensor:
        if not self._once:
            return _gather(self._items(), count)
        have = sum(map(len, self._taken))
        for rows in self._read(len(self._taken)):
            self._taken.append(rows)
            have += len(rows)
            if have >= count:
                break
        return _gather(iter(self._taken), count)

    def fingerprint(self) -> dict[str, Any]:
        return {"width": self.width, "rows": _digest(self.sample(_FINGERPRINT_ROWS))}

    def _items(self) -> Iterator[Tensor]:
        if not self._once:
            return self._read(0)
        if self._spent:
            raise InputError(
                "the iterable of activations can be read only once, which is one epoch; set num_epochs=1, or"
                " pass an object whose __iter__ starts anew"
            )
        self._spent = True
        ahead, self._taken = self._taken, []
        return itertools.chain(ahead, self._read(len(ahead)))

    def _read(self, number: int) -> Iterator[Tensor]:
        """Yield the items, checked, as rows [n,D]; the first one read has number ``number``."""
        empty = True
        width = getattr(self, "width", None)
        dtype: torch.dtype | None = self._dtype
        for count, item in enumerate(self._iterable, number):
            rows = torch.from_numpy(np.array(item)) if isinstance(item, np.ndarray) else item
            if (
                not isinstance(rows, Tensor)
                or not rows.is_floating_point()
                or not (rows.dim() and rows.shape[-1])
            ):
                raise InputError(
                    f"item {count} of the iterable isn't a floating-point tensor [...,D], but {_kind(item)}"
                )
            rows = rows.detach().reshape(-1, rows.shape[-1])
            width = rows.shape[1] if width is None else width
            if rows.shape[1] != width:
                raise InputError(
                    f"item {count} of the iterable has width {rows.shape[1]}, the items before it {width}"
                )
            dtype = self._dtype = rows.dtype if dtype is None else dtype
            if rows.dtype != dtype:  # the shuffle buffer has one: the others would be cut to it
                raise InputError(
                    f"item {count} of the iterable is {rows.dtype}, the items before it {dtype}; convert "
                    "them to one type"
                )
            if not all_finite(rows):
                raise InputError(
                    f"activations contain NaN or infinity in item {count} of the iterable; leave them out"
                )
            empty = empty and len(rows) == 0
            if len(rows):
                yield rows
        if empty and number == 0:
            raise InputError("the iterable of activations has no tokens")


def _shuffle(
    items: Iterator[Tensor], capacity: int, batch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield random batches from a buffer of ``capacity`` tokens; half of it is replaced at a time."""
    buffer: Tensor | None = None
    filled = 0
    for item in items:
        rows = item
        while len(rows):
            if buffer is None:
                buffer = rows.new_empty(capacity, rows.shape[1])
            fits = min(capacity - filled, len(rows))
            buffer[filled : filled + fits] = rows[:fits]
            rows = rows[fits:]
            filled += fits
            if filled == capacity:
                order = torch.randperm(capacity, generator=generator).to(buffer.device)
                leaving = max(1, capacity // 2 // batch) * batch
                for part in torch.split(order[:leaving], batch):
                    yield buffer[part]
                filled = capacity - leaving
                buffer[:filled] = buffer[order[leaving:]]
    if buffer is not None:
        order = torch.randperm(filled, generator=generator).to(buffer.device)
        for part in torch.split(order, batch):
            yield buffer[part]


def steps_of_epoch(tokens: int, batch_tokens: int) -> int:
    """Return how many steps a pass over the tokens of a store takes."""
    full, rest = divmod(tokens, batch_tokens)
    return full + int(_worth_a_step(rest, batch_tokens, full))


def _worth_a_step(tokens: int, batch_tokens: int, batch: int) -> bool:
    """Whether a batch gets a step: a short last one would move the weights as far as a full one, on noise."""
    return tokens > 0 and (2 * tokens >= batch_tokens or batch == 0)


def _gather(stream: Iterator[Tensor], count: int) -> Tensor:
    parts: list[Tensor] = []
    missing = count
    for rows in stream:
        parts.append(rows[:missing])
        missing -= len(parts[-1])
        if missing <= 0:
            break
    return torch.cat(parts)


def _kept_tokens(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise InputError(f"mask must be a bool tensor of shape {shape}, got {_kind(mask)}")
    return mask.reshape(-1).nonzero().squeeze(1).cpu()


def _generator(seed: int, stream: int | str) -> torch.Generator:
    """Return a CPU generator of its own for every (seed, stream)."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def _kind(item: object) -> str:
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{item.dtype} {tuple(item.shape)}"
    return type(item).__name__
