"""Fast widths, seen in times: on machines that are made up, so that what is true of them is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Couplings
from onnxprune.timing import stairs
from onnxprune.timing.layers import Layer, Widths, layers_at
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import CHOICE, fast_widths, step_of, step_of_layers, summed, tried
from onnxprune.timing.times import LayerTimes, Times
from tests.bundled import bundled

sizes = st.integers(1, 400)
seeds = st.integers(0, 1000)


def blocked(step: int, edge: int) -> Callable[[int], float]:
    """A machine with fast kernels on a step, in stairs, and slow ones beside."""
    return lambda width: 10 + -(-width // edge) * edge if width % step == 0 else 40 + 3.0 * width


def timed(size: int, machine: Callable[[int], float], seed: int, noise: float = 0.02) -> dict[int, float]:
    """What the widths that are tried take there, about."""
    random = np.random.default_rng(seed)
    return {width: machine(width) * (1 + noise * random.uniform(-1, 1)) for width in tried(size)}


@given(st.integers(48, 400).map(lambda size: size // 16 * 16), st.sampled_from([2, 4, 8]), seeds)
def test_the_step_is_found(size: int, step: int, seed: int) -> None:
    """Whatever the noise of a few per cent."""
    assert step_of(size, timed(size, blocked(step, 16), seed)) == step


@given(seeds)
def test_a_layer_that_reads_the_width_needs_the_step_beside_a_slower_one_that_does_not(seed: int) -> None:
    """In the sum of both the difference is too small to be seen; a layer of next to no time does not count."""
    maker = timed(512, lambda width: 8.0 * width, seed, 0.01)
    reader = timed(512, lambda width: 2.0 * width if width % 4 == 0 else 2.5 * width, seed + 1, 0.01)
    both = summed([maker, reader])
    assert step_of(512, both) == 1
    assert step_of_layers(512, [maker, reader], both) == 4
    little = {width: time / 100 for width, time in reader.items()}
    assert step_of_layers(512, [maker, little], summed([maker, little])) == 1


@given(sizes, seeds)
def test_where_all_widths_are_as_good_any_may_be_chosen(size: int, seed: int) -> None:
    """Time in proportion to the width has no steps."""
    found = timed(size, lambda width: 5.0 + width, seed)
    assert step_of(size, found) == 1
    assert fast_widths(size, 1, 1, found, CHOICE) == tuple(range(1, size + 1))


@given(sizes, st.sampled_from([1, 2, 4]), st.sampled_from([4, 8, 16]), seeds)
def test_widths_are_on_the_step_and_leave_a_choice(size: int, step: int, edge: int, seed: int) -> None:
    """Ascending, the full one last; a step that is coarser than it must be leaves some widths to choose among."""
    found = fast_widths(size, step, edge, timed(size, blocked(step, edge), seed), CHOICE)
    assert list(found) == sorted(set(found))
    assert found[-1] == size
    assert all(width % step == 0 for width in found[:-1])
    assert len(found) >= min(CHOICE, size // step)


def test_a_width_that_is_slower_than_a_wider_one_is_left_out() -> None:
    """Narrower than a block, kernels read another layout."""
    found = {width: 5.0 if width < 16 else 1 + width / 16 for width in tried(64)}
    assert fast_widths(64, 4, 4, found, CHOICE)[:3] == (16, 20, 24)


class MadeUp(LayerTimes):
    """Times on a machine that is made up: blocked kernels for layers that convolve."""

    def __init__(self, couplings: Couplings) -> None:
        super().__init__(layers_at(couplings, 1), Setting(threads=1))

    def of(self, layer: Layer, widths: list[Widths]) -> Times | None:  # type: ignore[override]
        """In proportion to its multiplications, and four times that off the step of 4."""
        own = []
        for one in widths:
            slow = any(dim in layer.dims and width % 4 for dim, width in one.items())
            share = np.prod([width / dim.size for dim, width in one.items() if dim in layer.dims])
            own.append(100.0 * share * (4 if slow and "Conv" in layer.operator else 1))
        return Times(np.array(own), np.zeros(len(own)))


def test_a_group_has_the_step_that_its_layers_need() -> None:
    """Convolutions, four; dense layers, any."""
    for name, expected in (("resnet_torchscript", 4), ("mlp_torch", 1)):
        couplings = bundled(name)
        groups = [group for group in couplings.groups if group.size >= 32]
        found = stairs.stairs_of(groups, MadeUp(couplings))
        assert {one.step for one in found.values()} == {expected}


def test_limits_keep_to_the_widths() -> None:
    """What is wanted is rounded up among them; a ratio takes the next below, if that is not far."""
    (group,) = bundled("mlp_torch").groups
    limits = Limits(widths={group.name: (16, 48, 128)})
    assert [limits.rounded(group, wanted) for wanted in (1, 16, 17, 49, 128)] == [16, 16, 48, 128, 128]
    assert [limits.fitting(group, wanted) for wanted in (3, 16, 23, 47, 71, 87, 128)] == [16, 16, 16, 48, 48, 128, 128]
    plain = Limits(multiple_of=16)
    assert [plain.fitting(group, wanted) for wanted in (3, 16, 47, 127, 128)] == [0, 16, 32, 112, 128]


def test_one_that_is_not_blocked_pays_for_the_layout() -> None:
    """Alone it needs no change of layout; where it stands it takes the blocked one off and on again."""
    found = Times(np.array([5.0, 5.0]), np.array([0.0, 3.0]))
    assert list(stairs.in_place(found)) == [8.0, 5.0]
