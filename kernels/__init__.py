"""Kernels, each beside its plain reference."""

from .sampling import SampleOutput, SampleStatus, sample_rows

__all__ = ["SampleOutput", "SampleStatus", "sample_rows"]
