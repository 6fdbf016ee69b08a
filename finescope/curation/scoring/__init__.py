"""Scores of corpus rows against target rows.

weighting   weights per latent (idf)
scorers     contrast, max, mean, top-m mean, centroid
presets     named recipes: default, paper, supplement
"""
