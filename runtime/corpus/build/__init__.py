"""Making a corpus: from documents (``write_corpus``), or from a folder of markdown (``build_corpus``)."""
