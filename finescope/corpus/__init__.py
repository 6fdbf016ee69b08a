"""Reading and writing the rows of a text corpus: JSON, Parquet, Arrow, Hugging Face datasets, lists."""

from finescope.corpus.dotted import lookup
from finescope.corpus.opening import open_corpus
from finescope.corpus.output import OUTPUTS
from finescope.corpus.reader import Corpus, CorpusStats
from finescope.corpus.row import Row
from finescope.corpus.writer import copy_rows, write_rows

__all__ = ["OUTPUTS", "Corpus", "CorpusStats", "Row", "copy_rows", "lookup", "open_corpus", "write_rows"]
