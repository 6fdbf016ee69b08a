"""Files that others may trust: written whole or not at all, known by what they hold, resumable.

files      atomic writes, read-ahead advice, hashes
identity   what tells two sets of plain values apart, in words
shards     numbered shards of safetensors beside a manifest, written one by one, resumed to the byte
"""
