"""What happens around the steps; each callback keeps its own state in the checkpoint.

Configs list the first five. The others come with every system (``learner``), because they hold what
docs/promises.md promises: exact resume, a run that is saved however it ends, finite steps.
"""

from unigs.callbacks.averaging import EMA, read_ema
from unigs.callbacks.evaluation import Evaluation
from unigs.callbacks.finite import FiniteSteps
from unigs.callbacks.keeping import KeepRun
from unigs.callbacks.preemption import PREEMPTED_EXIT_CODE, Preempted, Preemption
from unigs.callbacks.resume import ExactResume
from unigs.callbacks.throughput import Throughput
from unigs.callbacks.validation import SampledValidation

__all__ = [
    "EMA",
    "PREEMPTED_EXIT_CODE",
    "Evaluation",
    "ExactResume",
    "FiniteSteps",
    "KeepRun",
    "Preempted",
    "Preemption",
    "SampledValidation",
    "Throughput",
    "read_ema",
]
