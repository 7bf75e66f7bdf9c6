"""From logits to text: one sampler on the host for every backend, in NumPy.

>>> import numpy as np
>>> sampler = Sampler(SamplingParams(temperature=0, logit_bias={2: -1.0}), prompt_tokens=[1, 2])
>>> sampler.sample(np.float32([0.5, 1.5, 2]))  # after the bias: 0.5, 1.5, 1
Sampled(token=1, logprob=None, top_logprobs=())

`sample_rows` takes the rows of many sequences at once, each with its own sampler.
"""

from mistral_portable.sampling.constraint import Constraint, Grammar
from mistral_portable.sampling.logits_processor import LogitsProcessor
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.rows import sample_rows
from mistral_portable.sampling.sampler import Sampled, Sampler, TokenLogprob
from mistral_portable.sampling.stated import RULES, stated_rules, stated_sampling
from mistral_portable.sampling.stop import StopMatcher

__all__ = [
    "RULES",
    "Constraint",
    "Grammar",
    "LogitsProcessor",
    "Sampled",
    "Sampler",
    "SamplingParams",
    "StopMatcher",
    "TokenLogprob",
    "sample_rows",
    "stated_rules",
    "stated_sampling",
]
