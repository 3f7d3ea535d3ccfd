"""What makes a run this run: its options, and which of them may change when it goes on.

Every system and the data say by a table what a change of each option means on resume. What may not
change is the run's identity: it is stored with its checkpoints, and a folder keeps one run. No
torch, no I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unigs.records import UnigsError

Rule = Literal["refused", "warned", "taken"]
"""What a changed option does on resume: the run stops by name; it goes on with a warning, because
it is no longer bit for bit the run it was; it simply takes effect."""


class OtherRun(UnigsError):
    """A checkpoint or a folder that belongs to a run with other options."""


def flatten_options(options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested options as one level of dotted names and values that JSON has.

    Example:
        >>> flatten_options({"tasks": {"resolution_px": 64}, "betas": (0.9, 0.99)}, "data")
        {'data.tasks.resolution_px': 64, 'data.betas': [0.9, 0.99]}
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            flat |= flatten_options(value, f"{prefix}.{name}")
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}.{name}"] = list(value)
        else:
            known = value is None or isinstance(value, (bool, int, float, str))
            flat[f"{prefix}.{name}"] = value if known else str(value)
    return flat


def find_rule(name: str, rules: Mapping[str, Rule]) -> Rule:
    """The rule of an option: its own, else that of the group it stands in, else ``refused``."""
    while name:
        if name in rules:
            return rules[name]
        name = name.rpartition(".")[0]
    return "refused"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's options and what a change of them means.

    Attributes:
        options: by dotted name, of system, data and trainer.
        rules: of options or of groups of them; what has none is ``refused``.
        moved: options that older versions saved under another name, and their name now.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)

    def list_changes(self, saved: Mapping[str, Any], rule: Rule) -> list[str]:
        """Options under one rule that differ from the saved ones, in words, sorted by name.

        An option that only one side knows is none that was changed: versions come and go.
        """
        now = self.options
        then = {self.moved.get(name, name): value for name, value in saved.items()}
        if isinstance(then.get("system"), str):  # older versions saved the module's path as well
            then["system"] = then["system"].rpartition(".")[2]
        return [
            f"{name} {now[name]!r} (saved with {then[name]!r})"
            for name in sorted(then.keys() & now.keys())
            if then[name] != now[name]
            and repr(then[name]) != repr(now[name])  # NaN is not itself
            and find_rule(name, self.rules) == rule
        ]

    def refuse_other(self, saved: Mapping[str, Any], where: str) -> None:
        """Refuse saved options that would make another run of it.

        Raises:
            OtherRun: with every option that differs, by name.
        """
        if changed := self.list_changes(saved, "refused"):
            raise OtherRun(
                f"expected the run that {where} belongs to, got another: {'; '.join(changed)}. "
                "To train another model, give it a name and so a folder of its own: "
                "--trainer.logger.init_args.name NAME; to begin it from these weights, export them "
                "and pass --model.base FOLDER"
            )
