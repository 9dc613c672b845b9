"""What each operator says about its axes: one small function per operator, by family, found by (domain, op_type)."""

from onnxprune.rules import (
    attention,
    classical,
    convolution,
    elementwise,
    frozen,
    layout,
    linear,
    lookup,
    normalization,
    quantization,
    recurrent,
    reduction,
    rotary,
    sampling,
)

__all__ = [
    "attention",
    "classical",
    "convolution",
    "elementwise",
    "frozen",
    "layout",
    "linear",
    "lookup",
    "normalization",
    "quantization",
    "recurrent",
    "reduction",
    "rotary",
    "sampling",
]
