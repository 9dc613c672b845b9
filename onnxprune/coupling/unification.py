"""
Solving equations between dimension types.

The solver keeps, for every Dim, what it is bound to, and for every unbound Dim why it may not shrink, if so. What
cannot be brought to a common form is frozen with a reason, so a solution always exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from onnxprune.rules.axes import Axis, Dim, Product, Sum, leaves, product_of, sum_of

UNIT_LIMIT = 4096
"""Axes up to this size may be joined position by position."""

FEW_PIECES = 32
"""An axis of which runs of positions are looked up is cut into these: no more of them, and none of one position."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why positions may not go: `text` for the user, the node it comes from, and whether anybody would ask."""

    text: str
    node: str = ""
    by_nature: bool = False


class Solver:
    """Unification of dimension types by binding, cutting and splitting Dims."""

    def __init__(self) -> None:
        self._bound: dict[Dim, Axis] = {}
        self._frozen: dict[Dim, Reason] = {}
        self._inexact: dict[Dim, Reason] = {}
        self._settled_at: dict[Dim, int] = {}
        self._joined_by_position: set[Dim] = set()

    def resolve(self, axis: Axis) -> Axis:
        """`axis` in terms of unbound Dims, flattened."""
        for dim in leaves(axis):
            if dim in self._bound:
                self._settle(dim)
        return self._substituted(axis)

    def _settle(self, dim: Dim) -> None:
        """Bring the bindings that `dim` leads to into terms of unbound Dims, the deepest first; chains may be long."""
        pending = [dim]
        while pending:
            bound = pending[-1]
            stale = [leaf for leaf in leaves(self._bound[bound]) if leaf in self._bound and not self._is_settled(leaf)]
            if stale:
                pending.extend(stale)
            else:
                self._bound[bound] = self._substituted(self._bound[bound])
                self._settled_at[pending.pop()] = len(self._bound)

    def _is_settled(self, dim: Dim) -> bool:
        return self._settled_at.get(dim) == len(self._bound)

    def _substituted(self, axis: Axis) -> Axis:
        """The axis with each bound Dim replaced by its binding."""
        match axis:
            case Dim():
                return self._bound.get(axis, axis)
            case Sum(parts):
                return sum_of(self._substituted(part) for part in parts)
            case Product(factors):
                return product_of(self._substituted(factor) for factor in factors)

    def frozen(self, dim: Dim) -> Reason | None:
        """Why no position of the unbound `dim` may go; None when free."""
        return self._frozen.get(dim)

    def inexact(self, dim: Dim) -> Reason | None:
        """Why removing a position of the unbound `dim` would not equal zeroing it; None when it does."""
        return self._inexact.get(dim)

    def is_unit(self, dim: Dim) -> bool:
        """Is the unbound `dim` one position of an axis whose positions were joined one by one?"""
        return dim in self._joined_by_position

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Keep every position; a reason that nature gives yields to none, and gives way to a real one."""
        for dim in leaves(self.resolve(axis)):
            known = self._frozen.get(dim)
            if known is None or (known.by_nature and not reason.by_nature):
                self._frozen[dim] = reason

    def mark_inexact(self, axis: Axis, reason: Reason) -> None:
        for dim in leaves(self.resolve(axis)):
            self._inexact.setdefault(dim, reason)

    def look_up(self, whole: Axis, found: Axis, positions: tuple[int, ...], node: str) -> None:
        """Position k of `found` is position `positions[k]` of `whole`; what is frozen is not taken apart."""
        reasons = [self._frozen.get(leaf) for leaf in leaves(self.resolve(whole))]
        if reasons and None not in reasons:
            self.freeze(found, next(reason for reason in reasons if reason is not None))
        elif whole.size > UNIT_LIMIT:
            self._give_up((whole, found), node, "its positions are looked up one by one, and they are many")
        elif (step := even_step(positions, whole.size)) is not None:
            passed = Dim(step)
            self.freeze(passed, Reason("its positions are the places between those looked up", node, by_nature=True))
            self.equate(whole, product_of((found, passed)), node)
        else:
            self._look_up_runs(whole, found, positions, node)

    def _look_up_runs(self, whole: Axis, found: Axis, positions: tuple[int, ...], node: str) -> None:
        runs = runs_of(positions)
        cuts = sorted({0, whole.size, *(end for run in runs for end in run)})
        long = len(cuts) <= FEW_PIECES and all(end - start > 1 for start, end in pairwise(cuts))
        pieces = self._pieces(whole, cuts, node) if long else None
        if pieces is None:
            cuts, pieces = list(range(whole.size + 1)), self._units(whole, node)
        at = {cut: number for number, cut in enumerate(cuts)}
        self.equate(found, sum_of(piece for start, end in runs for piece in pieces[at[start] : at[end]]), node)

    def _pieces(self, whole: Axis, cuts: list[int], node: str) -> list[Axis] | None:
        """The axis between each cut and the next; None where no form of the axis shows them."""
        pieces, rest = [], whole
        for start, end in pairwise(cuts):
            halves = self._cut(rest, end - start, node)
            if halves is None:
                return None
            pieces.append(halves[0])
            rest = halves[1]
        return pieces

    def equate(self, left: Axis, right: Axis, node: str) -> None:
        """Make both axes the same; where they have no common form, freeze both."""
        pending = [(left, right)]
        while pending:
            one, other = (self.resolve(axis) for axis in pending.pop())
            if one is other or one == other:
                continue
            if one.size != other.size:
                self._give_up((one, other), node, f"axes of {one.size} and {other.size} positions meet")
                continue
            pending.extend(reversed(self._step(one, other, node)))

    def _step(self, one: Axis, other: Axis, node: str) -> list[tuple[Axis, Axis]]:
        """Bind, or break the equation into smaller ones."""
        match one, other:
            case Dim(), _:
                self._bind(one, other, node)
                return []
            case _, Dim():
                self._bind(other, one, node)
                return []
            case Sum(), Sum():
                return self._align(one, other, node)
            case Product(), Product():
                return self._refine(one, other, node)
            case Sum(), Product():
                return self._distribute(one, other, node)
            case _:
                assert isinstance(one, Product)
                assert isinstance(other, Sum)
                return self._distribute(other, one, node)

    def _bind(self, dim: Dim, axis: Axis, node: str) -> None:
        if any(leaf is dim for leaf in leaves(axis)):
            self._give_up((dim, axis), node, "an axis would have to contain itself")
            return
        frozen, inexact = self._frozen.pop(dim, None), self._inexact.pop(dim, None)
        self._bound[dim] = axis
        if dim in self._joined_by_position:
            self._joined_by_position.update(leaves(axis))
        if frozen is not None:
            self.freeze(axis, frozen)
        if inexact is not None:
            self.mark_inexact(axis, inexact)

    def _replace(self, dim: Dim, axis: Axis) -> Axis:
        """Bind a Dim to a finer form made of fresh Dims."""
        self._bind(dim, axis, "")
        return axis

    def _give_up(self, axes: tuple[Axis, ...], node: str, text: str) -> None:
        for axis in axes:
            self.freeze(axis, Reason(text, node))

    def _align(self, one: Sum, other: Sum, node: str) -> list[tuple[Axis, Axis]]:
        """Two sums: the first parts are equal as far as the shorter goes; so are the rests."""
        if [part.size for part in one.parts] == [part.size for part in other.parts]:
            return list(zip(one.parts, other.parts, strict=True))
        size = min(one.parts[0].size, other.parts[0].size)
        halves, other_halves = self._cut(one, size, node), self._cut(other, size, node)
        if halves is None or other_halves is None:
            return self._by_position(one, other, node)
        return list(zip(halves, other_halves, strict=True))

    def _cut(self, axis: Axis, size: int, node: str) -> tuple[Axis, Axis] | None:
        """The first `size` positions and the others; None where no form of the axis shows them."""
        axis = self.resolve(axis)
        if size in (0, axis.size):
            empty = Sum(())
            return (empty, axis) if size == 0 else (axis, empty)
        match axis:
            case Dim():
                return self._cut_dim(axis, size)
            case Sum(parts):
                before: list[Axis] = []
                for number, part in enumerate(parts):
                    if part.size > size:
                        halves = self._cut(part, size, node)
                        if halves is None:
                            return None
                        return sum_of((*before, halves[0])), sum_of((halves[1], *parts[number + 1 :]))
                    before.append(part)
                    size -= part.size
                    if size == 0:
                        return sum_of(before), sum_of(parts[number + 1 :])
                raise AssertionError("a cut beyond the end")
            case Product(factors):
                inner = product_of(factors[1:])
                if size % inner.size:
                    return None
                halves = self._cut(factors[0], size // inner.size, node)
                if halves is None:
                    return None
                return self._blocks(halves[0], inner, node), self._blocks(halves[1], inner, node)

    def _blocks(self, leading: Axis, inner: Axis, node: str) -> Axis:
        """Their product; a leading factor of one position, which no product shows, is kept."""
        if leading.size == 1:
            self.freeze(leading, Reason("its positions are blocks of different origin", node, by_nature=True))
        return product_of((leading, inner))

    def _cut_dim(self, dim: Dim, size: int) -> tuple[Axis, Axis]:
        head, rest = Dim(size), Dim(dim.size - size)
        self._replace(dim, Sum((head, rest)))
        return head, rest

    def _refine(self, one: Product, other: Product, node: str) -> list[tuple[Axis, Axis]]:
        """Two products: from the fastest factor on, equal or nested factors match; others match as blocks."""
        left, right = list(one.factors), list(other.factors)
        small, large = sorted((left, right), key=lambda factors: factors[-1].size)
        size = small[-1].size
        if large[-1].size == size:
            return [(small[-1], large[-1]), (product_of(small[:-1]), product_of(large[:-1]))]
        if large[-1].size % size == 0:
            inner = self._split(large[-1], size, node)
            if inner is not None:
                rest = product_of((*large[:-1], inner[0]))
                return [(small[-1], inner[1]), (product_of(small[:-1]), rest)]
        return self._match_block(left, right, node)

    def _match_block(self, left: list[Axis], right: list[Axis], node: str) -> list[tuple[Axis, Axis]]:
        """Join the shortest runs of factors from the right of one size position by position; go on before them."""
        blocks = [left.pop()], [right.pop()]
        sizes = [blocks[0][0].size, blocks[1][0].size]
        while sizes[0] != sizes[1]:
            shorter = 0 if sizes[0] < sizes[1] else 1
            factor = (left, right)[shorter].pop()
            blocks[shorter].insert(0, factor)
            sizes[shorter] *= factor.size
        one, other = (product_of(block) for block in blocks)
        rest = [(product_of(left), product_of(right))] if left and right else []
        if self._is_free(one) or self._is_free(other):
            return [*self._by_position(one, other, node), *rest]
        self._give_up((one, other), node, "it merges and cuts axes so that positions do not line up")
        return rest

    def _is_free(self, axis: Axis) -> bool:
        """Is there a position that may still go?"""
        return any(leaf not in self._frozen for leaf in leaves(self.resolve(axis)))

    def _split(self, axis: Axis, inner: int, node: str) -> tuple[Axis, Axis] | None:
        """The axis as an outer axis times an inner one of `inner` positions."""
        axis = self.resolve(axis)
        match axis:
            case Dim():
                outer_dim, inner_dim = Dim(axis.size // inner), Dim(inner)
                self._replace(axis, Product((outer_dim, inner_dim)))
                return outer_dim, inner_dim
            case Sum(parts):
                if any(part.size % inner for part in parts):
                    return None
                shared = Dim(inner)
                outer = []
                for part in parts:
                    outer.append(Dim(part.size // inner))
                    self.equate(part, self._blocks(outer[-1], shared, node), node)
                return sum_of(outer), shared
            case Product():
                raise AssertionError("products are flat")

    def _distribute(self, total: Sum, product: Product, node: str) -> list[tuple[Axis, Axis]]:
        """A sum and a product: cut the leading factor where the parts end, or match equal blocks."""
        inner = product_of(product.factors[1:])
        if all(part.size % inner.size == 0 for part in total.parts):
            equations: list[tuple[Axis, Axis]] = []
            rest: Axis = product.factors[0]
            for part in total.parts:
                halves = self._cut(rest, part.size // inner.size, node)
                if halves is None:
                    return self._by_position(total, product, node)
                equations.append((part, self._blocks(halves[0], inner, node)))
                rest = halves[1]
            return equations
        if inner.size < product.factors[0].size:
            return self._by_position(total, product, node)
        return self._match_equal_blocks(total, product.factors[0], inner, node)

    def _match_equal_blocks(self, total: Sum, leading: Axis, inner: Axis, node: str) -> list[tuple[Axis, Axis]]:
        """Every position of the leading factor is one block of the sum, and all blocks are alike."""
        self.freeze(leading, Reason("its positions are blocks of different origin", node, by_nature=True))
        equations: list[tuple[Axis, Axis]] = []
        rest: Axis = total
        for _ in range(leading.size):
            halves = self._cut(rest, inner.size, node)
            if halves is None:
                return self._by_position(total, product_of((leading, inner)), node)
            equations.append((halves[0], inner))
            rest = halves[1]
        return equations

    def _by_position(self, one: Axis, other: Axis, node: str) -> list[tuple[Axis, Axis]]:
        """Where no cut lines up: join the axes position by position, one unit Dim each."""
        if one.size > UNIT_LIMIT:
            self._give_up((one, other), node, "it cuts axes where no factor ends")
            return []
        units, other_units = self._units(one, node), self._units(other, node)
        return list(zip(units, other_units, strict=True))

    def _units(self, axis: Axis, node: str) -> list[Axis]:
        """One unit Dim for each position; of several free factors only the longest stays free."""
        axis = self.resolve(axis)
        match axis:
            case Dim(size):
                if size == 1:
                    return [axis]
                units = tuple(Dim(1) for _ in range(size))
                self._replace(axis, Sum(units))
                self._joined_by_position.update(units)
                return list(units)
            case Sum(parts):
                return [unit for part in parts for unit in self._units(part, node)]
            case Product(factors):
                free = [factor for factor in factors if self._is_free(factor)]
                lead = max(free, key=lambda factor: factor.size, default=factors[0])
                at = factors.index(lead)
                for factor in (*factors[:at], *factors[at + 1 :]):
                    self.freeze(factor, Reason("it is shuffled in a way that no factor shows", node))
                before = product_of(factors[:at]).size if at else 1
                after = product_of(factors[at + 1 :]).size if factors[at + 1 :] else 1
                units_of_lead = self._units(lead, node)
                return [unit for _ in range(before) for unit in units_of_lead for _ in range(after)]


def runs_of(positions: tuple[int, ...]) -> list[tuple[int, int]]:
    """The positions as runs of consecutive ones, each by its start and its end."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def even_step(positions: tuple[int, ...], size: int) -> int | None:
    """The step, where the positions are one out of every so many up to the end of the axis."""
    step = size // len(positions) if len(positions) > 1 and size % len(positions) == 0 else 1
    even = step > 1 and positions[0] < step and positions == tuple(range(positions[0], size, step))
    return step if even else None
