"""
What channel sensitivities cost, and what those of a few samples are worth beside those of all.

    python benchmarks/probes.py               # four trained models, about two minutes
    python benchmarks/probes.py --resnet18    # ResNet-18 on 256 images of 224 x 224 instead, several minutes

The first compares ways to score every channel of a model with all its 1,000 calibration digits. *Naive* is a pass of
the whole model over all digits for each channel; costs are CPU seconds of one process with one thread, as a share of
naive and as a multiple of one forward and backward pass (of the same network in PyTorch, where that can be imported).
*All* is the engine on all digits, so its scores are the exhaustive ones; the others take the samples that `probe`
chooses, or the first ones. Their worth is the rank correlation with the exhaustive scores, over all channels together
and as the mean over groups, and how much of the lowest 30 % and 50 % of the channels they have in common with them.

ResNet-18 is filled with seeded weights, so only costs are measured there: with all cores, and with the peak of memory
of all processes together, shared pages counted once (Linux only). Wall seconds include waiting for whatever else runs
on the machine; CPU seconds over cores do not.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import ModelProto, helper, numpy_helper

import onnxprune
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.losses import outputs_of
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reading.observing import session_for

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "fixtures/zoo"))

from seeded import fill  # noqa: E402

BATCH = 64
CNN_TARGETS = {"all": "cost <= 35 %", "40": "rank >= 0.99 at <= 2.5 %", "16": "rank >= 0.97 at <= 1.3 %"}
TARGETS = {
    **dict.fromkeys(("vgg", "resnet20", "resnet_torchscript"), CNN_TARGETS),
    "vit_torchscript": {"all": "cost <= 43 %"},
}
DIGITS = 1000
IMAGES = 256


def main() -> None:
    if "--resnet18" in sys.argv[1:]:
        measure_resnet18()
        return
    print(
        f"{'model':<20}{'channels':>9}  {'samples':<9}{'CPU s':>8}{'of naive':>10}{'x fwd+bwd':>11}"
        f"{'rank':>8}{'in group':>10}{'low 30 %':>10}{'low 50 %':>10}  target"
    )
    models = {"vgg": normalized, "resnet20": normalized, "resnet_torchscript": plain, "vit_torchscript": plain}
    for name, load in models.items():
        folder = ROOT / "fixtures" / ("bench" if load is normalized else "")
        measure(name, onnx.load(folder / f"{name}.onnx"), load(DIGITS))


def normalized(count: int) -> np.ndarray:
    """Digits as the models in `bench` take them."""
    with np.load(ROOT / "fixtures/bench/calib.npz") as digits:
        return ((digits["x"][:count, None] / 255 - 0.1307) / 0.3081).astype(np.float32)


def plain(count: int) -> np.ndarray:
    """Digits as the other fixtures take them."""
    with np.load(ROOT / "fixtures/digits/calibration.npz") as digits:
        return digits["x"][:count]


def measure(name: str, model: ModelProto, digits: np.ndarray) -> None:
    """Print the rows of one trained model."""
    couplings = onnxprune.couple(onnxprune.read(model))
    calibration = gather(couplings.graph, digits)
    channels = sum(group.size for group in couplings.groups if group.exact)
    naive = forward_seconds(model, calibration) * channels
    backward = backward_seconds(model, digits)

    def row(samples: str, cost: float, worth: str = "") -> None:
        times = f"{cost / backward:.2f}" if backward else "-"
        target = TARGETS[name].get(samples, "")
        print(
            f"{name:<20}{channels:>9}  {samples:<9}{cost:>8.2f}{cost / naive:>10.2%}{times:>11}{worth:<38}  {target}",
            flush=True,
        )

    row("naive", naive)
    cost, exhaustive = timed(lambda: probed(couplings, calibration), 1)
    row("all", cost)
    for count in (40, 32, 16):
        cost, scores = timed(lambda count=count: probed(couplings, calibration, count), 3)
        row(str(count), cost, worth_of(scores, exhaustive))
    cost, scores = timed(lambda: probed(couplings, calibration.first(16)), 3)
    row("first 16", cost, worth_of(scores, exhaustive))


def probed(couplings: Couplings, calibration: Calibration, samples: Samples = "all") -> Sensitivities:
    return onnxprune.probe(couplings, calibration, samples=samples, jobs=1, threads=1)


def timed(work: Callable[[], Any], times: int) -> tuple[float, Any]:
    """The median of the CPU seconds, and what the work returns."""
    costs = []
    for _ in range(times):
        start = time.process_time()
        found = work()
        costs.append(time.process_time() - start)
    return median(costs), found


def forward_seconds(model: ModelProto, calibration: Calibration) -> float:
    """CPU seconds of a pass of the whole model over all samples."""
    session = session_for(model, threads=1)
    outputs_of(session, calibration.first(BATCH))
    return timed(lambda: outputs_of(session, calibration, batch=BATCH), 3)[0]


def worth_of(scores: Sensitivities, exhaustive: Sensitivities) -> str:
    """How well the scores order the channels."""
    pairs = [(scores.importance(group.name), exhaustive.importance(group.name)) for group in exhaustive.groups]
    some, every = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    inside = np.mean([rank_correlation(*pair) for pair in pairs])
    return (
        f"{rank_correlation(some, every):>8.3f}{inside:>10.3f}"
        f"{overlap(some, every, 0.3):>10.1%}{overlap(some, every, 0.5):>10.1%}"
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, of numbers that are all different."""
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


