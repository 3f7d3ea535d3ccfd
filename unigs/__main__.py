"""``python -m unigs``."""

import sys

from unigs.cli import main

sys.exit(main())
