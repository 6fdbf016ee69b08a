"""From rows to windows of token ids, and from windows to batches whose shape no neighbour decides.

A floating-point result may change in its last bits with the shape of the batch it is computed in. So a
window's row length is a function of the window alone: either its own length (no padding at all, the default
on CPUs), or the next of about sixteen lengths per power of two, with at least one position of padding, so
that the masked attention path is always the one taken. Only the number of rows then differs from run to run.
"""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from finescope.activations.rendering import Renderer
from finescope.corpus.row import Row
from finescope.errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")
_MIN_TOKENS = 64
_MIN_TOKENS_PER_THREAD = 16
_EVEN_THREADS = 4


def rows_to_compute(rows: int, length: int, threads: int) -> int:
    """Return how many rows of ``length`` positions to compute; those beyond ``rows`` are copies.

    Two things make a CPU's result depend on the number of positions, both seen with MKL and torch 2.13. A
    matrix product of a handful of rows per thread takes another code path: so there are always enough. And an
    elementwise function is split evenly between threads, the last few elements of each share going through
    scalar code that rounds differently: so positions are a multiple of the threads, which makes shares whole
    rows. The latter is left out above four threads, where it would cost more than the last bit is worth.

    Args:
        rows: rows wanted.
        length: positions in each.
        threads: CPU threads; 1 on an accelerator.
    """
    least = max(_MIN_TOKENS, _MIN_TOKENS_PER_THREAD * threads)
    rows = max(rows, -(-least // length))
    if threads > _EVEN_THREADS:
        return rows
    step = threads // math.gcd(threads, length)
    return -(-rows // step) * step


@dataclass(slots=True)
class Document:
    """A row on its way through the model."""

    index: int
    """Position among the rows given."""
    id: str
    place: str
    parts: int = 1
    """Windows it was cut into."""
    num_tokens: int = 0
    """Tokens that are pooled: all but special ones."""
    bad: str = ""
    """Why it is set aside, and has no activations; "" if it isn't."""


@dataclass(slots=True)
class Window:
    """A stretch of one document, as the model will see it."""

    document: Document
    part: int
    """Number of the window in its document, from 0."""
    ids: list[int]
    """Token ids with the special tokens around them."""
    kept: list[int] = field(default_factory=list)
    """Positions in ``ids`` whose activations count: no special token, none that an earlier window gave."""


class Windower:
    """Tokenises rows and cuts them into windows."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        stride: int = 0,
        long: str = "window",
        exclude_special: bool = True,
        chat_template: str | None = None,
        refused_chats: str = "stop",
        start: bool | None = None,
    ) -> None:
        """Prepare for one tokenizer.

        Args:
            tokenizer: a Hugging Face tokenizer.
            max_length: longest window in tokens, special ones included.
            stride: tokens by which successive windows overlap (the tokenizers' meaning of the word).
            long: "window" cuts long documents into windows, "truncate" keeps the first window only.
            exclude_special: leave special tokens out of what is kept, by id.
            chat_template: Jinja template for conversations instead of the tokenizer's own; "plain" for none.
            refused_chats: what becomes of a conversation that the template refuses: see ``Renderer``.
            start: whether the start token stands before every window; None leaves that to the tokenizer.

        Raises:
            InputError: no room for a token between the special ones, or an overlap that leaves no progress.
        """
        self._tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, chat_template, refused_chats)
        self.prefix, self.suffix = _surroundings(tokenizer)
        token = getattr(tokenizer, "bos_token_id", None)
        if start is not None and token is not None:
            self.prefix = [token] * start + [each for each in self.prefix if each != token]
        self.starts = token is not None and token in self.prefix
        self.room = max_length - len(self.prefix) - len(self.suffix)
        if long not in ("window", "truncate"):
            raise ValueError(f"long must be 'window' or 'truncate', got {long!r}")
        if self.room < 1:
            raise InputError(
                f"max_length {max_length} leaves no room beside the tokenizer's "
                f"{len(self.prefix) + len(self.suffix)} special tokens"
            )
        if not 0 <= stride < self.room:
            raise InputError(
                f"stride {stride} must be from 0 to {self.room - 1}: windows hold {self.room} tokens"
            )
        self._stride, self._truncate, self._aside = stride, long == "truncate", False
        self.special = special_ids(tokenizer) if exclude_special else frozenset()

    @property
    def template_kind(self) -> str:
        """Which chat template conversations go through; see ``Renderer.kind``."""
        return self.renderer.kind

    def truncating(self) -> Windower:
        """Return a windower that keeps the first window of a text only."""
        other = copy.copy(self)
        other._truncate = True
        return other

    def setting_aside(self) -> Windower:
        """Return a windower that sets conversations aside which the template refuses, and raises nothing."""
        other = copy.copy(self)
        other._aside = True
        return other

    def cut(self, rows: Sequence[Row], first_index: int = 0) -> list[Window]:
        """Return the windows of ``rows``, at least one a row; without tokens, or set aside, an empty one.

        Raises:
            InputError: a chat template refuses a conversation; names the row.
        """
        refused: dict[int, str] = {}
        texts = [self._text(place, row, refused) for place, row in enumerate(rows)]
        encoded = self._encode(texts)
        windows: list[Window] = []
        for offset, (row, ids) in enumerate(zip(rows, encoded, strict=True)):
            if row.messages is not None and self.prefix and ids[: len(self.prefix)] == self.prefix:
                ids = ids[len(self.prefix) :]  # the template has written the start token itself
            document = Document(first_index + offset, row.id, row.place, bad=refused.get(offset, ""))
            windows.extend(self._windows(document, [] if row.empty else ids))
        return windows

    def _text(self, place: int, row: Row, refused: dict[int, str]) -> str:
        try:
            return _well_formed(self.renderer.text(row))
        except InputError as error:
            if not self._aside:
                raise
            refused[place] = f"the chat template refuses the conversation: {error.__cause__}"
            return ""

    def count(self, rows: Sequence[Row]) -> list[int]:
        """Return how many tokens of each row would be kept."""
        counts = dict.fromkeys(range(len(rows)), 0)
        for window in self.cut(rows):
            counts[window.document.index] += len(window.kept)
        return list(counts.values())

    def _windows(self, document: Document, ids: list[int]) -> Iterator[Window]:
        step = self.room - self._stride
        last = 0 if self._truncate else max(0, -(-(len(ids) - self.room) // step))
        document.parts = last + 1
        for part in range(document.parts):
            content = ids[part * step : part * step + self.room]
            if not content:
                yield Window(document, part, [])
                continue
            seen = self._stride if part else 0
            whole = [*self.prefix, *content, *self.suffix]
            low, high = len(self.prefix) + seen, len(self.prefix) + len(content)
            if self.special:
                kept = [position for position in range(low, high) if whole[position] not in self.special]
            else:
                # Special tokens count too: those at the ends belong to the first and to the last window.
                kept = list(range(0 if part == 0 else low, len(whole) if part == last else high))
            document.num_tokens += len(kept)
            yield Window(document, part, whole, kept)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]


def _well_formed(text: str) -> str:
    """Replace halves of surrogate pairs, as a cut emoji leaves them, by U+FFFD: tokenizers refuse them."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of special tokens: start, end, separators, padding, mask, chat markers.

    The unknown token isn't one of them, unless it doubles as another: it stands for a word of the text.
    """
    named = {
        value
        for name, value in (getattr(tokenizer, "special_tokens_map", None) or {}).items()
        if name != "unk_token" and isinstance(value, str)
    }
    unknown = getattr(tokenizer, "unk_token_id", None)
    found = set(getattr(tokenizer, "all_special_ids", None) or [])
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    found.update(index for index, token in added.items() if getattr(token, "special", False))
    if unknown is not None and getattr(tokenizer, "unk_token", None) not in named:
        found.discard(unknown)
    return frozenset(int(index) for index in found)


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    probe = "a"
    bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(probe, add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise InputError("the tokenizer changes a text when it adds special tokens; it can't be cut into windows")


def bucket_length(length: int, limit: int, *, exact: bool) -> int:
    """Return the row length that a window of ``length`` tokens is computed at."""
    if exact or length >= limit:
        return length
    step = max(1, 1 << max(0, length.bit_length() - 5))
    return min(limit, (length // step + 1) * step)


def plan(
    windows: Sequence[Window], batch_tokens: int, limit: int, *, exact: bool, alone: bool = False
) -> list[list[Window]]:
    """Group windows of one row length into batches of at most ``batch_tokens`` positions, longest first.

    Longest first, so that a batch too large for the device fails at the start and not after an hour.

    Args:
        windows: to be grouped.
        batch_tokens: positions of a batch.
        limit: the longest window there may be.
        exact: rows are as long as their windows.
        alone: each window is a batch of its own.
    """
    groups: dict[tuple[int, bool], list[Window]] = defaultdict(list)
    for window in windows:
        if window.ids:
            length = bucket_length(len(window.ids), limit, exact=exact)
            # A full row shares no batch with a padded one: without padding, attention may go another way.
            groups[length, length == len(window.ids)].append(window)
    batches: list[list[Window]] = []
    for (length, _), members in sorted(groups.items(), key=lambda item: item[0], reverse=True):
        rows = 1 if alone else max(1, batch_tokens // length)
        batches.extend(members[start : start + rows] for start in range(0, len(members), rows))
    return batches
