"""What happens around the steps of any system; each keeps its own state in the checkpoint.

Configs list these; ``Preemption`` comes with every system and is listed only to change its options.
"""

from unigs.callbacks.averaging import EMA
from unigs.callbacks.evaluation import Evaluation
from unigs.callbacks.throughput import Throughput
from unigs.callbacks.validation import SampledValidation
from unigs.promises import Preemption

__all__ = ["EMA", "Evaluation", "Preemption", "SampledValidation", "Throughput"]
