"""
Prune any ONNX model after export: dense, exact, measured.

    result = onnxprune.prune("in.onnx", "calibration.npz", macs="50%")
    result.save("out.onnx")

Each stage is a function too: read, couple, probe, choose, rewrite, verify.
"""

from onnxprune import rules as _rules  # registers every operator's rule
from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.coupling.couple import couple
from onnxprune.errors import OnnxPruneError
from onnxprune.job import PruneResult
from onnxprune.pipeline import apply, prune, sweep
from onnxprune.probing.probe import probe
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from onnxprune.verifying.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Limits",
    "OnnxPruneError",
    "Plan",
    "PruneResult",
    "Sensitivities",
    "Targets",
    "apply",
    "choose",
    "couple",
    "probe",
    "prune",
    "read",
    "rewrite",
    "sweep",
    "verify",
]

del _rules
