"""Drafts: what a text may go on with, and how much of it a step should try. Integers and times, no arrays."""

from mistral_portable.drafts.acceptance import Acceptance
from mistral_portable.drafts.costs import StepCosts
from mistral_portable.drafts.lengths import best_lengths
from mistral_portable.drafts.offer import NOTHING, Offer
from mistral_portable.drafts.suffixes import Suffixes

__all__ = ["NOTHING", "Acceptance", "Offer", "StepCosts", "Suffixes", "best_lengths"]
