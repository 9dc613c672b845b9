"""Random graphs, pruned at random, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.models import build
from tests.oracle import assert_every_removal_is_exact, assert_removal_equals_masking, coupled

ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Elu", "Identity")


@dataclass(frozen=True)
class Map:
    """A tensor [batch, channels, side, side], or [batch, 7, channels] in a sequence (side 0)."""

    name: str
    channels: int
    side: int = 0


@dataclass
class Script:
    """A model in the making: lines of text, and the tensors that may be read."""

    draw: st.DrawFn
    batch: str
    lines: list[str] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    constants: dict[str, list[str]] = field(default_factory=dict)
    count: int = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def say(self, call: str) -> str:
        """One more node; the name of its output."""
        result = self.name("t")
        self.lines.append(f"{result} = {call}")
        return result

    def weight(self, *sizes: int, prefix: str = "w") -> str:
        return self.constant(prefix, f"[{','.join(map(str, sizes))}]")

    def numbers(self, *numbers: int) -> str:
        return self.constant("s", f"{{{','.join(map(str, numbers))}}}")

    def constant(self, prefix: str, declaration: str) -> str:
        """A constant, now and then one that is there already, as exporters store equal ones once."""
        alike = self.constants.setdefault(prefix + declaration, [])
        if alike and self.maybe():
            return self.draw(st.sampled_from(alike))
        alike.append(self.name(prefix))
        return alike[-1] + declaration

    def pick(self, *, like: Map | None = None, side: int | None = None) -> Map:
        """A tensor made so far, of the same shape as another or as large in space."""
        fitting = [one for one in self.maps if like is None or (one.channels, one.side) == (like.channels, like.side)]
        return self.draw(st.sampled_from([one for one in fitting if side is None or one.side == side]))

    def choose(self, *options: int) -> int:
        return self.draw(st.sampled_from(options))

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def keep(self, call: str, channels: int, side: int) -> None:
        self.maps.append(Map(self.say(call), channels, side))

    def shape(self, of: str, *sizes: int) -> str:
        """The numbers of a Reshape: as they are, with -1 for the last, or behind the batch from a Shape node."""
        way = self.choose(0, 1, 2)
        if way == 0:
            return self.numbers(0, *sizes)
        if way == 1:
            return self.numbers(0, *sizes[:-1], -1)
        whole = self.say(f"Shape({of})")
        first = self.say(f"Slice({whole}, {self.numbers(0)}, {self.numbers(1)})")
        return self.say(f"Concat<axis=0>({first}, {self.numbers(*sizes)})")

    # Steps that both kinds of tensors have.

    def activation(self) -> None:
        x = self.pick()
        self.keep(f"{self.draw(st.sampled_from(ACTIVATIONS))}({x.name})", x.channels, x.side)

    def combine(self) -> None:
        x = self.pick()
        other = self.pick(like=x)
        name = self.draw(st.sampled_from(["Add", "Add", "Mul", "Max"]))
        self.keep(f"{name}({x.name}, {other.name})", x.channels, x.side)

    def axis(self, x: Map) -> int:
        return 1 if x.side else 2

    def concat(self) -> None:
        x = self.pick()
        other = self.pick(side=x.side)
        if x.channels + other.channels <= 24:
            call = f"Concat<axis={self.axis(x)}>({x.name}, {other.name})"
            self.keep(call, x.channels + other.channels, x.side)

    def split(self) -> None:
        x = self.pick()
        if x.channels < 3:
            return
        first = self.choose(x.channels // 2, 1 + x.channels // 3)
        one, other = self.name("t"), self.name("t")
        sizes = self.numbers(first, x.channels - first)
        self.lines.append(f"{one}, {other} = Split<axis={self.axis(x)}>({x.name}, {sizes})")
        self.maps += [Map(one, first, x.side), Map(other, x.channels - first, x.side)]

    def cut(self) -> None:
        x = self.pick()
        if x.channels < 4:
            return
        start, end = self.choose(0, 1, -3), self.choose(-1, x.channels, 2**63 - 1)
        left = len(range(x.channels)[start:end])
        call = f"Slice({x.name}, {self.numbers(start)}, {self.numbers(end)}, {self.numbers(self.axis(x))})"
        self.keep(call, left, x.side)

    def looked_up(self) -> None:
        """Any channels in any order, each as often as it likes."""
        x = self.pick()
        positions = self.draw(st.lists(st.integers(-x.channels, x.channels - 1), min_size=1, max_size=8))
        self.keep(f"Gather<axis={self.axis(x)}>({x.name}, {self.numbers(*positions)})", len(positions), x.side)

    def stepped(self) -> None:
        x, step = self.pick(), self.choose(2, 3, -1, -2)
        start, end = (self.choose(0, 1), 2**63 - 1) if step > 0 else (self.choose(-1, -2), -(2**63) + 1)
        left = len(range(x.channels)[start:end:step])
        if left:
            bounds = ", ".join(self.numbers(number) for number in (start, end, self.axis(x), step))
            self.keep(f"Slice({x.name}, {bounds})", left, x.side)

    def running(self) -> None:
        x = self.pick()
        axis = self.constant("axis", f"[]{{{self.axis(x)}}}")
        self.keep(f"CumSum<exclusive={self.choose(0, 1)}>({x.name}, {axis})", x.channels, x.side)

    def pad(self) -> None:
        x, before = self.pick(), self.choose(0, 2)
        pads = (0, before, 0, 0, 0, 2, 0, 0) if x.side else (0, 0, before, 0, 0, 2)
        self.keep(f"Pad({x.name}, {self.numbers(*pads)})", before + x.channels + 2, x.side)

    def repeat(self) -> None:
        x = self.pick()
        if x.channels <= 8:
            times = (1, 2, 1, 1) if x.side else (1, 1, 2)
            self.keep(f"Tile({x.name}, {self.numbers(*times)})", 2 * x.channels, x.side)

    def total(self) -> None:
        """A sum or a mean over channels, which scales them all."""
        x = self.pick()
        name = self.draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceL2"]))
        total = self.say(f"{name}({x.name}, {self.numbers(self.axis(x))})")
        width = self.say(f"Shape<start={self.axis(x)}, end={self.axis(x) + 1}>({x.name})")
        count = self.say(f"Cast<to=1>({width})")
        self.keep(f"Mul({x.name}, {self.say(f'Div({total}, {count})')})", x.channels, x.side)

    def choice(self) -> None:
        x = self.pick()
        other = self.pick(like=x)
        larger = self.say(f"Greater({x.name}, {other.name})")
        self.keep(f"Where({larger}, {other.name}, {x.name})", x.channels, x.side)

    # Steps of images.

    def conv(self) -> None:
        x, kernel = self.pick(), self.choose(1, 3)
        groups = self.choose(*(number for number in (1, 1, 2, 3, x.channels) if x.channels % number == 0))
        out = groups * self.choose(1, 2) if groups == x.channels else groups * self.choose(2, 3, 4)
        bias = ", " + self.weight(out, prefix="b") if self.maybe() else ""
        weight = self.weight(out, x.channels // groups, kernel, kernel)
        pads = ",".join([str(kernel // 2)] * 4)
        self.keep(f"Conv<group={groups}, pads=[{pads}]>({x.name}, {weight}{bias})", out, x.side)

    def upsample(self) -> None:
        x, out = self.pick(), self.choose(3, 4)
        if x.side <= 4:
            call = f"ConvTranspose<strides=[2,2]>({x.name}, {self.weight(x.channels, out, 2, 2)})"
            self.keep(call, out, 2 * x.side)

    def pool(self) -> None:
        x = self.pick()
        if x.side > 1:
            name = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
            self.keep(f"{name}<kernel_shape=[2,2], strides=[2,2]>({x.name})", x.channels, x.side // 2)

    def norm(self) -> None:
        x = self.pick()
        parts = [self.weight(x.channels, prefix=prefix) for prefix in "wbmv"]
        self.keep(f"BatchNormalization({x.name}, {', '.join(parts)})", x.channels, x.side)

    def group_norm(self) -> None:
        x = self.pick()
        if x.channels % 2 == 0 and x.side > 1:
            apart = self.say(f"Reshape({x.name}, {self.numbers(0, 2, -1)})")
            normed = self.say(f"InstanceNormalization({apart}, {self.name('g')}[2]{{1.0}}, {self.name('g')}[2]{{0.0}})")
            back = self.say(f"Reshape({normed}, {self.shape(x.name, x.channels, x.side, x.side)})")
            self.keep(f"Mul({back}, {self.weight(x.channels, 1, 1)})", x.channels, x.side)

    def gate(self) -> None:
        x, inner = self.pick(), self.choose(2, 3)
        mean = self.say(f"GlobalAveragePool({x.name})")
        narrow = self.say(f"Conv({mean}, {self.weight(inner, x.channels, 1, 1)})")
        wide = self.say(f"Conv({narrow}, {self.weight(x.channels, inner, 1, 1)}, {self.weight(x.channels)})")
        self.keep(f"Mul({x.name}, {self.say(f'Sigmoid({wide})')})", x.channels, x.side)

    def shuffle(self) -> None:
        x = self.pick()
        if x.channels % 2 == 0:
            apart = self.say(f"Reshape({x.name}, {self.shape(x.name, 2, x.channels // 2, x.side, x.side)})")
            turned = self.say(f"Transpose<perm=[0,2,1,3,4]>({apart})")
            self.keep(f"Reshape({turned}, {self.shape(turned, x.channels, x.side, x.side)})", x.channels, x.side)

    def dense_in_space(self) -> None:
        x, out = self.pick(), self.choose(4, 6)
        last = self.say(f"Transpose<perm=[0,2,3,1]>({x.name})")
        mixed = self.say(f"MatMul({last}, {self.weight(x.channels, out)})")
        self.keep(f"Transpose<perm=[0,3,1,2]>({mixed})", out, x.side)

    def attention_over_space(self) -> None:
        x, width = self.pick(), self.choose(2, 4)
        rows = []
        for _ in range(3):
            conv = self.say(f"Conv({x.name}, {self.weight(2 * width, x.channels, 1, 1)})")
            rows.append(self.say(f"Reshape({conv}, {self.shape(conv, 2, width, x.side * x.side)})"))
        turned = self.say(f"Transpose<perm=[0,1,3,2]>({rows[0]})")
        shares = self.say(f"Softmax<axis=2>({self.say(f'MatMul({turned}, {rows[1]})')})")
        mixed = self.say(f"MatMul({rows[2]}, {shares})")
        self.keep(f"Reshape({mixed}, {self.shape(x.name, 2 * width, x.side, x.side)})", 2 * width, x.side)

    def rearranged(self) -> None:
        x = self.pick()
        mode = self.draw(st.sampled_from(["DCR", "CRD"]))
        if x.channels % 4 == 0 and x.side <= 4:
            self.keep(f'DepthToSpace<blocksize=2, mode="{mode}">({x.name})', x.channels // 4, 2 * x.side)
        elif x.channels <= 4 and x.side % 2 == 0:
            self.keep(f"SpaceToDepth<blocksize=2>({x.name})", 4 * x.channels, x.side // 2)

    # Steps of sequences.

    def dense(self) -> None:
        x, out = self.pick(), self.choose(4, 6, 8)
        product = self.say(f"MatMul({x.name}, {self.weight(x.channels, out)})")
        self.keep(f"Add({product}, {self.weight(out)})" if self.maybe() else f"Identity({product})", out, 0)

    def layer_norm(self) -> None:
        x = self.pick()
        parts = f"{self.weight(x.channels)}, {self.weight(x.channels)}"
        self.keep(f"LayerNormalization({x.name}, {parts})", x.channels, 0)

    def attention(self) -> None:
        x, heads, width = self.pick(), self.choose(1, 2, 3), self.choose(2, 4)
        total = heads * width
        if packed := self.maybe():
            product = self.say(f"MatMul({x.name}, {self.weight(x.channels, 3 * total)})")
            names = [self.name("t") for _ in range(3)]
            self.lines.append(f"{', '.join(names)} = Split<axis=2>({product}, {self.numbers(*[total] * 3)})")
        else:
            names = [self.say(f"MatMul({x.name}, {self.weight(x.channels, total)})") for _ in range(3)]
        apart = [self.say(f"Reshape({name}, {self.shape(name, 7, heads, width)})") for name in names]
        q, v = (self.say(f"Transpose<perm=[0,2,1,3]>({apart[number]})") for number in (0, 2))
        k = self.say(f"Transpose<perm=[0,2,3,1]>({apart[1]})")
        scores = self.say(f"MatMul({q}, {k})")
        shares = self.say(f"Softmax<axis=3>({scores})") if packed or self.maybe() else self.say(f"Tanh({scores})")
        back = self.say(f"Transpose<perm=[0,2,1,3]>({self.say(f'MatMul({shares}, {v})')})")
        self.keep(f"Reshape({back}, {self.shape(back, 7, total)})", total, 0)

    def attention_in_one_node(self) -> None:
        x, heads, width = self.pick(), self.choose(1, 2, 3), self.choose(2, 4)
        total = heads * width
        if self.maybe():
            weights = f"{self.weight(x.channels, 3 * total)}, {self.weight(3 * total)}"
            self.keep(f"com.microsoft.Attention<num_heads={heads}>({x.name}, {weights})", total, 0)
            return
        q, k, v = (self.say(f"MatMul({x.name}, {self.weight(x.channels, total)})") for _ in range(3))
        bias = ", " + self.weight(3 * total) if self.maybe() else ""
        self.keep(f"com.microsoft.MultiHeadAttention<num_heads={heads}>({q}, {k}, {v}{bias})", total, 0)

    def swapped_halves(self) -> None:
        x = self.pick()
        if x.channels % 2 == 0:
            half = x.channels // 2
            first = self.say(f"Slice({x.name}, {self.numbers(0)}, {self.numbers(half)}, {self.numbers(2)})")
            second = self.say(f"Slice({x.name}, {self.numbers(half)}, {self.numbers(99)}, {self.numbers(-1)})")
            self.keep(f"Concat<axis=-1>({self.say(f'Neg({second})')}, {first})", x.channels, 0)

    def recurrent(self) -> None:
        x, hidden = self.pick(), self.choose(3, 4)
        time_first = self.say(f"Transpose<perm=[1,0,2]>({x.name})")
        w, r, b = self.weight(1, 3 * hidden, x.channels), self.weight(1, 3 * hidden, hidden), self.weight(1, 6 * hidden)
        states = self.say(f"GRU<hidden_size={hidden}>({time_first}, {w}, {r}, {b})")
        self.keep(f"Transpose<perm=[1,0,2]>({self.say(f'Squeeze({states}, {self.numbers(1)})')})", hidden, 0)

    def attention_over_channels(self) -> None:
        x = self.pick()
        turned = self.say(f"Transpose<perm=[0,2,1]>({x.name})")
        gram = self.say(f"MatMul({turned}, {x.name})")
        shares = self.say(f"{self.draw(st.sampled_from(['Tanh', 'Sigmoid', 'Identity', 'Softmax']))}({gram})")
        self.keep(f"MatMul({x.name}, {shares})", x.channels, 0)

    def repeated_heads(self) -> None:
        """Keys for two heads each, by Expand."""
        x, width = self.pick(), self.choose(2, 4)
        q = self.say(f"MatMul({x.name}, {self.weight(x.channels, 4 * width)})")
        k = self.say(f"MatMul({x.name}, {self.weight(x.channels, 2 * width)})")
        q1 = self.say(f"Transpose<perm=[0,2,1,3]>({self.say(f'Reshape({q}, {self.shape(q, 7, 4, width)})')})")
        k1 = self.say(f"Transpose<perm=[0,2,3,1]>({self.say(f'Reshape({k}, {self.shape(k, 7, 2, width)})')})")
        k2 = self.say(f"Expand({self.say(f'Unsqueeze({k1}, {self.numbers(2)})')}, {self.numbers(1, 2, 2, width, 7)})")
        k3 = self.say(f"Reshape({k2}, {self.shape(k2, 4, width, 7)})")
        shares = self.say(f"Softmax({self.say(f'MatMul({q1}, {k3})')})")
        mixed = self.say(f"MatMul({shares}, {q1})")
        back = self.say(f"Transpose<perm=[0,2,1,3]>({mixed})")
        self.keep(f"Reshape({back}, {self.shape(back, 7, 4 * width)})", 4 * width, 0)

    # The ends.

    def heads(self) -> str:
        """An output for each of the last tensors; the text of the whole."""
        for number, one in enumerate(self.maps[-4:]):
            self.head(one, f"y{number}")
        return "\n".join(self.lines)

    def head(self, one: Map, output: str) -> None:
        way = self.choose(0, 1)
        if not one.side:
            self.lines.append(f"{output} = MatMul({one.name}, {self.weight(one.channels, 3)})")
        elif way:
            self.lines.append(f"{output} = Conv({one.name}, {self.weight(2, one.channels, 1, 1)})")
        else:
            flat = self.say(f"Flatten({one.name})")
            size = one.channels * one.side * one.side
            self.lines.append(f"{output} = Gemm<transB=1>({flat}, {self.weight(3, size)}, {self.weight(3)})")


COMMON = (
    *("activation", "combine", "combine", "choice", "concat", "split", "cut", "pad", "repeat", "total"),
    *("looked_up", "stepped", "running"),
)
IMAGES = (
    *("conv", "conv", "conv", "norm", "gate", "pool", "upsample", "shuffle", "group_norm"),
    *("dense_in_space", "attention_over_space", "rearranged"),
)
SEQUENCES = (
    *("dense", "dense", "layer_norm", "attention", "attention", "swapped_halves", "recurrent"),
    *("attention_over_channels", "attention_in_one_node", "repeated_heads"),
)


@st.composite
def networks(draw: st.DrawFn, *, images: bool, most: int) -> str:
    """The text of a network of a few steps, each reading any tensor made before."""
    script = Script(draw, draw(st.sampled_from(["N", "1", "2"])))
    script.maps.append(Map("x", 3, 4) if images else Map("x", 5))
    script.lines.append("")
    (script.conv if images else script.dense)()
    script.maps.pop(0)
    for _ in range(draw(st.integers(1, most))):
        step = draw(st.sampled_from(COMMON + (IMAGES if images else SEQUENCES)))
        getattr(script, step)()
    text = script.heads()
    return text.replace("(x,", f"(x[{script.batch},3,4,4]," if images else f"(x[{script.batch},7,5],", 1)


QUIETLY = (HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large)


def check(text: str, seed: int) -> None:
    note(text)
    couplings = coupled(build(text))
    assert_every_removal_is_exact(couplings, seed=seed)
    assert_removal_equals_masking(couplings, seed=seed)


@given(networks(images=True, most=8), st.integers(0, 99))
@settings(max_examples=120, suppress_health_check=QUIETLY)
def test_random_image_networks(text: str, seed: int) -> None:
    """Convolutions, joined, cut, shuffled and gated in any way, are pruned exactly."""
    check(text, seed)


@given(networks(images=False, most=8), st.integers(0, 99))
@settings(max_examples=120, suppress_health_check=QUIETLY)
def test_random_sequence_networks(text: str, seed: int) -> None:
    """Dense layers, attention and recurrent layers, joined and cut in any way, are pruned exactly."""
    check(text, seed)


@pytest.mark.slow
@given(st.booleans().flatmap(lambda images: networks(images=images, most=20)), st.integers(0, 99))
@settings(max_examples=1000, suppress_health_check=QUIETLY, derandomize=False)
def test_many_large_random_networks(text: str, seed: int) -> None:
    """The same for larger networks, and others each time."""
    check(text, seed)
