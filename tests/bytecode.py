"""Keeps compiled modules where the environment forbids it.

Containers often set ``PYTHONDONTWRITEBYTECODE``. Then each process that a test starts compiles
torch, diffusers and Lightning anew, about 15 s of work. Here they share a folder that ``make
clean`` removes. Importing this module does it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"


def keep_bytecode() -> None:
    """Let this process and all that it starts read and write compiled modules in ``FOLDER``."""
    if not sys.dont_write_bytecode:
        return
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(FOLDER)
    os.environ["PYTHONPYCACHEPREFIX"] = str(FOLDER)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


keep_bytecode()
