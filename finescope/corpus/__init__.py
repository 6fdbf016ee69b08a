"""Reading and writing the rows of a text corpus: JSONL, Parquet, Hugging Face datasets, lists."""

from finescope.corpus.reader import Corpus, CorpusStats, open_corpus
from finescope.corpus.row import Row
from finescope.corpus.writer import write_rows

__all__ = ["Corpus", "CorpusStats", "Row", "open_corpus", "write_rows"]
