"""The demonstrations: made-up activations with known domains, and real text with a real model.

synthetic    activations made up from known domains, from SAE to report
docstrings   a labelled corpus that every machine has: the docstrings of the installed libraries
text         the main job on it, topic by topic
"""
