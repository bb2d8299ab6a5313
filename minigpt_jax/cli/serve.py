"""`minigpt serve RUN_DIR …`: models behind a page for playing with sampling and an OpenAI-compatible endpoint."""

import importlib.util
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from minigpt_jax.cli import parser
from minigpt_jax.errors import UserError
from minigpt_jax.generate.settings import MAX_NEW_TOKENS
from minigpt_jax.trial.signals import INTERRUPTED

_KEY = "MINIGPT_API_KEY"


@dataclass(frozen=True)
class Arguments:
    """Serve models: by a page for playing with sampling, at the address that is printed, and by an OpenAI-compatible
    endpoint, /v1/completions. A model's name is that of its run directory.

    A run that is still being trained is served at its newest checkpoint. Ctrl-C finishes the texts that have been asked
    for; a second one ends at once.
    """

    run_dir: parser.RunDirs
    """Run directories."""
    port: int = 8765
    """The port to listen on; 0 takes a free one."""
    host: str = "127.0.0.1"
    """The address to listen on. One that other machines can reach needs an API key."""
    api_key: str | None = None
    """What requests have to send as Authorization: Bearer KEY. Better set MINIGPT_API_KEY, since other users of this
    machine may see flags."""
    max_new_tokens: int | None = None
    """The most new tokens of one text; by default, the size of the model's window."""
    step: int | Literal["best"] | None = None
    """The checkpoint to serve, or best for that of the lowest validation loss; by default, always the newest."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """If the model needs custom code, run the copy stored in the run directory. Use this only for runs you trust."""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file of yours to run in place of such a copy; may be given several times."""


def main(arguments: list[str]) -> int:
    """Serves until it is interrupted. Returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt serve")
    if not chosen.run_dir:
        raise UserError("serve: no run directory given; name one or more, as in serve runs/quickstart")
    if chosen.max_new_tokens is not None and not 1 <= chosen.max_new_tokens <= MAX_NEW_TOKENS:
        raise UserError(f"--max-new-tokens {chosen.max_new_tokens}: must be from 1 to {MAX_NEW_TOKENS:,}")
    for needed in ("starlette", "uvicorn"):
        if importlib.util.find_spec(needed) is None:
            raise UserError(f"serving needs {needed}; pip install 'minigpt_jax[serve]'")
    key = chosen.api_key or os.environ.get(_KEY) or None
    with _listening(chosen.host, chosen.port, key) as listener:
        from minigpt_jax.cli import jax_setup

        jax_setup.prepare()
        import uvicorn

        from minigpt_jax.serve.app import create_app
        from minigpt_jax.serve.runs import Runs, Source
        from minigpt_jax.serve.security import LOOPBACK
        from minigpt_jax.storage.run_code import code_by_run

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: Any) -> None:
                if self.should_exit:  # not the first signal; without this, only a second Ctrl-C would end it early
                    os._exit(INTERRUPTED)
                super().handle_exit(sig, frame)

        codes = code_by_run(chosen.run_dir, chosen.code)
        runs = Runs.load(
            [
                Source(path, chosen.step, chosen.trust_code, code)
                for path, code in zip(chosen.run_dir, codes, strict=True)
            ],
            chosen.max_new_tokens,
        )
        host, port = listener.getsockname()[:2]
        # Names that others gave to the machine are unknown here; they need the key anyway.
        app = create_app(runs, hosts={*LOOPBACK, host} if _is_loopback(host) else None, api_key=key)
        names = ", ".join(f"{one.name} (step {one.step:,})" for one in runs.engines.values())
        print(f"http://{f'[{host}]' if ':' in host else host}:{port} serves {names}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        Server(config).run(sockets=[listener])  # until a signal
    return INTERRUPTED


def _listening(host: str, port: int, key: str | None) -> socket.socket:
    """A socket that listens on the address.

    Raises:
        UserError: the address cannot be used, or other machines can reach it and there is no key.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: must be 0 (a free one) to {2**16 - 1:,}")
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # of a name with an empty part or one of more than 63 letters
        reason = error.strerror if isinstance(error, OSError) else "it is no valid name"
        raise UserError(f"--host {host} is no address of this machine: {reason}") from error
    if not _is_loopback(str(address[0])) and key is None:
        raise UserError(
            f"--host {host}: other machines can reach it, so requests need a key; set {_KEY} or give --api-key KEY"
        )
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port {port}: {host}:{port} cannot be used ({error.strerror}); give another --port, or 0 for a free one"
        ) from error
    return listener


def _is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    return ipaddress.ip_address(address).is_loopback
