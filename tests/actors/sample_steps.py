"""Functions as users write them, good and bad; the tests call them by name in worker processes."""

# ruff: noqa: T201, ASYNC240  # users print, and block event loops for a moment
import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from actors import step_context

hoard: list[bytes] = []


def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def who() -> dict[str, Any]:
    step = step_context.current()
    return {
        "execution_id": step.execution_id,
        "node_id": step.node_id,
        "attempt": step.attempt,
        "index": step.index,
        "key": step.idempotency_key,
        "cancelled": step.is_cancelled(),
    }


def pid() -> int:
    return os.getpid()


def first_line(uri: str) -> str:
    with step_context.current().open(uri) as file:
        return file.readline().decode()


def fail(message: str) -> NoReturn:
    raise ValueError(message)


def fail_with_cause() -> NoReturn:
    try:
        fail("the cause")
    except ValueError as error:
        raise LookupError("the effect") from error


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def fail_mutely() -> NoReturn:
    raise _Mute


async def fail_later(message: str) -> NoReturn:
    await asyncio.sleep(0)
    raise ValueError(message)


def leave(code: int) -> NoReturn:
    sys.exit(code)


async def leave_later(code: int) -> NoReturn:
    await asyncio.sleep(0)
    sys.exit(code)


def drop_dead(code: int) -> NoReturn:
    os._exit(code)


def drop_dead_if(value: int, fatal: int) -> int:
    if value == fatal:
        os._exit(9)
    return value


def kill_self() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def segfault() -> None:
    ctypes.string_at(0)


def spin() -> NoReturn:
    print("spinning")
    while True:
        pass


def spin_if(value: int, endless: int) -> int:
    while value == endless:
        pass
    return value


def wait_for_cancel(started: str) -> str:
    """Leaves a file behind when it begins and another when it saw the cancellation."""
    step = step_context.current()
    Path(started).write_text(str(os.getpid()))
    print("waiting")
    deadline = time.monotonic() + 60
    while not step.is_cancelled() and time.monotonic() < deadline:
        time.sleep(0.01)
    Path(started + ".stopped").touch()
    return "stopped by itself"


def ignore_cancel(started: str) -> NoReturn:
    Path(started).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


async def sleep_for_ever(started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    try:
        await asyncio.sleep(3600)
    finally:
        Path(started + ".stopped").touch()


def chatter() -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("sample").info("a record with %d arguments", 1)
    logging.getLogger("sample").warning("a warning")
    return "done"


def flood(megabytes: int) -> int:
    for _ in range(megabytes * 16):
        print("x" * 65_535)
    return resident_kib()


def flood_descriptor(megabytes: int) -> int:
    for _ in range(megabytes * 16):
        os.write(1, b"y" * 65_536)
    return resident_kib()


def flood_log(records: int) -> None:
    for number in range(records):
        logging.getLogger("sample").warning("record %d %s", number, "z" * 1000)


def run_child() -> int:
    return subprocess.run([sys.executable, "-c", "print('from the child')"], check=True).returncode


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


def read_input() -> str:
    return sys.stdin.read()


def ask() -> str:
    return input("name? ")


def unserialisable() -> dict[str, Any]:
    return {"rows": [1, {"lock": threading.Lock()}]}


def nested_in_itself() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def huge(size: int) -> str:
    return "h" * size


def allocate(megabytes: int) -> int:
    return len(bytearray(megabytes * 1024 * 1024))


def leak(megabytes: int) -> int:
    hoard.append(b"\1" * (megabytes * 1024 * 1024))
    return len(hoard)


def break_streams() -> None:
    sys.stdout.close()
    sys.stdout = None
    logging.getLogger().handlers.clear()


async def leave_task_behind(path: str) -> None:
    async def late() -> None:
        await asyncio.sleep(0.05)
        Path(path).touch()

    leave_task_behind.__dict__["task"] = asyncio.ensure_future(late())


def environment(name: str) -> str | None:
    return os.environ.get(name)


def modules(prefixes: list[str]) -> list[str]:
    return sorted(name for name in sys.modules if name.split(".")[0] in prefixes)


not_a_function = 7


def where_am_i(seconds: float = 0.0) -> dict[str, Any]:
    """Which GPUs Ray gave this process, and the labels of its node."""
    import ray

    time.sleep(seconds)
    context = ray.get_runtime_context()
    return {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "labels": context.get_node_labels()}


# --- items of wide maps -----------------------------------------------------------------------------


def pick(item: Any, bad: int = 3) -> Any:
    """Fails for every ``bad``-th number."""
    if isinstance(item, int) and item % bad == bad - 1:
        raise ValueError(f"bad item {item}")
    return {"n": item}


tried: dict[str, int] = {}


def better_the_second_time(item: int) -> dict[str, Any]:
    step = step_context.current()
    tried[step.idempotency_key] = tried.get(step.idempotency_key, 0) + 1
    if step.idempotency_key.endswith(":1"):
        raise ConnectionError("not yet")
    return {"index": step.index, "key": step.idempotency_key, "item": item}


def dawdle(item: int, seconds: float) -> int:
    """Stops when it is asked to."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not step_context.current().is_cancelled():
        time.sleep(0.005)
    return item


async def dawdle_later(item: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return item


def die_of(item: int, poison: int) -> int:
    """One item takes its process along."""
    if item == poison:
        os._exit(23)
    return item


def note_pid(item: int, folder: str) -> int:
    """Leaves one line an item behind, in a file of this process."""
    with Path(folder, str(os.getpid())).open("a", encoding="utf-8") as file:
        file.write(f"{item}\n")
    return item
