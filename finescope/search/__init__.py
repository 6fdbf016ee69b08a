"""A corpus held ready to be searched, in memory or in files, by cosine or inner product; exact.

index       ``Index``, the one public face; it chooses among the others
rows        what an index takes: tensors, arrays, mapped files, sparse codes, code stores
blocked     rows in mapped files, read by blocks
file        one file that holds an index, packed
streaming   blocks on their way to a device
euclidean   exact L2 by an inner product
"""

from finescope.search.index import Index

__all__ = ["Index"]
