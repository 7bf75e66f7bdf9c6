"""Shared by all APIs: bodies that are checked, and the conversation that a request of any API becomes."""

from mistral_portable.api.body import JSON, Body, Many, Stop, Stops, check_body, parse_body
from mistral_portable.api.conversation import Conversation, any_object
from mistral_portable.api.dimensions import check_dimensions
from mistral_portable.api.sampling import UNSTATED, Stated, sampling_params
from mistral_portable.api.whole_calls import Part, WholeCalls

__all__ = [
    "JSON",
    "UNSTATED",
    "Body",
    "Conversation",
    "Many",
    "Part",
    "Stated",
    "Stop",
    "Stops",
    "WholeCalls",
    "any_object",
    "check_body",
    "check_dimensions",
    "parse_body",
    "sampling_params",
]
