"""``sklearn.neighbors.NearestNeighbors``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors as _Theirs
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.compat.rows import Array, Rows, all_within, chosen, rows_of, runs
from finescope.ops import fixed_order
from finescope.search import Index
from finescope.search.euclidean import NearestRows

_METRICS = {
    "minkowski": "euclidean",
    "euclidean": "euclidean",
    "l2": "euclidean",
    "sqeuclidean": "sqeuclidean",
    "cosine": "cosine",
    "ip": "ip",
}
# Elements that queries may take while they are made dense.
_ELEMENTS = 1 << 24


class NearestNeighbors(_Theirs):  # type: ignore[misc]
    """``sklearn.neighbors.NearestNeighbors``, exact for dense and sparse rows.

    A subclass of scikit-learn's, with its parameters, defaults, graphs and place in a pipeline.
    ``algorithm``, ``leaf_size`` and ``n_jobs`` are taken and change nothing: the search is always the same.

    Metrics: "minkowski" (the default, with ``p=2``), "euclidean", "l2", "sqeuclidean", "cosine" (1 − cosine;
    1 where either row is zero), and "ip" (1 − inner product, which scikit-learn hasn't).

    Attributes:
        n_samples_fit_: N.
        n_features_in_: D.
        effective_metric_: "euclidean", "sqeuclidean", "cosine" or "ip".
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        radius: float = 1.0,
        algorithm: str = "auto",
        leaf_size: int = 30,
        metric: str = "minkowski",
        p: float = 2,
        metric_params: dict[str, Any] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_neighbors=n_neighbors,
            radius=radius,
            algorithm=algorithm,
            leaf_size=leaf_size,
            metric=metric,
            p=p,
            metric_params=metric_params,
            n_jobs=n_jobs,
        )

    def fit(self, X: Any, y: object = None) -> NearestNeighbors:
        """Hold the rows ready; dense ones in memory are shared, not copied, for "cosine" and "ip".

        Args:
            X: [N,D], an array, a tensor, or a sparse matrix of scipy or torch.
            y: ignored.

        Raises:
            ValueError: not a matrix, no rows, NaN or infinity; a parameter or a metric that isn't allowed.
            TypeError: entries that aren't numbers.
        """
        self._check_parameters()
        self._fit_X = self._checked(X, reset=True)
        self.effective_metric_ = _METRICS[self.metric]
        self.effective_metric_params_: dict[str, Any] = {}
        self._fit_method, self._tree = "brute", None
        self.n_samples_fit_ = self._fit_X.shape[0]
        self._hold()
        return self

    def _hold(self) -> None:
        self._rows = rows_of(self._fit_X, "X")
        euclidean = self.effective_metric_ in ("euclidean", "sqeuclidean")
        self._index = (
            NearestRows(self._rows) if euclidean else Index(self._rows, metric=self.effective_metric_)
        )

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """The nearest rows of each query.

        Args:
            X: queries [Q,D]; None for the rows themselves, none of which is its own neighbour.
            n_neighbors: how many; as given to the constructor if None.
            return_distance: whether to return distances as well.

        Returns:
            distances [Q,n_neighbors], nearest first, of equal ones by row, and rows [Q,n_neighbors], int64;
            without distances only the rows. Distances are float64 for the Euclidean metrics and where any row
            or query is, else float32.

        Raises:
            ValueError: not fitted, other widths, more neighbours than rows, NaN or infinity.
            TypeError: a number of neighbours that isn't whole.
        """
        check_is_fitted(self)
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f"n_neighbors must be a whole number, got {count!r}")
        queries = self._queries(X)
        most = self.n_samples_fit_ - (X is None)
        if not 0 < count <= most:
            raise ValueError(
                f"Expected 0 < n_neighbors <= {most}, but n_neighbors = {count}, "
                f"n_samples_fit = {self.n_samples_fit_}, n_samples = {len(queries)}"
            )
        own = torch.arange(len(queries)) if X is None else None
        found, ids = self._search(queries, int(count), own=own)
        return (found.numpy(), ids.numpy()) if return_distance else ids.numpy()

    def radius_neighbors(
        self,
        X: Any = None,
        radius: float | None = None,
        return_distance: bool = True,
        sort_results: bool = False,
    ) -> Any:
        """All rows whose distance, as returned, is at most a radius.

        Args:
            X: queries [Q,D]; None for the rows themselves, none of which is its own neighbour.
            radius: as given to the constructor if None.
            return_distance: whether to return distances as well.
            sort_results: whether each query's results come nearest first, of equal ones by row; else by row.

        Returns:
            distances and rows, arrays of Q arrays; without distances only the rows.

        Raises:
            ValueError: not fitted, other widths, NaN or infinity, sorted results without distances.
        """
        check_is_fitted(self)
        if sort_results and not return_distance:
            raise ValueError("return_distance must be True if sort_results is True.")
        queries, limit = self._queries(X), self.radius if radius is None else radius
        distances, ids = all_within(
            lambda places, k: self._search(chosen(queries, places), k, own=places if X is None else None),
            len(queries),
            self.n_samples_fit_ - (X is None),
            lambda found: found <= limit,
        )
        found = [_arrays(distances), _arrays(ids)]
        if not sort_results:
            order = [np.argsort(each) for each in found[1]]
            found = [_arrays([each[o] for each, o in zip(side, order, strict=True)]) for side in found]
        return tuple(found) if return_distance else found[1]

    # ------------------------------------------------------------------ parts

    def _search(self, queries: Rows, k: int, *, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distances and rows [Q,k]; ``own``: the rows that the queries are, which they shall not find."""
        exclude = None if own is None else own[:, None]
        if isinstance(queries, SparseCodes) and isinstance(self._rows, Tensor):
            parts = [
                self._index.search(queries[some.numpy()].to_dense(), k)
                for some in runs(torch.arange(len(queries)), _ELEMENTS // max(1, self.n_features_in_))
            ]
            found, ids = (torch.cat(side) for side in zip(*parts, strict=True))
        elif isinstance(queries, Tensor) and isinstance(self._rows, SparseCodes):
            found, ids = self._index.search(SparseCodes.from_dense(queries), k)
        else:
            found, ids = self._index.search(queries, k, exclude=exclude)
        if self.effective_metric_ == "euclidean":
            found = fixed_order.sqrt(found)
        elif self.effective_metric_ != "sqeuclidean":
            found = 1.0 - found
        if self.effective_metric_ == "cosine":
            found.clamp_(0.0, 2.0)
        return found, ids

    def _queries(self, X: Any) -> Rows:
        return self._rows if X is None else rows_of(self._checked(X, reset=False), "X")

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """Queries or rows as scikit-learn checks them: an array or a CSR matrix of finite numbers."""
        if isinstance(X, SparseCodes) or (isinstance(X, Tensor) and X.layout != torch.strided):
            X = rows_of(X, "X").to_scipy()  # type: ignore[union-attr]
        elif isinstance(X, Tensor):
            X = (X.float() if X.dtype == torch.bfloat16 else X).detach().cpu().numpy()
        options = {"accept_sparse": "csr", "dtype": [np.float64, np.float32, np.float16], "reset": reset}
        try:
            from sklearn.utils.validation import validate_data
        except ImportError:  # before scikit-learn 1.6
            return self._validate_data(X, **options)
        return validate_data(self, X, **options)

    def _check_parameters(self) -> None:
        if self.metric not in _METRICS:
            raise ValueError(f"metric must be one of {', '.join(map(repr, _METRICS))}, got {self.metric!r}")
        params = self.metric_params or {}
        if self.metric == "minkowski" and (params.get("p", self.p) != 2 or set(params) - {"p"}):
            raise ValueError(
                f"the metric minkowski is searched with p=2 and without weights, got p={self.p!r} and "
                f"metric_params={self.metric_params!r}"
            )
        if self.metric != "minkowski" and params:
            raise ValueError(f"the metric {self.metric} takes no metric_params, got {params!r}")
        _Theirs(**{**self.get_params(deep=False), "metric": "minkowski"})._validate_params()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_rows", "_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_fit_X"):
            self._hold()


def _arrays(parts: Sequence[Any]) -> Array:
    """An array of arrays, also where all have one length."""
    found = np.empty(len(parts), dtype=object)
    for place, part in enumerate(parts):
        found[place] = np.asarray(part)
    return found
