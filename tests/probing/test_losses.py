"""The loss that is made ready for a model's outputs."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from onnxprune.probing.calibration import gather
from onnxprune.probing.losses import are_probabilities, prepare_loss
from tests.models import build
from tests.oracle import coupled


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [1, 2])
def test_probabilities_are_known_in_any_precision(dtype: type[np.floating], axis: int) -> None:
    """Many small float16 numbers add up to one, although float16 cannot add them."""
    values = np.random.default_rng(0).exponential(size=(4, 1000, 1000) if axis == 2 else (4, 1000, 16))
    probabilities = (values / values.sum(axis, keepdims=True)).astype(dtype)
    assert are_probabilities(probabilities, axis)
    assert not are_probabilities(probabilities * dtype(0.9), axis)


def test_targets_of_cross_entropy_take_no_more_memory_than_the_outputs() -> None:
    """No table of all classes times all classes is made: there may be as many as words in a language."""
    couplings = coupled(build("a = MatMul(x[N,5], w1[5,8])\n b = Relu(a)\n y = MatMul(b, w2[8,3])"))
    data = {"x": np.ones((4, 5), np.float32), "labels": np.array([2, 0, 1, 2])}
    with patch.object(np, "eye", pytest.fail):
        loss = prepare_loss(couplings.graph, gather(couplings.graph, data), "cross-entropy")
    assert loss.targets["target"].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
