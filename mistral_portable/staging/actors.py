"""ActorStage: a Part in an actor of a Ray cluster. Needs the [ray] extra; nothing else here imports Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from mistral_portable.errors import ClosedError, MistralPortableError
from mistral_portable.staging.part import Made, Part

__all__ = ["ActorStage"]


@dataclass(frozen=True)
class _Call:
    """A call whose result stays in the cluster until it is asked for: rows go from one stage to the next directly."""

    reference: Any

    def result(self) -> Any:
        try:
            value = ray.get(self.reference)
        except (RayActorError, RayTaskError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, RayActorError):
                raise ClosedError(
                    f"a stage has ended ({type(cause).__name__}), and with it its layers' cache: load the model again"
                ) from error
            raise cause if isinstance(cause, MistralPortableError) else error from None
        if isinstance(value, Mapping):  # arrays in Ray's memory cannot be written
            return {name: np.array(array) for name, array in value.items()}
        return value


class ActorStage:
    """An actor that the cluster places, if it can, on another machine than others, and that is not started again."""

    def __init__(self, make: Callable[[], Made], cpus: int) -> None:
        """make: that of Part. cpus: those that the cluster must have free for it."""
        actor: Any = ray.remote(max_restarts=0, num_cpus=cpus, scheduling_strategy="SPREAD")(Part)
        self._actor = actor.remote(make)

    def submit(self, method: str, *arguments: Any) -> _Call:
        ready = [argument.reference if isinstance(argument, _Call) else argument for argument in arguments]
        return _Call(getattr(self._actor, method).remote(*ready))

    def close(self) -> None:
        if ray.is_initialized():  # else the actor has ended with the connection, and Ray would be started anew
            ray.kill(self._actor)
