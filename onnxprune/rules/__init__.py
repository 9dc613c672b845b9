"""What each operator says about its axes: one small function per operator, by family, found by (domain, op_type)."""

from onnxprune.rules import convolution, elementwise, layout, linear, normalization, quantization, recurrent, reduction

__all__ = ["convolution", "elementwise", "layout", "linear", "normalization", "quantization", "recurrent", "reduction"]
