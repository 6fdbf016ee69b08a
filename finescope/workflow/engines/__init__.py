"""Where the shards of a stage are worked on. A stage knows only that it has one of these.

engine      the contract of a shard, and the interface of all engines
crew        workers elsewhere, and the loop that keeps them at work
local       in this process, one after the other
processes   several processes of this machine
raymetrics  what Ray's dashboard sees of them
ray         actors of a Ray cluster
merged      nowhere: others have done it
table       the engines by name
"""
