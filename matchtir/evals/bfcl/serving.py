"""A model served on this machine by `transformers serve`, and whether an endpoint answers."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import InputError
from ...tools.sandbox.worker import confine

_NEEDED = ("transformers", "fastapi", "uvicorn", "accelerate")
_START_SECONDS = 1800.0  # a large model is read from the disk first


def hub_cache() -> Path:
    """Where models of the hub are kept on this machine. Beside it lies the user's token."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().resolve()


@contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    """Serve a model on a free port of this machine as long as the context is open.

    Parameters
    ----------
    model : str
        Folder, or name on the hub.
    log : Path
        Takes what the server prints.

    Yields
    ------
    str
        Base URL of the endpoint.

    Raises
    ------
    ImportError
        If a package is missing.
    InputError
        If the server does not come up.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'serving a model needs {", ".join(missing)}: pip install "transformers[serving]"; '
            "--endpoint takes a server of your own"
        )
    # The server lists its models, for which some handlers wait, from the hub's cache, and fails without one.
    hub_cache().mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    with log.open("ab") as stream:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for us, who then end it
            preexec_fn=partial(confine.die_with_parent, os.getpid()),
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", model, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, model: str, log: Path) -> None:
    """Return once the server answers."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise InputError(f"model {model!r} cannot be served (exit code {server.returncode}); see {log}")
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise InputError(f"the server of model {model!r} does not come up in {_START_SECONDS:g} s; see {log}")


def check_endpoint(url: str, key: str, *, lists_models: bool = False) -> None:
    """Refuse an endpoint that does not answer, or refuses the key.

    Parameters
    ----------
    url : str
        Base URL.
    key : str
        Sent along.
    lists_models : bool
        Whether it must list its models, for which handlers that write prompts themselves wait.

    Raises
    ------
    InputError
        Says what is wrong.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"endpoint is {url!r}; expected a URL such as http://127.0.0.1:8000/v1")
    request = urllib.request.Request(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise InputError(f"endpoint {url} refuses the key (status {error.code})") from None
        if lists_models:
            raise InputError(
                f"endpoint {url} does not list its models (status {error.code}), for which this handler waits"
            ) from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"endpoint {url} does not answer: {reason}") from None
