"""
The errors onnxprune raises::

    OnnxPruneError            exit code 1
    ├── UsageError            exit code 2: an option or argument cannot be used as given
    ├── ModelError            the model cannot be read, run or pruned
    ├── DataError             the calibration data do not fit the model
    ├── PlanError             a plan or scores file does not fit the model
    ├── TargetError           no plan within the limits reaches the target
    └── VerificationError     a pruned model failed its own check

Every message says what was expected, what was found, where, and what to do next.
"""


class OnnxPruneError(Exception):
    """Base of all errors a user can meet; its text is ready to print."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """An option or argument cannot be used as given."""

    exit_code = 2


class ModelError(OnnxPruneError):
    """The model cannot be read, run or pruned."""


class DataError(OnnxPruneError):
    """The calibration data do not fit the model."""


class PlanError(OnnxPruneError):
    """A plan or scores file does not fit the model."""


class TargetError(OnnxPruneError):
    """No plan within the limits reaches the target."""


class VerificationError(OnnxPruneError):
    """A pruned model failed its own check; nothing was written."""
