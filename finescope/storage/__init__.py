"""Files that others may trust: written whole or not at all, known by what they hold, resumable.

remote     files behind URLs
files      atomic writes; JSON and tensors; the words for files that are missing or damaged
remote_folder
           folders whose results belong at a URL
identity   hashes, and what tells two sets of plain values apart
mapping    mapped files: advice to the system, reading ahead
spill      numbers of many rows, on the disk where they are very many
coded      strings of many rows, of which few differ
strings    strings of an Arrow column, as a sequence
lock       one run at a time in one folder
yaml12     plain values of YAML 1.2
manifest   what a store says of itself
pieces     what of the shard at work is done already
shardfiles the files of single shards, which any process may make
checked    shards as they are read: whole, or refused by name
shards     numbered shards of safetensors beside a manifest, made in any order, resumed to the byte
store      what the stores of activations and of codes have in common
"""