def overlap(one: np.ndarray, other: np.ndarray, share: float) -> float:
    """The part of the lowest numbers that both have in common."""
    count = round(share * len(one))
    return len(np.intersect1d(one.argsort()[:count], other.argsort()[:count])) / count


def backward_seconds(model: ModelProto, digits: np.ndarray) -> float | None:
    """CPU seconds of a forward and a backward pass over all digits in PyTorch, to the gradients of all weights."""
    if torch is None or any(node.op_type not in LAYERS for node in model.graph.node):
        return None
    torch.set_num_threads(1)
    weights = {
        one.name: torch.tensor(numpy_helper.to_array(one).copy(), requires_grad=True) for one in model.graph.initializer
    }
    batches = torch.tensor(digits).split(BATCH)
    wanted = session_for(model, threads=1).run(None, {model.graph.input[0].name: digits[:BATCH]})[0]
    assert np.allclose(in_torch(model, weights, batches[0]).detach().numpy(), wanted, atol=1e-3)

    def passes() -> None:
        for batch in batches:
            logits = in_torch(model, weights, batch)
            functional.cross_entropy(logits, logits.detach().softmax(1)).backward()

    return timed(passes, 3)[0]


def in_torch(model: ModelProto, weights: dict[str, Any], x: Any) -> Any:
    """The model's output, computed by PyTorch."""
    values = weights | {model.graph.input[0].name: x}
    for node in model.graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        values[node.output[0]] = LAYERS[node.op_type](*(values[name] for name in node.input), **attributes)
    return values[model.graph.output[0].name]


def convolved(x: Any, weight: Any, bias: Any, *, pads: Sequence[int], strides: Sequence[int], **rest: object) -> Any:
    assert (pads[:2], rest["group"], rest["dilations"]) == (pads[2:], 1, [1, 1])
    return functional.conv2d(x, weight, bias, tuple(strides), tuple(pads[:2]))


def pooled(x: Any, *, kernel_shape: Sequence[int], strides: Sequence[int], **rest: object) -> Any:
    assert not any((*rest["pads"], rest["ceil_mode"]))
    return functional.max_pool2d(x, tuple(kernel_shape), tuple(strides))


LAYERS: dict[str, Callable[..., Any]] = {
    "Conv": convolved,
    "Relu": lambda x: x.relu(),
    "Add": lambda one, other: one + other,
    "MaxPool": pooled,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda x, axis: x.flatten(axis),
    "Gemm": lambda x, weight, bias, **_: functional.linear(x, weight, bias),
}
"""What the nodes of the trained CNNs compute."""


def measure_resnet18() -> None:
    """Print what ResNet-18 takes at full size."""
    model = fill((ROOT / "fixtures/zoo/resnet18.onnx.xz").read_bytes())
    couplings = onnxprune.couple(onnxprune.read(model))
    calibration = gather(couplings.graph, smooth_images(IMAGES, 224))
    channels = sum(group.size for group in couplings.groups if group.exact)
    naive = forward_seconds(model, calibration.first(BATCH)) * IMAGES / BATCH * channels
    print(f"naive: {channels:,} channels, {naive:,.0f} CPU s; target: under 5 minutes on 2 cores (these: {cores()})")
    print(f"{'samples':<9}{'wall s':>8}{'CPU s':>8}{'/ cores':>9}{'of naive':>10}{'memory':>10}")
    for samples in (16, 32):
        start, before = time.perf_counter(), cpu_seconds()
        with peak_memory() as peak:
            onnxprune.probe(couplings, calibration, samples=samples, memory="2GB")
        cost = cpu_seconds() - before
        wall = time.perf_counter() - start
        print(
            f"{samples:<9}{wall:>8.0f}{cost:>8.0f}{cost / cores():>9.0f}{cost / naive:>10.2%}"
            f"{peak.bytes / 1e6:>7.0f} MB",
            flush=True,
        )


def smooth_images(count: int, side: int) -> np.ndarray:
    """Noise without its fine grain, each image with a strength of its own, so that a network tells them apart."""
    rng = np.random.default_rng(0)
    waves = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
    images = np.empty((count, 3, side, side), np.float32)
    for image in images:
        rough = np.fft.rfft2(rng.standard_normal(image.shape))
        smooth = np.fft.irfft2(rough / (1 + waves) ** 1.5, s=image.shape[1:])
        image[:] = smooth / smooth.std() * rng.uniform(0.5, 1.5)
    return images


def cores() -> int:
    return len(os.sched_getaffinity(0))


def cpu_seconds() -> float:
    """Of this process and of the children that it had."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass
class Peak:
    """The most bytes seen."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the memory of this process and its children."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak.bytes = max(peak.bytes, memory_now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def memory_now() -> int:
    """Resident bytes of this process and its children, pages that several share counted once."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended
    return total


if __name__ == "__main__":
    main()
