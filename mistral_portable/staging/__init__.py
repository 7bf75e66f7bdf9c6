"""Models in stages: each stage is a part of the graph with its own weights and cache, wherever it runs."""

from mistral_portable.staging.part import Facts, Made, Part, make_part
from mistral_portable.staging.program import StagedProgram
from mistral_portable.staging.stage import Handle, LocalStage, Stage

__all__ = ["Facts", "Handle", "LocalStage", "Made", "Part", "Stage", "StagedProgram", "make_part"]
