"""The documented TensorFlow classes: the same models, which take and return TensorFlow's tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mistral_portable.errors import BackendError, InputError
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.modeling import (
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
)
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel

__all__ = ["TFMistralForCausalLM", "TFMistralForSequenceClassification", "TFMistralModel"]


class _TensorFlow(MistralPreTrainedModel):
    """Base of the TensorFlow classes.

    Inputs are passed one by one, or all in the first argument, a dictionary or a list. Inputs of any library give
    TensorFlow's tensors. These have no gradients, and calls cannot be traced: an executor computes from values.
    past_key_values are a Cache, like those of the other classes, not tuples of tensors.
    """

    def __init__(self, config: MistralConfig, **made: Any) -> None:
        """Make a model; see MistralPreTrainedModel. Raises BackendError if TensorFlow is not installed."""
        _tensor(0)
        super().__init__(config, **made)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, from_pt: bool = False, **named: Any) -> Self:
        """Load a checkpoint; see MistralPreTrainedModel. from_pt: without effect, as every format is read."""
        return super().from_pretrained(name, **named)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.call(*inputs, **named)

    def call(self, *inputs: Any, training: bool = False, **named: Any) -> Any:
        """Run the model; inputs as in `forward` of the class without TF, or all in the first argument.

        training: requires an attention_dropout of 0 in the config, as there is no dropout. Raises InputError as
        `forward` does, and under tf.function.
        """
        if training and (dropout := self.config.to_dict().get("attention_dropout")):
            raise InputError(f"attention_dropout={dropout}: there is no dropout; set it to 0")
        if inputs and isinstance(inputs[0], Mapping):
            if len(inputs) > 1:
                raise InputError("inputs are a dictionary: pass what comes with it by name")
            named, inputs = {**inputs[0], **named}, ()
        elif inputs and isinstance(inputs[0], list | tuple) and all(hasattr(array, "shape") for array in inputs[0]):
            inputs = (*inputs[0], *inputs[1:])
        if inputs and inputs[0] is not None:
            inputs = (_tensor(inputs[0]), *inputs[1:])
        given = [name for name in ("input_ids", "inputs_embeds") if named.get(name) is not None]
        return self.forward(*inputs, **{**named, **{name: _tensor(named[name]) for name in given}})


class TFMistralModel(_TensorFlow, MistralModel):
    """MistralModel, for TensorFlow."""


class TFMistralForCausalLM(_TensorFlow, MistralForCausalLM):
    """MistralForCausalLM, for TensorFlow."""

    def generate(self, *inputs: Any, **named: Any) -> Any:
        """Continue each row; see `MistralForCausalLM.generate`."""
        prompts = {
            name: named[name] for name in ("inputs", "input_ids", "inputs_embeds") if named.get(name) is not None
        }
        first = [None if array is None else _tensor(array) for array in inputs[:1]]
        return super().generate(*first, *inputs[1:], **named | {name: _tensor(some) for name, some in prompts.items()})


class TFMistralForSequenceClassification(_TensorFlow, MistralForSequenceClassification):
    """MistralForSequenceClassification, for TensorFlow."""


def _tensor(array: Any) -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise BackendError(
            f"TensorFlow cannot be imported ({error}): pip install --upgrade 'mistral-portable[tf]'"
        ) from error
    if not tensorflow.executing_eagerly():
        raise InputError("TensorFlow is tracing the call, and an executor needs values: call it outside of tf.function")
    return tensorflow.convert_to_tensor(array)
