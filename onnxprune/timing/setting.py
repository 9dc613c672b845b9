"""The setting that latency belongs to: on what it is measured, and how the model is run."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from onnxprune.errors import UsageError
from onnxprune.reading.observing import CPU

CPU_FACTS = ("model name", "flags", "Features", "CPU part")
"""What tells, where the system lists them, one kind of processor from another."""


@dataclass(frozen=True, slots=True)
class Setting:
    """
    How a model is run when its latency is measured.

    Args:
        provider: execution provider of ONNX Runtime.
        batch: samples in a run, where the model leaves that open.
        threads: of ONNX Runtime; 0: as many as it takes by itself, one for each core.

    Raises:
        UsageError: this ONNX Runtime has no such provider, or a number is too small.
    """

    provider: str = CPU
    batch: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.provider not in ort.get_available_providers():
            known = ", ".join(ort.get_available_providers())
            raise UsageError(
                f"Expected a provider that this ONNX Runtime {ort.__version__} has ({known}), found {self.provider!r}. "
                "Install the build of ONNX Runtime that has it, or name another."
            )
        for name, least in (("batch", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"Expected {name} of {least} or more, found {getattr(self, name)}.")

    @property
    def words(self) -> str:
        """As it is told to people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else "all threads"
        return f"{threads}, {self.batch} sample{'s' if self.batch > 1 else ''}, {self.provider}"

    @property
    def key(self) -> str:
        """Differs wherever the same layer may take another time."""
        return f"{machine()} {self.provider} {self.threads}"


def machine() -> str:
    """This machine and ONNX Runtime, as a key: the kind of processor, its cores, the version."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    told = Path("/proc/cpuinfo")
    lines = told.read_text(errors="replace").splitlines() if told.exists() else []
    facts = dict.fromkeys(line for line in lines if line.split("\t")[0].strip(": ") in CPU_FACTS)
    kind = hashlib.sha256("\n".join((platform.machine(), platform.processor(), *facts)).encode()).hexdigest()[:16]
    return f"{kind} x{cores} onnxruntime {ort.__version__}"
