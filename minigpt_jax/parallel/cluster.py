"""Several processes as one run: how they find each other, and how all of them end when one of them does.

JAX's coordination service notices a process that has gone and aborts the others with pages of its own log. Here the
last thing that each of them says is one clear line.
"""

import contextlib
import ctypes
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from minigpt_jax.errors import UserError

HEARTBEAT_SECONDS = 60
LOST, NOT_JOINED = 1, 2
"""Exit statuses."""
_LOST_LINE = (
    "minigpt: another process of this run was lost; the latest checkpoint is whole: "
    "start all processes again, as many as you like, to resume from it\n"
)


@dataclass(frozen=True)
class Distributed:
    """How this process finds the others of its run; a run of one process needs none of it."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all."""
    num_processes: int | None = None
    """Processes in all."""
    process_id: int | None = None
    """This process, from 0 on."""
    cluster: Literal["auto", "detect", "off"] = "auto"
    """auto: join the other tasks of srun, mpirun or a TPU pod; detect: of Kubernetes too; off: stand alone."""
    wait_seconds: int = 120
    """How long to wait at the start for all processes to join."""


def wanted(settings: Distributed) -> bool:
    """Whether there are other processes to join, from the flags or the launcher's environment.

    Raises UserError where some of the flags are missing or cannot be.
    """
    flags = {
        "--distributed.coordinator": settings.coordinator,
        "--distributed.num-processes": settings.num_processes,
        "--distributed.process-id": settings.process_id,
    }
    if settings.wait_seconds < 1:
        raise UserError(f"--distributed.wait-seconds {settings.wait_seconds}: must be at least 1")
    missing = [name for name, value in flags.items() if value is None]
    if not missing:
        _check(settings)
        return True
    if len(missing) < len(flags):
        raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(flags)}, or none")
    if settings.cluster != "auto":
        return settings.cluster == "detect"
    tasks = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "") + os.environ.get("TPU_PROCESS_ADDRESSES", "")
    return any(count.isdigit() and int(count) > 1 for count in tasks) or "," in hosts


def _check(settings: Distributed) -> None:
    assert settings.coordinator is not None
    assert settings.num_processes is not None
    assert settings.process_id is not None
    host, _, port = settings.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--distributed.coordinator {settings.coordinator}: must be HOST:PORT, such as node1:1234")
    if not 0 <= settings.process_id < settings.num_processes:
        raise UserError(
            f"--distributed.process-id {settings.process_id}: must lie between 0 and "
            f"{settings.num_processes - 1}, as --distributed.num-processes is {settings.num_processes}"
        )


def own_address(coordinator: str | None) -> str | None:
    """Where process 0 listens: at the coordinator's own address, instead of at all addresses of its machine.

    None, which leaves it to JAX, where that address is unknown or the others may reach it by another one: behind a
    forwarded port, or where the machine's own /etc/hosts says that its name is 127.0.1.1.
    """
    if coordinator is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        found = {address[0] for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        for address in found:
            with socket.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET) as probe:
                probe.bind((address, 0))
    except OSError:
        return None
    meant_loopback = host == "localhost" or host in found
    if any(ipaddress.ip_address(address).is_loopback for address in found) and not meant_loopback:
        return None
    return coordinator


@contextlib.contextmanager
def joined(settings: Distributed) -> Iterator[None]:
    """Joins the other processes, if there are any, before JAX is used, and leaves the run with them.

    A process that fails leaves at once, as the others wait for it no longer; one that loses another says so and exits
    with status 1.

    Raises UserError if the coordinator cannot be reached; where others do not join, exits with a line and status 2.
    """
    if not wanted(settings):
        yield
        return
    if settings.process_id:
        _reach_coordinator(settings)
    import jax  # not above: it takes seconds, and a wrong flag is told at once

    # Its signal handler would take SIGTERM from the run, which stops all processes at the same step by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _told_of_a_failed_join(settings):
            jax.distributed.initialize(
                settings.coordinator,
                settings.num_processes,
                settings.process_id,
                initialization_timeout=settings.wait_seconds,
                coordinator_bind_address=own_address(settings.coordinator),
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the other processes of this run cannot be joined ({reason}); check --distributed.*, or take "
            "--distributed.cluster off"
        ) from error
    _on_abort(lambda: leave(_LOST_LINE, LOST))
    several = True
    try:
        several = jax.process_count() > 1  # here the processes exchange what devices they have
        if not several:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
        yield
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not (several and _tells_of_a_lost_process(error)):
            raise
        leave(_LOST_LINE, LOST)


def _reach_coordinator(settings: Distributed) -> None:
    """Returns once process 0 listens. JAX's own attempt would end in an abort that does not say why."""
    assert settings.coordinator is not None
    host, _, port = settings.coordinator.rpartition(":")
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left):
                return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--distributed.coordinator {settings.coordinator}: cannot be reached within "
                    f"{settings.wait_seconds} s (--distributed.wait-seconds): {error.strerror or error}; start process "
                    "0 on that machine, and let the others reach that port"
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _told_of_a_failed_join(settings: Distributed) -> Iterator[None]:
    """Has JAX abort with one line where not all processes join; it would print pages of its log."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        stderr = os.dup(2)

        def fail() -> NoReturn:
            os.dup2(stderr, 2)
            log.seek(0)
            found = re.search(r"absl::Status: (.*)", log.read().decode(errors="replace"))
            reason = found[1] if found else "JAX gives no reason"
            line = f"the processes of this run cannot join each other ({reason})"
            if "DEADLINE_EXCEEDED" in reason:
                count = f"{settings.num_processes} " if settings.num_processes else ""
                limit = f"{settings.wait_seconds} s (--distributed.wait-seconds)"
                line = f"not all {count}processes of this run joined within {limit}"
            mend = "start all of them as one job"
            if settings.coordinator is not None:
                mend = (
                    "start all of them, each with its own --distributed.process-id and the same "
                    f"--distributed.coordinator {settings.coordinator}"
                )
            leave(f"minigpt: {line}; {mend}\n", NOT_JOINED)

        _on_abort(fail)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def leave(line: str, status: int) -> NoReturn:
    """Ends this process without waiting for the others, which JAX does for minutes at the interpreter's exit."""
    sys.stdout.flush()
    sys.stderr.write(line)
    sys.stderr.flush()
    os._exit(status)


def _tells_of_a_lost_process(error: BaseException | None) -> bool:
    signs = ("gloo", "nccl", "connection closed", "connection reset", "unavailable", "coordination", "barrier")
    while error is not None:
        if any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


_handlers: list[object] = []  # C holds pointers to them


def _on_abort(end: Callable[[], NoReturn]) -> None:
    """Has abort() call `end`, on whatever thread: JAX's own threads call it, where Python's handlers never run."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: end())
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
