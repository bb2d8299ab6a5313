"""Several processes as one run: how they find each other, and how all of them end if one of them ends.

If a process is lost, JAX's coordination service aborts the others with pages of its log. The functions here make each
of them end with one clear line instead.
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
    "minigpt: another process of this run was lost; the latest checkpoint is intact: "
    "start all processes again, in any number, to resume from it\n"
)


@dataclass(frozen=True)
class Distributed:
    """How this process finds the others of its run. A run of one process needs none of these settings."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 listens; the same for all processes."""
    num_processes: int | None = None
    """The number of processes of the run."""
    process_id: int | None = None
    """The number of this process, counted from 0."""
    cluster: Literal["auto", "detect", "off"] = "auto"
    """auto: join the other tasks of srun, mpirun or a TPU pod; detect: also of Kubernetes; off: join no others."""
    wait_seconds: int = 120
    """The number of seconds to wait at the start until all processes have joined."""


def wanted(settings: Distributed) -> bool:
    """Whether the flags or the launcher's environment name other processes to join.

    Raises:
        UserError: some of the flags are missing or invalid.
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
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {verb} missing: give all of {', '.join(flags)}, or none")
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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--distributed.coordinator {settings.coordinator}: must be HOST:PORT, such as node1:1234")
    if settings.num_processes < 1:
        raise UserError(f"--distributed.num-processes {settings.num_processes}: must be 1 or more")
    if not 0 <= settings.process_id < settings.num_processes:
        raise UserError(
            f"--distributed.process-id {settings.process_id}: must lie between 0 and "
            f"{settings.num_processes - 1}, as --distributed.num-processes is {settings.num_processes}"
        )


def own_address(coordinator: str | None) -> str | None:
    """The address at which process 0 listens: only that of the coordinator, not all addresses of its machine.

    Returns None, which leaves the choice to JAX, if the address is unknown or if the other processes may have to use
    another one. That is so behind a forwarded port, or if the machine's /etc/hosts maps its name to 127.0.1.1.
    """
    if coordinator is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        found = {address[0] for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        for address in found:
            with socket.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET) as probe:
                probe.bind((address, 0))
    except (OSError, UnicodeError):  # the latter for a name that no host can have
        return None
    meant_loopback = host == "localhost" or host in found
    if any(ipaddress.ip_address(address).is_loopback for address in found) and not meant_loopback:
        return None
    return coordinator


@contextlib.contextmanager
def joined(settings: Distributed) -> Iterator[None]:
    """Joins the other processes of the run, if there are any. JAX must not have been used before.

    A process that fails exits at once, without waiting for the others. If another process is lost, this one prints a
    line and exits with status 1. If the others do not join, it prints a line and exits with status 2.

    Raises:
        UserError: the coordinator cannot be reached.
    """
    if not wanted(settings):
        yield
        return
    if settings.process_id:
        _reach_coordinator(settings)
    import jax  # imported late, as it takes seconds and a wrong flag should be reported at once

    # This service would handle SIGTERM, but the run handles it itself and stops all processes at the same step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _one_line_if_joining_fails(settings):
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
            f"the other processes of this run cannot be joined ({reason}); check the flags --distributed.*, or use "
            "--distributed.cluster off to run this process alone"
        ) from error
    _on_abort(lambda: leave(_LOST_LINE, LOST))
    several = True
    try:
        several = jax.process_count() > 1  # at this call the processes exchange the lists of their devices
        if not several:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
        yield
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not (several and _comes_from_a_lost_process(error)):
            raise
        leave(_LOST_LINE, LOST)


def _reach_coordinator(settings: Distributed) -> None:
    """Returns once process 0 listens. If JAX itself tried in vain, it would abort without giving the reason."""
    assert settings.coordinator is not None
    host, _, port = settings.coordinator.rpartition(":")
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left):
                return
        except UnicodeError as error:
            raise UserError(
                f"--distributed.coordinator {settings.coordinator}: no host can have this name; give HOST:PORT, such "
                "as node1:1234"
            ) from error
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--distributed.coordinator {settings.coordinator}: cannot be reached within "
                    f"{settings.wait_seconds} s (--distributed.wait-seconds): {error.strerror or error}; start process "
                    "0 on that machine, and make the port reachable from the others"
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _one_line_if_joining_fails(settings: Distributed) -> Iterator[None]:
    """Replaces the pages of log that JAX prints, if not all processes join, by one line."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        stderr = os.dup(2)

        def fail() -> NoReturn:
            os.dup2(stderr, 2)
            log.seek(0)
            found = re.search(r"absl::Status: (.*)", log.read().decode(errors="replace"))
            reason = found[1] if found else "JAX gave no reason"
            line = f"the processes of this run cannot join each other ({reason})"
            if "DEADLINE_EXCEEDED" in reason:
                count = f"{settings.num_processes} " if settings.num_processes else ""
                limit = f"{settings.wait_seconds} s (--distributed.wait-seconds)"
                line = f"not all {count}processes of this run joined within {limit}"
            advice = "start all of them as one job"
            if settings.coordinator is not None:
                advice = (
                    "start all of them, each with its own --distributed.process-id and the same "
                    f"--distributed.coordinator {settings.coordinator}"
                )
            leave(f"minigpt: {line}; {advice}\n", NOT_JOINED)

        _on_abort(fail)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def leave(line: str, status: int) -> NoReturn:
    """Ends this process at once. A normal exit would wait for the other processes for minutes."""
    sys.stdout.flush()
    sys.stderr.write(line)
    sys.stderr.flush()
    os._exit(status)


def _comes_from_a_lost_process(error: BaseException | None) -> bool:
    signs = ("gloo", "nccl", "connection closed", "connection reset", "unavailable", "coordination", "barrier")
    while error is not None:
        if any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


_handlers: list[object] = []  # keeps them alive, as C holds pointers to them


def _on_abort(end: Callable[[], NoReturn]) -> None:
    """Makes abort() call `end` on any thread. JAX aborts from its own threads, on which Python never runs handlers."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: end())
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
