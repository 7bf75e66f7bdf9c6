"""pipeline(): a model and its tokenizer, for a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_portable.boundary.registry import select
from mistral_portable.errors import InputError
from mistral_portable.transformers.auto_tokenizer import AutoTokenizer
from mistral_portable.transformers.classification import (
    FeatureExtractionPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
)
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.modeling import (
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel
from mistral_portable.transformers.text_generation import TextGenerationPipeline
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer

__all__ = ["Pipeline", "pipeline"]

PipelineTokenizer = MistralCommonTokenizer | PreTrainedTokenizerFast
Pipeline = TextGenerationPipeline | TextClassificationPipeline | TokenClassificationPipeline | FeatureExtractionPipeline

_TASKS: dict[str, tuple[type[MistralPreTrainedModel], type[Any]]] = {
    "text-generation": (MistralForCausalLM, TextGenerationPipeline),
    "text-classification": (MistralForSequenceClassification, TextClassificationPipeline),
    "token-classification": (MistralForTokenClassification, TokenClassificationPipeline),
    "feature-extraction": (MistralModel, FeatureExtractionPipeline),
}
_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def pipeline(
    task: str | None = None,
    model: str | Path | MistralPreTrainedModel | None = None,
    tokenizer: str | Path | PipelineTokenizer | None = None,
    *,
    device: int | str | None = None,
    device_map: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **loading: Any,
) -> Pipeline:
    """Make a pipeline from a checkpoint, or from a model and its tokenizer.

    task: "text-generation" (also that of a name without a task), "text-classification" ("sentiment-analysis"),
    "token-classification" ("ner") or "feature-extraction"; None: that of the model. device: the number of a CUDA GPU,
    or -1 for the CPU; a backend without a choice of devices takes 0 for its own. loading: arguments of from_pretrained,
    such as torch_dtype and backend.

    Raises InputError for another task, without a model, or for a model without a tokenizer or of another task.
    """
    if model is None:
        raise InputError("pipeline needs a model: pass a name, a path or a model")
    if not isinstance(model, str | Path | MistralPreTrainedModel):
        raise InputError(f"model is a {type(model).__name__}: pass a name, a path or a model")
    if not isinstance(tokenizer, str | Path | PipelineTokenizer | None):
        raise InputError(f"tokenizer is a {type(tokenizer).__name__}: pass a name, a path or a tokenizer")
    kind, made = _of_task(task, model)
    if isinstance(model, MistralPreTrainedModel):
        if tokenizer is None:
            raise InputError("pipeline needs the model's tokenizer: pass tokenizer=")
        if not isinstance(model, kind):
            raise InputError(f"task={task!r} needs a {kind.__name__}, and the model is a {type(model).__name__}")
        opened = model
    else:
        tokenizer = model if tokenizer is None else tokenizer
        if device is not None and device_map is not None:
            raise InputError(f"device={device!r} and device_map={device_map!r}: pass one of them")
        at = _device(device, loading.get("backend", "auto")) if device_map is None else device_map
        opened = kind.from_pretrained(model, **{"device_map": at, **loading, **(model_kwargs or {})})
    if not isinstance(tokenizer, PipelineTokenizer):
        assert tokenizer is not None
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    pipe: Pipeline = made(opened, tokenizer)
    return pipe


def _of_task(task: str | None, model: object) -> tuple[type[MistralPreTrainedModel], type[Any]]:
    """The classes of a task's model and pipeline; of None those of the model, or of text generation."""
    if task is None:
        own = (found for found in _TASKS.values() if isinstance(model, found[0]))
        return next(own, _TASKS["text-generation"])
    known = [*_TASKS, *_ALIASES]
    if task not in known:
        raise InputError(f"task={task!r:.40}: there are {', '.join(known)}")
    return _TASKS[_ALIASES.get(task, task)]


def _device(device: int | str | None, backend: str) -> int | str | None:
    if device == -1:
        return "cpu"
    return None if device == 0 and "device" not in select(backend).capabilities.options else device
