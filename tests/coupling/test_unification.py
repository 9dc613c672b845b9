"""Laws of solving equations between dimension types."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.coupling.unification import Reason, Solver
from onnxprune.rules.axes import Axis, Dim, Product, Sum, kept_positions, leaves, product_of, sum_of

LARGEST = 24
SIZES = (1, 2, 3, 4, 6, 8, 12, 24)
NAMES = 3
"""How many Dims of each size the equations are about."""

Text = tuple[object, ...]
"""An axis as a hypothesis example shows it: ("dim", size, number), ("sum", text, text) or ("product", text, text)."""


@st.composite
def texts(draw: st.DrawFn, size: int, *, products: bool = True, depth: int = 3) -> Text:
    """An expression of that many positions."""
    kinds = ["dim"]
    factors = [number for number in range(2, size) if size % number == 0]
    if depth and size > 1:
        kinds.append("sum")
    if depth and products and factors:
        kinds.append("product")
    kind = draw(st.sampled_from(kinds))
    if kind == "dim":
        return "dim", size, draw(st.integers(0, NAMES - 1))
    first = draw(st.sampled_from(factors) if kind == "product" else st.integers(1, size - 1))
    second = size // first if kind == "product" else size - first
    inner = [draw(texts(part, products=products, depth=depth - 1)) for part in (first, second)]
    return kind, *inner


@st.composite
def systems(draw: st.DrawFn, *, products: bool = True, most: int = 4) -> list[tuple[Text, Text]]:
    """A few equations between expressions of equal size."""
    equations = []
    for _ in range(draw(st.integers(1, most))):
        size = draw(st.sampled_from(SIZES))
        equations.append((draw(texts(size, products=products)), draw(texts(size, products=products))))
    return equations


class World:
    """A solver and the Dims that texts speak of."""

    def __init__(self) -> None:
        self.dims = {(size, number): Dim(size) for size in range(1, LARGEST + 1) for number in range(NAMES)}
        self.solver = Solver()

    def axis(self, text: Text) -> Axis:
        match text:
            case "dim", size, number:
                return self.dims[size, number]
            case "sum", *parts:
                return sum_of(self.axis(part) for part in parts)
            case _, *factors:
                return product_of(self.axis(factor) for factor in factors)

    def tell(self, equations: Iterable[tuple[Text, Text]]) -> World:
        for left, right in equations:
            self.solver.equate(self.axis(left), self.axis(right), "test")
        return self

    def is_free(self) -> bool:
        """Is nothing frozen?"""
        return all(self.solver.frozen(leaf) is None for dim in self.dims.values() for leaf in self.leaves(dim))

    def leaves(self, axis: Axis) -> list[Dim]:
        return list(leaves(self.solver.resolve(axis)))

    def form(self) -> list[object]:
        """What every Dim is bound to, its leaves numbered in the order in which they are met."""
        numbers: dict[Dim, int] = {}

        def shown(axis: Axis) -> object:
            match axis:
                case Dim(size):
                    return numbers.setdefault(axis, len(numbers)), size, self.solver.frozen(axis) is None
                case Sum(parts):
                    return "sum", *(shown(part) for part in parts)
                case Product(factors):
                    return "product", *(shown(factor) for factor in factors)

        return [shown(self.solver.resolve(dim)) for dim in self.dims.values()]

    def random_selection(self, seed: int) -> dict[Dim, np.ndarray]:
        """Any positions of every free leaf."""
        random = np.random.default_rng(seed)
        found = {leaf for dim in self.dims.values() for leaf in self.leaves(dim) if self.solver.frozen(leaf) is None}
        ordered = [leaf for dim in self.dims.values() for leaf in self.leaves(dim) if leaf in found]
        return {leaf: np.flatnonzero(random.random(leaf.size) < 0.6) for leaf in dict.fromkeys(ordered)}

    def kept(self, text: Text, selection: dict[Dim, np.ndarray]) -> list[int]:
        """Positions of the expression that stay; every Dim in it is looked up by itself."""
        return kept_positions(self.solver.resolve(self.axis(text)), selection).tolist()


@given(systems(), st.integers(0, 1000))
@settings(max_examples=200)
def test_every_equation_holds_position_by_position(equations: list[tuple[Text, Text]], seed: int) -> None:
    """Whatever is removed from the solution's free Dims, both sides of every equation lose the same positions."""
    world = World().tell(equations)
    selection = world.random_selection(seed)
    for left, right in equations:
        assert world.kept(left, selection) == world.kept(right, selection)


