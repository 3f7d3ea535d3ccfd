"""``Maker``: a learner whose end is a folder of stock classes.

In: a fit that came to its end. Out: the folder ``out``, whole or not at all. A run that had made
its last step before it was cut off writes it when it is resumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from unigs.files import new_folder
from unigs.records import UnigsError
from unigs.runs import Rule
from unigs.systems.system import Learner
from unigs.weights import in_words


class Maker(Learner):
    """Base of what trains a part; a maker has the option ``out``, :meth:`save_parts`, and PARTS."""

    ON_RESUME: ClassVar[dict[str, Rule]] = {"model.out": "taken"}

    PARTS: ClassVar[tuple[str, ...]] = ()
    """Names of all files that :meth:`save_parts` writes."""

    @property
    def hp(self) -> Any:
        """The constructor's arguments."""
        return self.hparams

    def on_fit_start(self) -> None:
        """Look at ``out`` before hours of training, not after.

        Raises:
            UnigsError: other files lie there, or a strategy shards where nothing was sharded.
        """
        super().on_fit_start()
        self.check_out()

    def on_fit_end(self) -> None:
        """Write the folder; also of a resumed run that had no step left, which trains nothing.

        Raises:
            UnigsError: other files lie there, or there is no room.
        """
        if self.global_rank == 0 and self.trainer.global_step:
            self.check_out()
            self.write_out()

    def check_out(self) -> None:
        """Refuse to replace files that no maker of this kind wrote.

        Raises:
            UnigsError: names one.
        """
        out = Path(self.hp.out)
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if other := [name for name in found if name not in self.PARTS]:
            raise UnigsError(
                f"expected a new folder, or one of nothing but {', '.join(self.PARTS)}, got "
                f"{other[0]}, at model.out {out}; give another --model.out"
            )

    def write_out(self) -> None:
        """Replace ``out``, whole or not at all.

        Raises:
            UnigsError: no room or no right to write.
        """
        out = Path(self.hp.out)
        with new_folder(out) as new, in_words("room and rights to write", out):
            words = self.save_parts(new)
        print(f"saved {words} to {out}")

    def save_parts(self, folder: Path) -> str:
        """Write all files of the folder; what they are, in words."""
        raise NotImplementedError
