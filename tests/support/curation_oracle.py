"""Slow float64 answers for curation, in dense numpy and plain loops; imports nothing of finescope."""

from __future__ import annotations

import math

import numpy as np


def unit(rows, weights=None):
    """Unit rows in the weighted space; zero rows stay zero."""
    rows = np.asarray(rows, dtype=np.float64)
    rows = rows if weights is None else rows * np.asarray(weights)
    norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.where(norms > 0, rows / np.where(norms > 0, norms, 1.0), 0.0)


def idf(rows):
    rows = np.asarray(rows)
    used = int((rows != 0).any(axis=1).sum())
    return np.array([math.log((used + 1) / (int((column > 0).sum()) + 1)) for column in rows.T])


def scores(targets, corpus, scorer, weights=None, m=3, folds=None):
    """Score [N], nearest target [N] and its cosine [N], by the definitions; folds [N] of what is fitted."""
    t, c = unit(targets, weights), unit(corpus, weights)
    usable = [i for i in range(len(t)) if t[i].any()]
    cosines = np.array([[float(np.dot(c[row], t[i])) for i in usable] for row in range(len(c))])
    seen = c[(c != 0).any(axis=1)]
    if scorer == "max":
        score = cosines.max(axis=1)
    elif scorer == "mean":
        score = cosines.mean(axis=1)
    elif scorer == "top_m_mean":
        score = np.sort(cosines, axis=1)[:, ::-1][:, :m].mean(axis=1)
    elif scorer == "centroid":
        raw = np.asarray(targets, np.float64) * (1.0 if weights is None else np.asarray(weights))
        centre = raw[usable].mean(axis=0)
        score = c @ (centre / np.linalg.norm(centre))
    elif scorer == "contrast":
        score = c @ (t[usable].mean(axis=0) - seen.mean(axis=0))
    elif scorer == "jaccard":
        prototype = t[usable].mean(axis=0)
        score = np.minimum(c, prototype).sum(axis=1) / np.maximum(c, prototype).sum(axis=1)
        score[~(c != 0).any(axis=1)] = 0.0
    elif scorer == "ridge":
        score = (c * ridge_directions(t[usable], c, c, folds, folds)).sum(axis=1)
    else:
        raise AssertionError(scorer)
    nearest = np.array(usable)[cosines.argmax(axis=1)]
    return score, nearest, cosines.max(axis=1)


def ridge(targets, others, penalty=0.004):
    """The direction that least squares with a penalty gives, over all latents; the intercept is a column of
    which the middle has been taken off beforehand."""
    others = others[(others @ targets.T).max(axis=1) < 1 - 1e-9]
    if len(others) == 0:
        return targets.mean(axis=0)
    middle = (targets.mean(axis=0) + others.mean(axis=0)) / 2
    rows = np.vstack([targets, others]) - middle
    weight = np.repeat([1 / len(targets), 1 / len(others)], [len(targets), len(others)])
    wanted = np.repeat([1.0, -1.0], [len(targets), len(others)])
    square = rows.T @ (weight[:, None] * rows) + penalty * np.eye(rows.shape[1])
    return np.linalg.solve(square, rows.T @ (weight * wanted))


def ridge_directions(targets, rows, background, folds, of_background):
    """The direction [N,F] of each row's score: fitted to the background's valid rows of other folds."""
    held = background.any(axis=1)
    of_fold = {
        fold: ridge(targets, background[held & (of_background != fold)]) for fold in np.unique(folds).tolist()
    }
    return np.array([of_fold[fold] for fold in folds.tolist()]).reshape(rows.shape)


def whitening(rows, shrinkage=0.3):
    """An inverse root of the covariance of dense rows with a share of the median variance added, by
    eigenvectors; any root gives the same cosines."""
    covariance = np.cov(np.asarray(rows, np.float64).T, bias=True)
    floor = shrinkage * np.median(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance + floor * np.eye(len(covariance)))
    return vectors / np.sqrt(values)


def sparse_rows(rng, rows, latents, density=0.15):
    """Random non-negative rows as dense float32; each has at least one latent."""
    dense = rng.random((rows, latents)) * (rng.random((rows, latents)) < density)
    for row in dense:
        if not row.any():
            row[rng.integers(latents)] = 1.0
    return dense.astype(np.float32)
