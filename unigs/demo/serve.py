"""``unigs demo``: the task verbs as a page in a browser.

The signature is the command line. Neither torch nor gradio is imported before the page is built.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

from unigs.records import UnigsError, UnigsWarning
from unigs.verbs.model import locate_model

USER = "unigs"
"""Who logs in with the password."""

MOST_PORT = 65_535

SERVED = "served"
"""The only folder whose files the page hands out, below that of the run."""

SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Read by gradio as it is imported."""

OPENING = ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_MCP_SERVER", "GRADIO_WATCH_DIRS")
"""Variables that would serve more than this page, or to more people."""


def serve_page(
    model: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    device: str = "auto",
) -> None:
    """Open a page where the tasks can be tried in a browser: upload, paint, ask, download.

    Pictures stay on this machine: nothing is sent elsewhere, and what was uploaded or made is gone
    when the page ends, or an hour later. Ctrl+C ends it.

    Args:
        model: folder that ``unigs export`` wrote, or ``tiny`` or ``pix2seq-d``; default: ``tiny``.
            The page has the tabs of what the model can do.
        host: address to listen at; every other than the default lets other machines in.
        port: of the page.
        password: asked of whoever opens the page, with the user name ``unigs``.
        device: ``auto`` is a GPU where there is one; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UnigsError: gradio is not installed, no such model, or no such port, or it is taken.

    Example:
        unigs demo
        unigs demo --model runs/joint/pipeline --host 0.0.0.0 --password secret
    """
    if find_spec("gradio") is None:
        raise UnigsError("expected gradio for the page, found none; pip install 'unigs[demo]'")
    if not 0 <= port <= MOST_PORT:
        raise UnigsError(f"expected a port of 0 to {MOST_PORT}, got {port}, at --port")
    locate_model(model)
    if not password and not is_loopback(host):
        warnings.warn(
            f"the page at {host} is open to everybody who reaches this machine; give --password",
            UnigsWarning,
            stacklevel=2,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl+C does, tidily
    with tempfile.TemporaryDirectory(prefix="unigs-demo-") as folder:
        set_environment(Path(folder))
        open_page(model, host, port, password, device, Path(folder))


def open_page(
    model: Path | None, host: str, port: int, password: str | None, device: str, folder: Path
) -> None:
    """Serve a page until Ctrl+C."""
    from unigs.demo.desk import Desk  # torch and gradio, from here on
    from unigs.demo.page import build_page, launch_page

    page = build_page(Desk(model, device, folder))
    print(f"{launch_page(page, host, port, password)}  (Ctrl+C ends it)", flush=True)
    page.block_thread()


def set_environment(folder: Path) -> None:
    """Tell gradio, before it is imported, to report nothing and to keep its files in a folder."""
    for name in OPENING:
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):  # gradio calls its own server as it starts
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1")))
    os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(folder / SERVED))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
