"""What a build tells when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from ds2ds.corpus.build.writer import CorpusSummary


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was written, and a line for each file that was left out or is odd."""

    summary: CorpusSummary
    remarks: tuple[str, ...]