@st.composite
def lookups(draw: st.DrawFn) -> tuple[Text, Text, tuple[int, ...]]:
    """A whole, a part, and which positions of the whole the part consists of: evenly spaced, in runs, or any."""
    size = draw(st.sampled_from(SIZES))
    step = draw(st.integers(1, 3))
    start = draw(st.integers(0, size - 1))
    run = st.tuples(st.integers(0, size - 1), st.integers(1, 6)).map(lambda r: list(range(r[0], min(sum(r), size))))
    positions = draw(
        st.one_of(
            st.just(list(range(start, size, step))),
            st.lists(run, min_size=1, max_size=3).map(lambda runs: [position for run in runs for position in run]),
            st.lists(st.integers(0, size - 1), min_size=1, max_size=LARGEST),
        )
    )
    return draw(texts(size)), draw(texts(len(positions))), tuple(positions)


@given(systems(), lookups(), systems(most=2), st.integers(0, 1000))
@settings(max_examples=200)
def test_what_is_looked_up_goes_with_what_it_is_found_in(
    before: list[tuple[Text, Text]],
    lookup: tuple[Text, Text, tuple[int, ...]],
    after: list[tuple[Text, Text]],
    seed: int,
) -> None:
    """Each position of the part stays as long as the one of the whole does that it is, whatever else is known."""
    whole, part, positions = lookup
    world = World().tell(before)
    world.solver.look_up(world.axis(whole), world.axis(part), positions, "test")
    selection = world.tell(after).random_selection(seed)
    stays = set(world.kept(whole, selection))
    assert world.kept(part, selection) == [k for k, position in enumerate(positions) if position in stays]


@given(systems(products=False, most=5))
@settings(max_examples=200)
def test_sums_are_coupled_exactly(equations: list[tuple[Text, Text]]) -> None:
    """Where nothing is multiplied, positions are one class just when a chain of equations joins them."""
    world = World().tell(equations)
    joined = Positions()
    for left, right in equations:
        for one, other in zip(positions(left), positions(right), strict=True):
            joined.join(one, other)
    found = Positions()
    for key, dim in world.dims.items():
        offset = 0
        for leaf in world.leaves(dim):
            for position in range(leaf.size):
                found.join((key, offset), (leaf, position))
                offset += 1
    every = [((size, number), position) for size, number in world.dims for position in range(size)]
    assert partition(every, joined) == partition(every, found)
    assert world.is_free()


class Positions:
    """Classes of positions, by brute force."""

    def __init__(self) -> None:
        self.parents: dict[object, object] = {}

    def root(self, position: object) -> object:
        while position in self.parents:
            position = self.parents[position]
        return position

    def join(self, one: object, other: object) -> None:
        if self.root(one) != self.root(other):
            self.parents[self.root(one)] = self.root(other)


def partition(every: Iterable[object], classes: Positions) -> set[frozenset[object]]:
    """The classes as sets."""
    members: dict[object, set[object]] = {}
    for position in every:
        members.setdefault(classes.root(position), set()).add(position)
    return {frozenset(group) for group in members.values()}


def positions(text: Text) -> list[object]:
    """The positions of a sum, one by one."""
    if text[0] == "dim":
        return [(text[1:], position) for position in range(text[1])]
    return [position for part in text[1:] for position in positions(part)]


