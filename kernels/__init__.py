"""Kernels, each beside its plain reference."""

from .compaction import compact_arena
from .sampling import SampleOutput, SampleStatus, sample_rows

__all__ = ["SampleOutput", "SampleStatus", "compact_arena", "sample_rows"]
