"""What probing may use: processes, memory, threads, an execution provider."""

from __future__ import annotations

import os
import re
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import onnxruntime as ort
import psutil

from onnxprune.errors import UsageError
from onnxprune.reading.observing import CPU

TASKS_A_WORKER = 2
"""Tasks sent for each worker: one to run and one to take up at once."""

TASKS_ELSEWHERE = 128
"""Tasks sent to an executor that does not say how many workers it has."""

MEMORY_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Means:
    """
    What probing may use.

    Args:
        jobs: worker processes at most, each with `threads` threads; None: one for each core. Small models are probed in
            this process, where starting others would take longer.
        memory: bytes that all processes together may take, or "4GB"; None: half of what is free here. Where an executor
            does not say how many workers it has, each of them may take so much.
        threads: of ONNX Runtime in one process; 0: one.
        provider: execution provider of ONNX Runtime; what it cannot run falls back to the CPU's.
        executor: runs the probes instead of processes of our own: any `concurrent.futures.Executor`, such as that of a
            Dask cluster (`client.get_executor()`).

    Raises:
        UsageError: no number of jobs or bytes, or a provider that this ONNX Runtime has not got.
    """

    jobs: int | None = None
    memory: int | str | None = None
    threads: int = 0
    provider: str = CPU
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"Expected 1 job or more, found {self.jobs}.")
        if self.memory is not None:
            memory_amount(self.memory)
        if self.provider not in ort.get_available_providers():
            known = ", ".join(ort.get_available_providers())
            raise UsageError(
                f"Expected an execution provider that ONNX Runtime has here ({known}), found {self.provider!r}. "
                "Install the build of ONNX Runtime that brings it."
            )

    @property
    def processes(self) -> int:
        """How many share the memory: jobs, or an executor's workers as far as they are known."""
        if self.executor is not None:
            return self._workers or 1
        return self.jobs or (usable_cores() if self.provider == CPU else 1)

    @property
    def tasks_at_once(self) -> int:
        """How many tasks may be sent before answers come: some for each worker, many where nobody knows how many."""
        known = self._workers if self.executor is not None else self.processes
        return known * TASKS_A_WORKER if known else TASKS_ELSEWHERE

    @property
    def _workers(self) -> int:
        return int(getattr(self.executor, "_max_workers", None) or 0)

    @cached_property
    def bytes(self) -> int:
        """What all processes together may take."""
        return psutil.virtual_memory().available // 2 if self.memory is None else memory_amount(self.memory)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_amount(value: int | str) -> int:
    """Bytes, from a number or from a text such as "4GB" or "500M"."""
    matched = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?)(?:I?B)?\s*", str(value), re.IGNORECASE)
    amount = int(float(matched[1]) * MEMORY_UNITS[matched[2].upper()]) if matched else 0
    if amount < 1:
        raise UsageError(f"Expected an amount of memory such as 4GB or 500MB, found {value!r}.")
    return amount
