"""CONTRIBUTING says how to add a scorer: what is added that way must score, explain, compare, and sum."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from finescope import SparseCodes
from finescope.curation import METHODS, Evidence, Scoring, compare_methods
from finescope.curation.scoring.base import Linear, Mixture, SpaceScorer
from finescope.curation.scoring.scorers import TABLE
from finescope.workflow.job import Job
from support import curation_oracle as oracle


@dataclass(frozen=True)
class Soft(SpaceScorer):
    """Near targets count more: u = Σ softmax(sharpness·cosine)·t̂."""

    sharpness: float = 8.0

    def mixture(self, seen, pick):
        raised = np.exp(self.sharpness * seen.cosines[pick.columns].T)
        return Mixture(raised / raised.sum(axis=1, keepdims=True))

    def score(self, seen, pick):
        return (self.mixture(seen, pick).shares * seen.cosines[pick.columns].T).sum(axis=1)


class Halfway(Linear):
    """Less of the corpus' mean than contrast takes off."""

    def shares(self, pick):
        return np.full(pick.columns.size, 1 / pick.columns.size), -0.5


@pytest.fixture(params=["soft", "halfway"])
def name(request, monkeypatch):
    scorer = {
        "soft": Soft("soft", "softmax of cosines"),
        "halfway": Halfway("halfway", "mean of targets minus half the corpus' mean", uses_mean=True),
    }[request.param]
    monkeypatch.setitem(TABLE, scorer.name, scorer)
    return scorer.name


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    corpus, targets = oracle.sparse_rows(rng, 300, 30), oracle.sparse_rows(rng, 6, 30)
    relevant = rng.random(300) < 0.2
    corpus[relevant, :5] += targets[0, :5]
    return corpus, targets, relevant


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(dense))


def by_definition(name, corpus, targets):
    weights = oracle.idf(corpus)
    unit, seeds = oracle.unit(corpus, weights), oracle.unit(targets, weights)
    if name == "halfway":
        return unit @ (seeds.mean(axis=0) - 0.5 * unit.mean(axis=0))
    cosines = unit @ seeds.T
    shares = np.exp(8 * cosines) / np.exp(8 * cosines).sum(axis=1, keepdims=True)
    return (shares * cosines).sum(axis=1)


def test_it_scores_and_explains(name, problem):
    corpus, targets, _ = problem
    scoring = Scoring(Evidence(codes(corpus)), Evidence(codes(targets)), scorer=name)
    table = scoring.score()
    np.testing.assert_allclose(table.score, by_definition(name, corpus, targets), rtol=0, atol=1e-13)
    found = scoring.contributions(np.arange(300)).total()
    np.testing.assert_allclose(found, table.score, rtol=0, atol=1e-13)


def test_it_stands_in_the_table_and_in_sums(name, problem):
    corpus, targets, relevant = problem
    known = Evidence(codes(corpus)), Evidence(codes(targets))
    lines = compare_methods(relevant, *known, methods=(*METHODS, name, f"{name}+max"), draws=5)
    found = {line.name: line.metrics["average_precision"] for line in lines}
    assert {name, f"{name}+max", "default", "random"} <= set(found)
    assert found[name].low < found[name].high
    ranking = np.argsort(-by_definition(name, corpus, targets), kind="stable")
    hits = relevant[ranking]
    expected = (np.arange(1, hits.sum() + 1) / (np.flatnonzero(hits) + 1)).mean()
    assert found[name].value == pytest.approx(expected, abs=1e-12)
    both = Scoring(*known, scorer=f"0.5*{name}+max")
    table = both.score()
    np.testing.assert_allclose(both.contributions(np.arange(9)).total(), table.score[:9], rtol=0, atol=1e-9)


def test_a_job_takes_its_name(name):
    assert Job(scorer=f"{name}+tfidf").recipe().name == f"{name}+tfidf"


def test_the_recipe_names_what_there_is():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    recipe = text.partition("## Adding a scorer")[2].partition("\n## ")[0]
    for path in re.findall(r"`((?:finescope|tests)/[\w/.]+)`", recipe):
        assert (Path(__file__).parent.parent / path).is_file(), path
    for word in ("TABLE", "Linear", "mixture", "METHODS"):
        assert f"`{word}`" in recipe
