"""Ray for one run: started on this machine alone, or reached where a cluster runs. Imports Ray, with its telemetry off.

On this machine, Ray listens on the loopback interface alone and demands a token that only its own processes know.
Its processes and files are gone when the run ends. After `kill -9` processes end within a minute, and the next run
removes the files.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BackendUnavailable, PredictorError

OBJECT_STORE_BYTES = 256 * 2**20
"""Frames do not pass through the object store, only their names and answers; what does not fit goes to disk."""
_OF_THIS_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off, Ray takes 127.0.0.1 for its address, on Linux as well
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # so long its processes outlive a command that was killed
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""With these, Ray listens on the loopback interface, and to those alone that hold the token: otherwise anyone who
reaches its ports could run code. Ray reads them once, when it is imported."""
_guarded = False
"""Whether Ray was imported with them."""
_SPARE_CPUS = 1
"""For Ray's own small tasks, so that they never wait for a worker to end."""
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""No reports to Ray's makers, and no lines of its C++ parts on stderr."""
_NO_CLUSTER = "{}: no Ray cluster answers ({}); start one with: ray start --head"
_ANSWER_S = 10.0
_TRIES = 4
_PREFIX, _LOCK = "sem-clip-ray-", "run.lock"
_LONGEST_FOLDER = 24
"""Bytes of the folder of Ray's files: its sockets have longer names below it, and a socket's path ends at 107."""


def require_ray() -> None:
    """Raise BackendUnavailable if Ray is not installed. Imports nothing."""
    if find_spec("ray") is None:
        raise BackendUnavailable('Ray is not installed: pip install "sem-clip[ray]"')


def import_ray() -> Any:
    """Ray, with its data part. Raises BackendUnavailable if it is not installed."""
    os.environ.update(_SILENT)  # also for the processes that it starts
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise BackendUnavailable(f'Ray is not installed ({exc}): pip install "sem-clip[ray]"') from exc
    return ray


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray's module, connected for the block.

    address: of a running cluster, as `ray start` prints it ("auto" finds it on this machine). None: Ray is started here
    for the block, with room for workers of `cpus` threads in all and with the GPUs that it finds, and stopped after it.
    Raises BackendUnavailable without Ray, PredictorError where it cannot be started or reached, or is in use already.
    """
    if address is not None and "://" in address:
        raise PredictorError(
            f"{address}: Ray clients are not supported; run this on a machine of the cluster, with the address auto"
        )
    if address not in (None, "auto"):
        _require_answer(address)
    global _guarded
    if address is None and "ray" in sys.modules and not _guarded:
        raise PredictorError(
            "Ray was imported in this process before it could be closed to other machines: start it yourself, and "
            "pass a dataset to `judge`"
        )
    with _files() as folder, _environment({} if address else _OF_THIS_MACHINE):
        with _no_words():
            ray = import_ray()
        _guarded = _guarded or address is None
        here: dict[str, Any] = {
            "include_dashboard": False,
            "num_cpus": cpus + _SPARE_CPUS,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": folder,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray warns of its own parts
            try:
                _connect(ray, address, here)
                yield ray
            finally:
                ray.shutdown()


def _connect(ray: Any, address: str | None, here: Mapping[str, Any]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _no_words():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
    except (OSError, RuntimeError, ValueError) as exc:  # ConnectionError is an OSError
        if address is None:
            raise PredictorError(f"Ray cannot be started on this machine ({_line(exc)})") from exc
        raise PredictorError(_NO_CLUSTER.format(address, _line(exc))) from exc
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the program without its clean-up
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _require_answer(address: str) -> None:
    """Raise PredictorError if nothing listens at HOST:PORT: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise PredictorError(
            f"{address}: is no address of a Ray cluster; give HOST:PORT as `ray start` prints it, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as exc:
        raise PredictorError(_NO_CLUSTER.format(address, _line(exc))) from exc


def _line(error: BaseException) -> str:
    """The first line of a message; Ray's may have a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _files() -> Iterator[str]:
    """A folder for the sockets and logs of one run, locked while it lasts. Those of runs that were killed go."""
    parent = Path(tempfile.gettempdir())
    parent = parent if len(os.fsencode(parent)) <= _LONGEST_FOLDER else Path("/tmp")
    for left in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # of another user, or removed meanwhile
            if left.stat().st_uid == os.getuid() and _locked(left):
                shutil.rmtree(left.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    lock = Path(folder, _LOCK)
    lock.touch()
    try:
        with FileLock(lock):
            yield folder
    finally:
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.5)  # the last of Ray's processes may write a word as it ends


def _locked(file: Path) -> bool:
    """Whether nobody else holds the lock."""
    try:
        with FileLock(file, timeout=0):
            return True
    except Timeout:
        return False


@contextmanager
def _no_words() -> Iterator[None]:
    """In the block, nothing written to descriptor 2 is seen: Ray's C++ part reports there that it will say nothing.
    Errors are raised."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
