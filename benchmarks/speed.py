"""
How long analysis and rewriting take, and how much memory, on four architectures at full size.

    python benchmarks/speed.py

Each model is filled with seeded weights, then a fresh process inspects it and another one prunes it by magnitude.
Times are wall seconds: of the whole process with its imports, and of rewriting alone; memory is the peak of resident
memory over the size of the file (read from /proc, so on Linux only).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "fixtures/zoo"))

from seeded import fill  # noqa: E402

MODELS = ("bert_base", "resnet18", "resnet50", "swin_t")
INSPECT = "onnxprune.couple(onnxprune.read(path))"
REWRITE = """
couplings = onnxprune.couple(onnxprune.read(path))
scores = magnitudes(couplings, [group for group in couplings.groups if group.exact])
plan = onnxprune.choose(couplings, scores, onnxprune.Targets(macs=0.5))
seconds = time.perf_counter()
onnxprune.rewrite(couplings, plan)
print(time.perf_counter() - seconds)
"""
PREAMBLE = """
import re, sys, time
import onnxprune
from onnxprune.probing.proxies import magnitudes
path = sys.argv[1]
"""
MEMORY = "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024)"


def run(body: str, model: Path) -> tuple[float, list[float]]:
    """Wall seconds of a fresh process, and the numbers it printed."""
    start = time.perf_counter()
    command = [sys.executable, "-c", f"{PREAMBLE}\n{body}\n{MEMORY}", str(model)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - start, [float(line) for line in printed.split()]


def main() -> None:
    print(f"{'model':<12}{'MB':>6}{'inspect s':>11}{'memory':>8}{'rewrite s':>11}{'memory':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            model = Path(folder) / "model.onnx"
            onnx.save(fill((ROOT / f"fixtures/zoo/{name}.onnx.xz").read_bytes()), model)
            size = model.stat().st_size
            inspect_seconds, (inspect_memory,) = run(INSPECT, model)
            _, (rewrite_seconds, rewrite_memory) = run(REWRITE, model)
            print(
                f"{name:<12}{size / 1e6:>6.0f}{inspect_seconds:>11.2f}{inspect_memory / size:>7.1f}x"
                f"{rewrite_seconds:>11.2f}{rewrite_memory / size:>7.1f}x"
            )


if __name__ == "__main__":
    main()
