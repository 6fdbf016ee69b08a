"""A matrix packed once for many calls: the low-precision copy that the compiled engine screens with.

A packed matrix is a uint8 tensor that describes itself, so it can be stored and memory-mapped like any other.
It only ever decides how fast a result is found. Without a compiled engine, and where packing is of no use, it
is empty and the operations work as if it weren't there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks, native
from finescope.ops.checks import Search
from finescope.ops.public import limits_of
from finescope.ops.registry import default
from finescope.ops.schemas import call

KINDS = ("encode", *checks.METRICS)


@default("pack_rows")
def _pack_rows(matrix: Tensor, metric: str, screen: str) -> Tensor:
    checks.pack_rows(matrix, metric, screen)
    return matrix.new_empty((0,), dtype=torch.uint8)


@default("topk_encode_packed")
def _encode_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    checks.packed(packed)
    return call("topk_encode", x, weight, bias, k, "auto")  # type: ignore[no-any-return]


@default("cosine_topk_packed")
def _cosine_packed(queries: Tensor, corpus: Tensor, packed: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    checks.packed(packed)
    return call("cosine_topk", queries, corpus, *Search.packed(*options))  # type: ignore[no-any-return]


class PackedMatrix:
    """A matrix and its packed copy: pack once, search or encode many times.

    The matrix is shared, not copied, and must not change; results are those of ``topk_encode`` and
    ``cosine_topk`` on it, byte for byte.
    """

    def __init__(self, matrix: Tensor, *, metric: str = "cosine", screen: str | None = "auto") -> None:
        """Pack a matrix.

        Args:
            matrix: [N,D] corpus rows or [F,D] encoder, any floating dtype. Packed, it takes about a quarter
                of its float32 size for a search and three quarters for an encoder.
            metric: "cosine" or "ip" for searches, "encode" for an encoder.
            screen: precision of the packed copy: "auto", "int8", "bf16", "float32", or None for no copy.

        Raises:
            ValueError: not a matrix, an unknown metric or screen.
            TypeError: not floating point.
        """
        checks.pack_rows(matrix, metric, "none" if screen is None else screen)
        self.matrix = matrix
        self.metric = metric
        self.packed: Tensor = call("pack_rows", matrix.detach(), metric, "none" if screen is None else screen)

    @classmethod
    def of(cls, matrix: Tensor, metric: str, packed: Tensor) -> PackedMatrix:
        """Put together a matrix and its packed copy, which a :class:`PackedCache` keeps, say."""
        made = cls.__new__(cls)
        made.matrix, made.metric, made.packed = matrix, metric, packed
        return made

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def __repr__(self) -> str:
        shape = "×".join(str(size) for size in self.matrix.shape)
        return f"PackedMatrix({shape}, metric={self.metric!r}, packed={self.packed.numel() / 2**20:.1f} MiB)"

    def topk_encode(self, x: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """``finescope.ops.topk_encode`` with this matrix as the encoder; without gradients.

        Args:
            x: activations [B,D].
            bias: [F], or None.
            k: latents kept per token.

        Raises:
            ValueError: the matrix was packed for a search; shapes that do not fit; k > F.
        """
        if self.metric != "encode":
            raise ValueError(f"the matrix was packed for metric {self.metric!r}, not for 'encode'")
        checks.topk_encode(x, self.matrix, bias, k, "auto")
        with torch.no_grad():
            return call("topk_encode_packed", x, self.matrix, bias, self.packed, k)  # type: ignore[no-any-return]

    def threshold_encode(
        self,
        x: Tensor,
        bias: Tensor | None,
        threshold: Tensor | float,
        *,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> SparseCodes:
        """``finescope.ops.threshold_encode`` with this matrix as the encoder; without gradients.

        Args:
            x: activations [B,D].
            bias: [F], or None.
            threshold: [F], or one number for all.
            scale: [F], or None.
            offset: [F], or None.

        Raises:
            ValueError: the matrix was packed for a search; shapes that do not fit.
        """
        if self.metric != "encode":
            raise ValueError(f"the matrix was packed for metric {self.metric!r}, not for 'encode'")
        limits = limits_of(threshold, self.matrix)
        checks.threshold_encode(x, self.matrix, bias, limits, scale, offset, "auto")
        with torch.no_grad():
            values, indices, indptr = call(
                "threshold_encode_packed", x, self.matrix, bias, limits, self.packed, scale, offset
            )
        return SparseCodes(indptr, indices, values, len(self), check=False)

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        min_score: float | None = None,
        exclude: Tensor | None = None,
        mask: Tensor | None = None,
        id_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """``finescope.ops.cosine_topk`` with this matrix as the corpus; the arguments are explained there.

        Raises:
            ValueError: the matrix was packed for an encoder; shapes that do not fit.
        """
        if self.metric == "encode":
            raise ValueError("the matrix was packed for 'encode', not for a search")
        args: tuple[Any, ...] = (k, self.metric, min_score, exclude, mask, id_offset)
        checks.cosine_topk(queries, self.matrix, Search.packed(*args))
        with torch.no_grad():
            return call("cosine_topk_packed", queries, self.matrix, self.packed, *args)  # type: ignore[no-any-return]

    def save(self, path: str | Path) -> None:
        """Write the packed copy (not the matrix) to a safetensors file.

        Raises:
            StoreError: the disk is full, or the place can't be written to.
        """
        from finescope.storage.files import write_tensors

        write_tensors(path, {"packed": self.packed}, {"metric": self.metric})

    @classmethod
    def load(cls, path: str | Path, matrix: Tensor) -> PackedMatrix:
        """Map what ``save`` wrote for this very matrix; it is not packed again.

        Raises:
            StoreError: the file is missing, truncated or corrupt.
            ValueError: it holds something else, or what was packed for another shape.
        """
        from finescope.storage.files import map_tensors

        tensors, metadata = map_tensors(path, remedy="pack the matrix and save it again")
        if metadata.get("metric") not in KINDS or "packed" not in tensors:
            raise ValueError(f"{path} does not hold a packed matrix")
        loaded = cls.of(matrix, metadata["metric"], tensors["packed"])
        try:
            empty = matrix[:0]
            if loaded.metric == "encode":
                call("topk_encode_packed", empty, matrix, None, loaded.packed, 0)
            else:
                call("cosine_topk_packed", empty, matrix, loaded.packed, 0, loaded.metric)
        except RuntimeError as error:
            raise ValueError(f"{path}: {error}") from None
        return loaded


class PackedCache:
    """The packed copy of a matrix that may change, such as the weights of a model.

    A matrix is packed when it is seen unchanged for the second time, so that one that changes at every step
    is never packed in vain. Changes are noticed by the version that torch counts; and, because neither
    ``.data`` nor NumPy raises that, by a fingerprint of all bytes, taken in every call. That reads them once.
    For a matrix whose owner has promised that it won't change, a sample of the elements must do.
    """

    def __init__(self, *, constant: bool = False) -> None:
        """Cache for a matrix; ``constant``: it will not change."""
        self._look = _sample if constant else _fingerprint
        self._key: tuple[Any, ...] | None = None
        self._seen: int | bytes = b""
        self._packed: Tensor | None = None

    def get(self, matrix: Tensor, metric: str) -> Tensor | None:
        """The packed copy, or None while it does not pay to make one."""
        if matrix.device.type != "cpu" or torch.compiler.is_compiling() or matrix.is_inference():
            return None  # an inference tensor does not say when it changes
        key = (matrix.data_ptr(), matrix._version, tuple(matrix.shape), matrix.stride(), matrix.dtype, metric)
        seen = self._look(matrix.detach())
        if key != self._key or seen != self._seen:
            self._key, self._seen, self._packed = key, seen, None
            return None
        if self._packed is None:
            self._packed = call("pack_rows", matrix.detach(), metric, "auto")
        return self._packed

    def pack(self, matrix: Tensor, metric: str) -> None:
        """Make the packed copy at once, where there can be one."""
        for _ in range(2):
            self.get(matrix, metric)

    def __getstate__(self) -> dict[str, Any]:
        return {"constant": self._look is _sample}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: Any) -> PackedCache:
        return PackedCache(**self.__getstate__())


def _sample(matrix: Tensor) -> bytes:
    """The bits of up to 4096 elements, each of another row and spread over the columns."""
    n, width = matrix.shape
    if not matrix.numel():
        return b""
    rows = torch.arange(0, n, -(-n // 4096))
    # Bits, because a NaN does not equal itself.
    return matrix[rows, (rows * 7919) % width].view(torch.uint8).numpy().tobytes()


def _fingerprint(matrix: Tensor) -> int | bytes:
    """A number that changes with any element; what surrounds and separates the rows counts as well."""
    module = native.module("cpu")
    if module is None or not matrix.numel():
        return _sample(matrix)  # nothing is packed then
    spread = sum((size - 1) * stride for size, stride in zip(matrix.shape, matrix.stride(), strict=True))
    return int(module.fingerprint(matrix.data_ptr(), (spread + 1) * matrix.itemsize))
