"""Feeds of other sizes than the samples': what was dynamic must still be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import Port, Shape


def feeds_of_other_sizes(couplings: Couplings) -> Iterator[Calibration]:
    """One feed for each further setting of the dynamic sizes at which the original was seen to run."""
    graph, random = couplings.graph, np.random.default_rng(0)
    outputs = tuple(port.name for port in graph.outputs if port.name in graph.shapes)
    for shapes in couplings.typing.other_shapes:
        arrays = {port.name: made_up(port, shapes[port.name], random)[None] for port in graph.inputs}
        yield Calibration(arrays, None, synthetic=True, batch=None, outputs=outputs, stacked=True)


def made_up(port: Port, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Normal numbers, and zeros where numbers count or decide."""
    if port.dtype.kind in "iub":
        return np.zeros(shape, port.dtype)
    return random.standard_normal(shape).astype(port.dtype)
