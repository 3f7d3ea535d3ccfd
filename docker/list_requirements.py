"""Print the requirements in setup.cfg: those of the core and those of the extras that are named.

Usage: python3 list_requirements.py setup.cfg eval remote. The Dockerfile resolves what this prints
against requirements.lock, so an image holds no development tools and needs no second lock.
"""

import configparser
import sys


def list_requirements(path: str, extras: list[str]) -> list[str]:
    """Lines for a requirements file.

    Raises:
        KeyError: setup.cfg has no such extra.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(path)
    blocks = [config["options"]["install_requires"]]
    blocks += [config["options.extras_require"][extra] for extra in extras]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


if __name__ == "__main__":
    print("\n".join(list_requirements(sys.argv[1], sys.argv[2:])))
