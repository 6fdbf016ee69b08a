"""Other people's pipelines, with the scores of a finished run as a step of theirs.

datatrove  a filter (``finescope[datatrove]``)
ray        what Ray Data maps batches by (``finescope[ray]``)
"""
