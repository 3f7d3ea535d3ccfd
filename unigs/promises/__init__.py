"""What docs/promises.md promises, as callbacks that come with everything we train (``systems``).

Exact resume, a run that is saved however it ends, one run a folder, finite steps. Left of the
systems; the callbacks that look at answers stand right of the evaluation, in ``callbacks``.
"""

from unigs.promises.finite import FiniteSteps
from unigs.promises.keeping import KeepRun
from unigs.promises.preemption import PREEMPTED_EXIT_CODE, Preempted, Preemption
from unigs.promises.resume import ExactResume

__all__ = [
    "PREEMPTED_EXIT_CODE",
    "ExactResume",
    "FiniteSteps",
    "KeepRun",
    "Preempted",
    "Preemption",
]
