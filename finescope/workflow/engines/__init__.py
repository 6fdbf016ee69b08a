"""Where the shards of a stage are worked on. A stage knows only that it has one of these.

local   in this process, one after the other
"""
