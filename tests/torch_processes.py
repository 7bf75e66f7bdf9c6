"""Threads that stand for the processes that share a torch program, and queues for their network."""

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from mistral_portable_torch import BACKEND
from mistral_portable_torch.lockstep import share_program
from mistral_portable_torch.processes import Group, LostProcessError
from torch_sessions import PagedBackend

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Program
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["Member", "Network", "ParallelBackend"]


class Network:
    """A network of `size` threads, which exchange values: each sends one and gets all of them."""

    def __init__(self, size: int) -> None:
        self._sent = [[SimpleQueue[tuple[Any] | None]() for _ in range(size)] for _ in range(size)]  # [to][from]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        for boxes in self._sent:
            boxes[rank].put((value,))
        found = []
        for sent in self._sent[rank]:
            message = sent.get()
            if message is None:
                sent.put(None)
                raise LostProcessError("one has ended")
            found.append(message[0])
        return found

    def end(self, rank: int) -> None:
        """A thread has ended: whoever waits for it, now or later, has lost it."""
        for boxes in self._sent:
            boxes[rank].put(None)


@dataclass(frozen=True)
class Member(Group):
    """A thread's place among others."""

    network: Network = field(default_factory=lambda: Network(1))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.network.exchange(self.rank, x)).sum(0)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.network.exchange(self.rank, x), dim=-1)

    def least(self, number: int) -> int:
        return int(min(self.network.exchange(self.rank, number)))

    def share(self, value: Any = None) -> Any:
        return pickle.loads(self.network.exchange(self.rank, pickle.dumps(value))[0])

    def collect(self, value: Any) -> list[Any]:
        found = self.network.exchange(self.rank, pickle.dumps(value))
        return [] if self.rank else [pickle.loads(each) for each in found]

    def leave(self) -> None:
        self.network.end(self.rank)


@dataclass(frozen=True)
class ParallelBackend:
    """Programs of `size` threads. member: makes each one's place; memory: the bytes that each may allocate; chunk: as
    PagedBackend has it."""

    size: int = 2
    page: int = 3
    member: Callable[[int, int, None, Network], Member] = Member
    memory: Sequence[int | None] = ()
    chunk: int | None = None
    ends: list[Any] = field(default_factory=list)
    """For each thread that has ended its exit status, or the error that it raised."""
    threads: list[threading.Thread] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    name: str = "torch"

    def probe(self) -> Availability:
        return Availability(1, "")

    @property
    def capabilities(self) -> Capabilities:
        return replace(BACKEND.capabilities, page_size=self.page)

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        network = Network(self.size)
        self.networks.append(network)

        def share(rank: int) -> Program:
            member = self.member(rank, self.size, None, network)
            memory = self.memory[rank] if self.memory else None
            backend = PagedBackend(self.page, group=member, memory=memory, chunk=self.chunk)
            return share_program(partial(backend.prepare, graph, weights, cache, options), member)

        def follow(rank: int) -> None:
            try:
                share(rank)
            except SystemExit as leaving:
                self.ends.append(leaving.code)
            except BaseException as error:
                self.ends.append(error)
            network.end(rank)

        for rank in range(1, self.size):
            self.threads.append(threading.Thread(target=follow, args=(rank,), daemon=True))
            self.threads[-1].start()
        return share(0)
