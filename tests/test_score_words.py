"""TF-IDF is the baseline to beat: it must be the one that everybody means: scikit-learn's, word for word."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from finescope import InputError
from finescope.curation.blocks import iter_blocks, unit_rows
from finescope.curation.scoring.words import count_words

TEXTS = [
    "The cat sat; the CAT ran — and the cat's tail!",
    "",
    "Ünïcode wörter, naïve façade; 日本語 テキスト и русский текст",
    "a I x yz",  # words of one letter are no words
    "one_two three-four 5 66 777",
    "the " * 300 + "end",
    "İstanbul DİYARBAKIR ẞtraße",
]


def all_rows(codes):
    return [block for _, block in iter_blocks(codes)]


@pytest.mark.parametrize("copies", [1, 40])  # above 100 texts, words of one text are left out
def test_counts_are_those_of_scikit_learn(copies):
    texts = TEXTS * copies + ["only here"]
    words = count_words(iter(texts))
    vectorizer = CountVectorizer(min_df=2 if len(texts) > 100 else 1)
    expected = vectorizer.fit_transform(texts)
    assert words.vocabulary == vectorizer.get_feature_names_out().tolist()
    found = np.concatenate([block.to_dense().numpy() for block in all_rows(words)])
    np.testing.assert_array_equal(found, expected.toarray())
    np.testing.assert_array_equal(words.document_frequency, (expected.toarray() > 0).sum(axis=0))
    assert words.lengths.tolist() == [len(text) for text in texts]


def test_weighted_rows_are_tfidf_vectors():
    texts = TEXTS * 20
    words = count_words(texts)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    expected = vectorizer.fit_transform(texts).toarray()
    found = np.concatenate([unit_rows(block, words.idf).toarray() for block in all_rows(words.damped)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    others = ["the cat of nobody", "nothing known here", ""]
    counted = words.damp(words.count(others))
    np.testing.assert_allclose(
        unit_rows(counted, words.idf).toarray(), vectorizer.transform(others).toarray(), rtol=0, atol=1e-12
    )


def test_a_word_that_fills_a_text_is_counted_exactly():
    words = count_words(["w0 " * 70_001, "w0 w1 w1 w1"])
    (counts,) = all_rows(words)
    assert counts.to_dense().tolist() == [[70_001.0, 0.0], [1.0, 3.0]]
    (damped,) = all_rows(words.damped)
    assert damped.values.tolist() == [1 + np.log(70_001), 1.0, 1 + np.log(3)]


def test_blocks_of_texts_leave_no_trace(monkeypatch):
    texts = TEXTS * 30
    whole = count_words(texts)
    monkeypatch.setattr("finescope.embeddings.words.PART_ROWS", 8)
    parts = count_words(texts)
    assert len(list(parts.iter_shards())) > 20
    assert parts.vocabulary == whole.vocabulary
    (one,), (two,) = all_rows(whole), all_rows(parts)
    assert one == two


def test_texts_without_words_are_refused():
    with pytest.raises(InputError, match="no words in the 3 corpus texts"):
        count_words(["", " ", "? !"])
    with pytest.raises(InputError, match="no words in the 101 corpus texts"):
        count_words([f"text{number}" for number in range(101)])
