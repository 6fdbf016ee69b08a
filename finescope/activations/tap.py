"""ActivationTap: from rows of text to the activations of one layer, document by document."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finescope.activations import models
from finescope.activations.batches import (
    DTYPES,
    ActivationBatch,
    DocumentActivations,
    joined,
    rounded,
)
from finescope.activations.flops import ForwardCost, forward_cost
from finescope.activations.gguf import gguf_remark
from finescope.activations.given import device_of, model_of, name_of, stable_config, tokenizer_of
from finescope.activations.layer import Layer
from finescope.activations.windows import Document, Window, Windower, bucket_length, plan, rows_to_compute
from finescope.corpus.plan import SHARD_CHARACTERS, cut
from finescope.corpus.row import Row
from finescope.errors import InputError
from finescope.storage.files import PathLike
from finescope.storage.identity import sha256_json, sha256_tensors

_ORDERED_ROWS, _ORDERED_CHARACTERS = 512, 1 << 17
_SAMPLED_ELEMENTS = 256
_PROBE = (
    "In 1969, the crew of Apollo 11 landed on the Moon; 3 of 4 people who were alive then heard or saw it."
)
_PROBE_TOKENS = 24


class _ModelError(Exception):
    """The model raised an error at a group of windows."""


class ActivationTap:
    """Reads the output of one module of a Hugging Face model; nothing after that module is computed.

    Special tokens (start, end, separators, padding, chat markers) are seen by the model and left out of the
    activations, by id. Long documents are read in windows and come back whole: with overlap, a token is taken
    from the first window it is in. Padding is always on the right, with the attention mask, whatever the
    tokenizer's own side.

    **What is promised.** A document's activations don't depend on the documents around it, nor on their
    order: its row length is its own, and small batches are filled up. On the CPUs tested (x86 with MKL, one
    and two threads, attention heads at least 16 wide) they are the same bytes in any batch. Elsewhere a
    library may round differently for another number of rows, and they agree to about 1e-5 of their size.
    In a mixture of experts an expert multiplies as many tokens at a time as the batch sends it, so documents
    around one would reach its last bits. At exact lengths, the default on CPUs, each window of such a model
    is therefore a batch of its own; in padded batches the last bits do differ, in float32 by 3e-7 of the
    largest activation (Qwen3-MoE, Mixtral), while the same run, its batches the same, gives the same bytes.

    Families that look at padding in spite of the mask are found when the layer is tried, and are computed
    without any.

    Attributes:
        model: the model, in eval mode.
        tokenizer: its tokenizer.
        layer: full name of the module that is read, with ``@n`` if its n-th run was asked for.
        width: D.
        max_bad_rows: how many rows may be set aside; 0 refuses the first.
        remarks: what trying the layer told that a user should know; sentences without an end.
        activation_dtype: name of the dtype that activations are rounded to; None if they aren't.
        max_length: longest window in tokens, special ones included.
        padding_waste: share of the positions computed so far that were padding or filling.
    """

    def __init__(
        self,
        model: nn.Module | PathLike,
        layer: str,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        stride: int | None = None,
        long: str = "window",
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        exclude_special: bool = True,
        chat_template: str | None = None,
        refused_chats: str = "stop",
        start: bool | None = None,
        exact_lengths: bool | None = None,
        activation_dtype: str | None = None,
        **model_options: Any,
    ) -> None:
        """Load a model, find the layer and try it on a short text.

        Args:
            model: a local folder, a GGUF file, a hub name, or a model already loaded.
            layer: name of a torch module, such as ``layers.10``; see ``resolve_hookpoint``. Its output is
                read, so ``layers.10`` is what transformers calls ``hidden_states[11]``. Of a module that runs
                several times (blocks that share weights) that is the last run's, or the n-th's with ``@n``.
            tokenizer: folder, name or object; by default the model's own.
            max_length: longest window in tokens; by default what the model takes, at most 2048.
            stride: tokens by which windows of a long document overlap; None and 0 mean none.
            long: "window" reads all of a long document, "truncate" its first window.
            batch_tokens: positions per forward pass.
            device: by default the model's own if it is loaded, else CUDA where there is one, else the CPU.
            dtype: of the model's weights; by default float32 on CPUs, the checkpoint's own on accelerators.
            exclude_special: False keeps special tokens in the activations.
            chat_template: Jinja template for conversations; by default the tokenizer's own, and where it has
                none (or with "plain") plain ``role: content`` lines. The date is always the same in it.
            refused_chats: what becomes of a conversation that the template refuses: "stop" raises an error,
                "plain" reads it as plain lines.
            start: whether the tokenizer's start token stands before every window; by default as it does it.
            exact_lengths: batch only windows of equal length (no padding); by default on CPUs. False pads by
                up to 1/16, which fills larger batches, unless that changes what the layer gives. Of mixtures
                of experts, exact lengths are computed window by window.
            activation_dtype: float16, bfloat16 or float32: what activations are rounded to, so that those
                that come from a store and those that come from the model are the same; by default the dtype
                of the model.
            model_options: passed to ``AutoModel.from_pretrained``.

        Raises:
            InputError: no such model or tokenizer, no such layer (the nearest names are listed), a layer that
                doesn't run or whose output isn't [B,T,D], or window lengths that don't fit.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self.device = device_of(model, device)
        self.model = model_of(model, self.device, dtype, model_options)
        self._source = name_of(model)
        self.tokenizer = tokenizer_of(model, tokenizer, model_options)
        limit = models.length_limit(self.model, self.tokenizer, cap=max(2048, max_length or 0))
        if max_length is not None and max_length > limit:
            raise InputError(f"max_length {max_length} is more than the {limit} tokens the model takes")
        self.max_length = max_length or limit
        self.batch_tokens = batch_tokens
        self.activation_dtype: str | None = None
        self.max_bad_rows = 0
        if activation_dtype is not None:
            self.activation_dtype = self.rounding_to(activation_dtype).activation_dtype
        self._long, self._stride, self._exclude_special = long, stride or 0, exclude_special
        self.windower = Windower(
            self.tokenizer,
            max_length=self.max_length,
            stride=self._stride,
            long=long,
            exclude_special=exclude_special,
            chat_template=chat_template,
            refused_chats=refused_chats,
            start=start,
        )
        self._vocabulary = models.vocabulary_size(self.model)
        self._computed = self._useful = 0
        self._layer = Layer(self.model, layer, self.device, models.forward_options(self.model), self._probe())
        self.layer, self.width = self._layer.name, self._layer.width
        self._exact = self.device.type == "cpu" if exact_lengths is None else exact_lengths
        self._alone = self._exact and models.has_experts(self.model)
        self.remarks = tuple(self._remarks(model if tokenizer is None else tokenizer))

    @property
    def padding_waste(self) -> float:
        """Share of the positions computed so far that were padding or filling."""
        return 1.0 - self._useful / self._computed if self._computed else 0.0

    def rounding_to(self, dtype: str) -> ActivationTap:
        """Return a tap on the same model and layer whose activations are rounded to ``dtype``, by name.

        Raises:
            ValueError: a name that isn't known.
        """
        if dtype not in DTYPES:
            raise ValueError(f"activation_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        other = copy.copy(self)
        other.activation_dtype = dtype
        return other

    def truncating(self) -> ActivationTap:
        """Return a tap on the same model and layer that reads the first window of a text only."""
        other = copy.copy(self)
        other._long, other.windower = "truncate", self.windower.truncating()
        return other

    def cost(self) -> ForwardCost:
        """Return what a forward pass up to the layer takes; two are run for it."""
        return forward_cost(self.model, self._layer, self._probe())

    def setting_aside(self, limit: int) -> ActivationTap:
        """Return a tap on the same model and layer that sets up to so many rows aside that it can't read.

        These are conversations that the chat template refuses, texts with tokens that the model doesn't know,
        and those that the layer gives NaN or infinite activations for. They come without activations, and say
        why; whoever takes them counts them.
        """
        other = copy.copy(self)
        other.max_bad_rows = limit
        if limit:
            other.windower = self.windower.setting_aside()
        return other

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the activations: model (a sample of its weights), layer, tokenizer, windows."""
        config = getattr(self.model, "config", None)
        vocabulary = self.tokenizer.get_vocab() if hasattr(self.tokenizer, "get_vocab") else {}
        return {
            "model": type(self.model).__name__,
            "config": sha256_json(stable_config(config)),
            "weights": sha256_tensors(self.model.state_dict(), sample=_SAMPLED_ELEMENTS),
            "dtype": str(next(self.model.parameters()).dtype),
            "activation_dtype": self.activation_dtype,
            "layer": self._layer.identity,
            "tokenizer": sha256_json(
                [sorted(vocabulary.items()), self.windower.prefix, self.windower.suffix]
            ),
            "max_length": self.max_length,
            "stride": self._stride,
            "long": self._long,
            "exclude_special": self._exclude_special,
            "rendering": self.windower.renderer.fingerprint(),
        }

    def describe(self) -> dict[str, Any]:
        """Return a short description for reports and manifests."""
        return {
            "model": self._source,
            "layer": self.layer,
            "width": self.width,
            "max_length": self.max_length,
            "stride": self._stride,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "activation_dtype": self.activation_dtype,
            "device": str(self.device),
            "chat_template": self.windower.template_kind,
        }

    def run(self, rows: Iterable[Row], *, ordered: bool = True) -> Iterator[DocumentActivations]:
        """Yield the activations of every row; rows without text give [0,D].

        Args:
            rows: streamed.
            ordered: yield in the order of the rows, holding the activations of up to 512 documents or of 2^17
                characters; False yields each document when it is done, holds little and fills batches better.

        Raises:
            InputError: the layer gives NaN or infinite activations for a document (named), or a chat template
                refuses a conversation.
            TooLargeError: activations of a document (named) that ``activation_dtype`` can't hold.
        """
        waiting: dict[int, DocumentActivations] = {}
        aside: set[int] = set()
        following = 0
        pieces: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        chunk = {"chunk_rows": _ORDERED_ROWS, "chunk_characters": _ORDERED_CHARACTERS} if ordered else {}
        for batch in self.batches(rows, **chunk):
            for number, (document, part) in enumerate(zip(batch.documents, batch.parts, strict=True)):
                if document.index in aside:
                    continue
                low, high = batch.offsets[number], batch.offsets[number + 1]
                piece = (batch.token_ids[low:high], batch.activations[low:high])
                if document.bad:
                    aside.add(document.index)
                    pieces[document.index] = dict.fromkeys(
                        range(document.parts), (piece[0][:0], piece[1][:0])
                    )
                held = pieces.setdefault(document.index, {})
                # A copy, when it has to wait: a view would keep its whole batch in memory.
                held[part] = (
                    piece if document.parts == 1 and not ordered else (piece[0].clone(), piece[1].clone())
                )
                if len(held) < document.parts:
                    continue
                done = joined(document, pieces.pop(document.index))
                if not ordered:
                    yield done
                    continue
                waiting[done.index] = done
                while following in waiting:
                    yield waiting.pop(following)
                    following += 1

    def batches(
        self, rows: Iterable[Row], *, chunk_rows: int = 4096, chunk_characters: int = SHARD_CHARACTERS
    ) -> Iterator[ActivationBatch]:
        """Yield the activations batch by batch, in the order they are computed: the cheapest way to all.

        Every row comes up, in ``Document.parts`` windows; those of one document may come in any order.

        Args:
            rows: streamed.
            chunk_rows: rows tokenised and sorted by length at a time; more fill batches better.
            chunk_characters: characters of theirs, about.

        Raises:
            InputError: as ``run``.
        """
        start = 0
        for _, chunk in cut(rows, chunk_rows, chunk_characters):
            windows = self.windower.cut(chunk, start)
            start += len(chunk)
            if self.max_bad_rows:
                self._set_aside_unknown(windows)
            blank = [window for window in windows if window.document.bad or not window.kept]
            if blank:
                yield self._blank(blank)
            worth = [window for window in windows if window.kept and not window.document.bad]
            for group in plan(
                worth, self.batch_tokens, self.max_length, exact=self._exact, alone=self._alone
            ):
                left = [window for window in group if not window.document.bad]  # by another of its windows
                if left:
                    yield from self._tried(left)

    def _tried(self, group: list[Window]) -> Iterator[ActivationBatch]:
        """Yield the activations of a group; where the model fails on it, of each window by itself."""
        try:
            found = self._forward(group)
        except _ModelError as error:
            if len(group) > 1:
                for window in group:
                    yield from self._tried([window])
                return
            document = group[0].document
            if not self.max_bad_rows:
                self._refuse("the model fails on", document, f": {error}")
            document.bad = f"the model fails on it: {error}"
            found = self._blank(group)
        yield found

    def _forward(self, group: list[Window]) -> ActivationBatch:
        full = bucket_length(len(group[0].ids), self.max_length, exact=self._exact)
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        rows = 1 if self._alone else rows_to_compute(len(group), full, threads)
        ids = torch.full((rows, full), self._padding_id(), dtype=torch.int64)
        mask = torch.zeros((rows, full), dtype=torch.int64)
        for number in range(rows):
            window = group[number] if number < len(group) else group[0]
            ids[number, : len(window.ids)] = torch.tensor(window.ids)
            mask[number, : len(window.ids)] = 1
        if self._vocabulary is not None and int(ids.max()) >= self._vocabulary:
            self._refuse_token(group)
        try:
            hidden = self._layer(ids, mask)
        except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (
            RuntimeError,
            IndexError,
            ValueError,
        ) as error:  # Funnel's of two tokens, which it pools to none
            raise _ModelError(str(error).partition("\n")[0]) from error
        flat = torch.tensor(
            [number * full + position for number, window in enumerate(group) for position in window.kept]
        )
        self._computed += rows * full
        self._useful += sum(len(window.ids) for window in group)
        lengths = [len(window.kept) for window in group]
        activations = hidden.reshape(rows * full, -1)[flat.to(self.device)]
        batch = ActivationBatch(
            [window.document for window in group],
            [window.part for window in group],
            [0, *itertools.accumulate(lengths)],
            ids.reshape(-1)[flat],
            activations,
        )
        broken = batch.first_broken()
        if broken is not None:
            if not self.max_bad_rows:
                self._refuse(
                    f"layer {self.layer!r} gives NaN or infinite activations for",
                    batch.documents[broken],
                    "; the model's weights may be broken, or its dtype too narrow: try dtype float32",
                )
            batch = batch.setting_aside(f"layer {self.layer!r} gives NaN or infinite activations")
        return batch if self.activation_dtype is None else rounded(batch, DTYPES[self.activation_dtype])

    def _probe(self) -> list[int]:
        """Token ids of a short text, for trying the layer."""
        known = self._vocabulary or sys.maxsize
        words = self.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        words = [word for word in words if word < known] or [0]
        room = min(self.windower.room, _PROBE_TOKENS)
        return [*self.windower.prefix, *itertools.islice(itertools.cycle(words), room), *self.windower.suffix]

    def _remarks(self, tokenizer: Any) -> Iterator[str]:
        unknown = gguf_remark(tokenizer)
        if unknown:
            yield unknown
        if self._layer.runs > 1:
            which = "its last" if self._layer.run == self._layer.runs else "one"
            module = self.layer.partition("@")[0]
            yield (
                f"layer {module} runs {self._layer.runs} times in a forward pass; run {self._layer.run} is "
                f"read, {which} ({module}@n is the n-th)"
            )
        if self._exact:
            return
        change = self._layer.change_under_padding(self._padding_id(), self.max_length)
        if change > torch.finfo(next(self.model.parameters()).dtype).eps ** 0.5:
            self._exact = True
            yield (
                f"padding changes the activations of layer {self.layer}, by {change:.1g} of their size where "
                "it was tried: texts are computed at their exact lengths, in batches that are less full"
            )

    def _padding_id(self) -> int:
        # Masked out, so any valid id does. A padding token added to the tokenizer alone isn't one.
        padding = getattr(self.tokenizer, "pad_token_id", None)
        if padding is None or (self._vocabulary is not None and int(padding) >= self._vocabulary):
            return 0
        return int(padding)

    def _blank(self, windows: list[Window]) -> ActivationBatch:
        dtype = next(self.model.parameters()).dtype
        if self.activation_dtype is not None:
            dtype = DTYPES[self.activation_dtype]
        return ActivationBatch(
            [window.document for window in windows],
            [window.part for window in windows],
            [0] * (len(windows) + 1),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, self.width, dtype=dtype, device=self.device),
        )

    def _set_aside_unknown(self, windows: list[Window]) -> None:
        known = self._vocabulary
        for window in windows:
            if known is not None and window.ids and max(window.ids) >= known:
                window.document.bad = (
                    f"the tokenizer gives token {max(window.ids)}, but the model knows {known} tokens"
                )

    def _refuse_token(self, group: list[Window]) -> None:
        window = max(group, key=lambda window: max(window.ids))
        where = f" ({window.document.place})" if window.document.place else ""
        raise InputError(
            f"the tokenizer gives token {max(window.ids)} in document {window.document.id!r}{where}, but the "
            f"model knows {self._vocabulary} tokens; use the tokenizer that the model was trained with"
        )

    def _refuse(self, before: str, document: Document, after: str) -> None:
        where = f" ({document.place})" if document.place else ""
        raise InputError(
            f"{before} document {document.id!r}{where}{after.rstrip('.')}. --max-bad-rows sets such rows of "
            "a corpus aside"
        )
