"""The boundary between the core and its executors: protocols, their values, and the checks that the core makes.

`shared.py`, for authors of executors, holds what lowerings have in common.
"""

from mistral_portable.boundary.backend import Availability, Backend, check_options, check_supported, prepare
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.boundary.functional import FunctionalBackend, PureFunction
from mistral_portable.boundary.options import BACKEND_QUANTIZE, COMPILING, Capabilities, ExecutorOptions
from mistral_portable.boundary.program import (
    INT8_BLOCK,
    Q8_0_BLOCK,
    ChunkingProgram,
    DrawingProgram,
    DrawnStep,
    Draws,
    GreedyProgram,
    LaneState,
    OwnMemory,
    PipelinedProgram,
    Precision,
    Program,
    Step,
    StepInPipeline,
)
from mistral_portable.boundary.quantizer import Quantizer, QuantizingBackend
from mistral_portable.boundary.saved import SavedLane, load_lane, save_lane

__all__ = [
    "BACKEND_QUANTIZE",
    "COMPILING",
    "INT8_BLOCK",
    "Q8_0_BLOCK",
    "Availability",
    "Backend",
    "Capabilities",
    "ChunkingProgram",
    "DrawingProgram",
    "DrawnStep",
    "Draws",
    "ExecutorOptions",
    "FunctionalBackend",
    "GreedyProgram",
    "LaneState",
    "OwnMemory",
    "PipelinedProgram",
    "Precision",
    "Program",
    "PureFunction",
    "Quantizer",
    "QuantizingBackend",
    "SavedLane",
    "Step",
    "StepInPipeline",
    "check_options",
    "check_supported",
    "check_tensors",
    "load_lane",
    "prepare",
    "save_lane",
]
