"""Scores of corpus rows against target rows, and why a row has the score it has.

base        what a scorer is
jaccard     the generalised Jaccard similarity
ridge       a direction fitted to targets and corpus
scorers     how cosines become a score: contrast, max, mean, top-m mean, centroid, and the table of all
sums        sums of scorers, and how they are written
weighting   weights per latent (idf)
presets     named recipes: default, paper, supplement
words       texts as codes over words
space       a corpus as unit vectors: weights, norms, mean, targets
dense       activations as they are, about their mean, whitened
evidence    what is known of rows, and the spaces that it opens
onepass     one pass over blocks for everything that is asked at once
table       the scores of all rows, and their order
fitted      a recipe with what it has learned: it scores, explains, and can be saved
"""