@given(systems(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_order_does_not_matter(equations: list[tuple[Text, Text]], random: object) -> None:
    """In whichever order equations come, they give the same solution wherever both orders leave everything free."""
    shuffled = list(equations)
    random.shuffle(shuffled)
    one, other = World().tell(equations), World().tell(shuffled)
    if one.is_free() and other.is_free():
        assert one.form() == other.form()


@given(systems())
def test_equations_are_symmetric(equations: list[tuple[Text, Text]]) -> None:
    """Left and right may change places, up to what is frozen."""
    one, other = World().tell(equations), World().tell((right, left) for left, right in equations)
    if one.is_free() and other.is_free():
        assert one.form() == other.form()


@given(systems())
def test_equations_are_idempotent(equations: list[tuple[Text, Text]]) -> None:
    """What has been said once may be said again."""
    world = World().tell(equations)
    before = world.form()
    assert not world.is_free() or world.tell(equations).form() == before


@given(systems())
def test_sizes_are_preserved(equations: list[tuple[Text, Text]]) -> None:
    """Whatever a Dim is bound to has as many positions."""
    world = World().tell(equations)
    assert all(world.solver.resolve(dim).size == dim.size for dim in world.dims.values())


@given(systems())
def test_resolving_is_idempotent(equations: list[tuple[Text, Text]]) -> None:
    """What is resolved consists of unbound Dims, flattened."""
    world = World().tell(equations)
    for dim in world.dims.values():
        resolved = world.solver.resolve(dim)
        assert world.solver.resolve(resolved) == resolved
        assert all(world.solver.resolve(leaf) is leaf for leaf in leaves(resolved))


@given(systems(), st.integers(0, NAMES - 1), st.sampled_from(SIZES), st.booleans())
def test_a_frozen_dim_freezes_whatever_it_meets(
    equations: list[tuple[Text, Text]], number: int, size: int, first: bool
) -> None:
    """Frozen before the equations or after, no position of it may go, nor of what it is equal to."""
    world = World()
    if first:
        world.solver.freeze(world.dims[size, number], Reason("asked for"))
    world.tell(equations)
    if not first:
        world.solver.freeze(world.dims[size, number], Reason("asked for"))
    assert all(world.solver.frozen(leaf) is not None for leaf in world.leaves(world.dims[size, number]))


@given(systems())
def test_inexactness_travels_with_positions(equations: list[tuple[Text, Text]]) -> None:
    """A Dim that is marked inexact stays so through whatever it is bound to."""
    world = World()
    world.solver.mark_inexact(world.dims[12, 0], Reason("a mean"))
    world.tell(equations)
    assert all(world.solver.inexact(leaf) is not None for leaf in world.leaves(world.dims[12, 0]))


def test_a_dim_is_cut_where_a_sum_ends() -> None:
    """`d = a + b` makes d consist of both."""
    world = World().tell([(("dim", 8, 0), ("sum", ("dim", 6, 0), ("dim", 2, 0)))])
    assert world.solver.resolve(world.dims[8, 0]) == Sum((world.dims[6, 0], world.dims[2, 0]))


def test_factors_are_refined() -> None:
    """`6 * 4 = 3 * 8` means 3 * 2 * 4."""
    world = World().tell([(("product", ("dim", 6, 0), ("dim", 4, 0)), ("product", ("dim", 3, 0), ("dim", 8, 0)))])
    assert [leaf.size for leaf in world.leaves(world.dims[6, 0])] == [3, 2]
    assert [leaf.size for leaf in world.leaves(world.dims[8, 0])] == [2, 4]
    assert world.is_free()


def test_equal_blocks_of_a_sum_are_the_positions_of_a_factor() -> None:
    """`a + b = 2 * c` makes a and b one, and keeps the two."""
    world = World().tell([(("sum", ("dim", 6, 0), ("dim", 6, 1)), ("product", ("dim", 2, 0), ("dim", 6, 2)))])
    assert world.leaves(world.dims[6, 0]) == world.leaves(world.dims[6, 1]) == world.leaves(world.dims[6, 2])
    assert world.solver.frozen(world.leaves(world.dims[2, 0])[0]) is not None


def test_a_dim_cannot_contain_itself() -> None:
    """`d = d` in two factors is frozen, not looked for forever."""
    world = World()
    half = world.dims[4, 0]
    world.solver.equate(half, Product((Dim(2), Dim(2))), "first")
    world.solver.equate(world.dims[2, 0], world.solver.resolve(half), "second")
    assert all(world.solver.frozen(leaf) is not None for leaf in world.leaves(half))


def test_sizes_that_differ_freeze_both() -> None:
    """Axes of other sizes cannot be one."""
    world = World()
    world.solver.equate(world.dims[4, 0], world.dims[6, 0], "here")
    reason = world.solver.frozen(world.dims[6, 0])
    assert reason == Reason("axes of 4 and 6 positions meet", "here")
