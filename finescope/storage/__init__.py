"""Files that others may trust: written whole or not at all, known by what they hold, resumable.

files    atomic writes, read-ahead advice, hashes
shards   numbered shards of safetensors beside a manifest, written one by one, resumed to the byte
"""
