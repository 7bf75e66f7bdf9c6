"""ModelOptions: how a model is loaded, for the commands that load one."""

from dataclasses import dataclass
from typing import Any

from mistral_portable.cli.adapter_option import adapters_of
from mistral_portable.cli.options import (
    AdapterOption,
    AttentionOption,
    BackendOption,
    ChatTemplateOption,
    DeviceOption,
    DraftOption,
    DtypeOption,
    KVCacheOption,
    MaxContextOption,
    QuantizeOption,
    RayOption,
    RevisionOption,
    StagesOption,
    TensorParallelOption,
    ThreadsOption,
    WindowOption,
    window_of,
)

__all__ = ["ModelOptions"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Arguments of `mistral_portable.load`, as they stand on the command line (`grouped`)."""

    backend: BackendOption = "auto"
    dtype: DtypeOption = None
    quantize: QuantizeOption = None
    kv_cache: KVCacheOption = None
    device: DeviceOption = None
    attention: AttentionOption = None
    tensor_parallel: TensorParallelOption = None
    stages: StagesOption = None
    ray: RayOption = None
    window: WindowOption = "config"
    max_context: MaxContextOption = None
    threads: ThreadsOption = None
    revision: RevisionOption = None
    chat_template: ChatTemplateOption = None
    adapter: AdapterOption = None
    draft: DraftOption = "auto"

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `load`. transformers' spellings are read, too: dtype "auto" is the backend's choice, device "1" is
        "cuda:1". Raises typer.BadParameter for a window that cannot be read."""
        adapters = adapters_of(self.adapter or [])
        return {
            "backend": self.backend,
            "dtype": None if self.dtype == "auto" else self.dtype,
            "quantize": self.quantize,
            "kv_cache": self.kv_cache,
            "device": f"cuda:{self.device}" if self.device and self.device.isdecimal() else self.device,
            "attention": self.attention,
            "tensor_parallel": self.tensor_parallel,
            "stages": self.stages,
            "ray": self.ray,
            "window": window_of(self.window),
            "max_context": self.max_context,
            "threads": self.threads,
            "revision": self.revision,
            "chat_template": self.chat_template,
            "draft": self.draft,
            "adapters": {name: path for name, (path, _) in adapters.items()} or None,
            "adapter": {name: weight for name, (_, weight) in adapters.items()} or None,
        }
