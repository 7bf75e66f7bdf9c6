"""The conformance kit: cases, checks and the self-calibrating tolerance; `suite` and `strategies` need hypothesis."""

from mistral_portable.testing.case import Case, CheckResult, check
from mistral_portable.testing.op_cases import OP_CASES, op_case
from mistral_portable.testing.scenario import Feed, Scenario, one_shot, run
from mistral_portable.testing.tolerance import Comparison, compare, nmse
from mistral_portable.testing.verify import verify_checkpoint
from mistral_portable.testing.weights import random_weights

__all__ = [
    "OP_CASES",
    "Case",
    "CheckResult",
    "Comparison",
    "Feed",
    "Scenario",
    "check",
    "compare",
    "nmse",
    "one_shot",
    "op_case",
    "random_weights",
    "run",
    "verify_checkpoint",
]
