"""Several processes as one run: how they find each other, and how all of them end when one of them does.

JAX's coordination service notices a process that has gone and aborts the others with pages of its own log. Here the
last thing that each of them says is one clear line.
"""

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from minigpt_jax.errors import UserError

HEARTBEAT_SECONDS = 60
LOST = 1
_LOST_LINE = (
    "minigpt: another process of this run was lost; the latest checkpoint is whole: "
    "start all processes again, as many as you like, to go on from it\n"
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


def wanted(settings: Distributed) -> bool:
    """Whether there are other processes to join, from the flags or the launcher's environment.

    Raises UserError where some of the flags are missing or cannot be.
    """
    flags = {
        "--distributed.coordinator": settings.coordinator,
        "--distributed.num-processes": settings.num_processes,
        "--distributed.process-id": settings.process_id,
    }
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
def joined(settings: Distributed, wait_seconds: int = 300) -> Iterator[None]:
    """Joins the other processes, if there are any, before JAX is used, and leaves the run with them.

    A process that fails leaves at once, as the others wait for it no longer; one that loses another says so and exits
    with status 1.
    """
    if not wanted(settings):
        yield
        return
    import jax  # not above: it takes seconds, and a wrong flag is told at once

    # Its signal handler would take SIGTERM from the run, which stops all processes at the same step by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            initialization_timeout=wait_seconds,
            coordinator_bind_address=own_address(settings.coordinator),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the other processes of this run cannot be joined ({reason}); check --distributed.*, or take "
            "--distributed.cluster off"
        ) from error
    if jax.process_count() == 1:
        yield
        return
    _say_so_on_abort()
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _tells_of_a_lost_process(error):
            raise
        leave(_LOST_LINE, LOST)


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


def _say_so_on_abort() -> None:
    """Has abort() print the line and exit: JAX's own thread calls it, where Python's handlers never run."""

    def on_abort(number: int) -> None:
        del number
        os.write(2, _LOST_LINE.encode())
        os._exit(LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
