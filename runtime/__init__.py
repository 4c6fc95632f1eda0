"""ds2ds: fast decoding for document-graph language models."""
