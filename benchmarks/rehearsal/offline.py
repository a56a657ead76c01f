"""No network: what the libraries are told, and a guard that notices if one of them tries all the same."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

# Read by the libraries when they are imported.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
}

_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
_attempts: list[str] = []
_state = {"installed": False, "watching": False}


@contextlib.contextmanager
def no_network() -> Iterator[list[str]]:
    """Inside, every attempt of this process to reach a host fails and is added to the list."""
    if not _state["installed"]:
        sys.addaudithook(_audit)  # cannot be removed again: silent outside this context
        _state["installed"] = True
    _attempts.clear()
    _state["watching"] = True
    try:
        yield _attempts
    finally:
        _state["watching"] = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _state["watching"] or event not in _EVENTS:
        return
    address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    if event == "socket.getaddrinfo" or isinstance(address, tuple):  # a local socket's address is a path
        _attempts.append(f"{address} ({event})")
        raise OSError(f"{event} to {address}: no network is allowed here")
