"""The machine that the tests see: a CPU that JAX takes for eight devices, and a cache of the session's own.

All of it is environment variables, set before JAX or TensorFlow is imported, so that processes that a test starts see
the same machine.
"""

import atexit
import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

assert "jax" not in sys.modules, "a pytest plugin imported jax: too late to choose its devices"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # TensorFlow and PyTorch
# Most of the time goes into compiling small programs that run once or twice. With fewer optimisations XLA needs a third
# of the time for it. A flag that the environment sets stays as it is: .ci/run tests the loops of training and sampling
# with the optimisations that users get, too. jaxlib 0.12 no longer knows the third flag.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if [int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2]] < [0, 12]:
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(flag for flag in _FLAGS if flag.split("=")[0] not in _given)]).strip()

# A [T] array added to a [B, T] one is more often a mistake than meant. Code that is not ours, such as KerasHub's, runs
# under `with jax.numpy_rank_promotion("allow")`.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test fetches anything

# Processes started by a test run this checkout too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; XLA's own pool is left alone, as its size changes the order of sums.
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="2", RAYON_NUM_THREADS="1")
else:
    # Workers inherit it: what one has trained or tokenised serves the others, and nobody's ~/.cache is touched.
    os.environ["MINIGPT_CACHE"] = tempfile.mkdtemp(prefix="minigpt-tests-")
    # Compiled programs too: the same few serve many tests, and the processes that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["MINIGPT_CACHE"], "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["MINIGPT_CACHE"], ignore_errors=True)

# The code that exported folders carry, which Transformers copies before it imports it.
os.environ["HF_MODULES_CACHE"] = os.path.join(
    os.environ["MINIGPT_CACHE"], "modules", os.environ.get("PYTEST_XDIST_WORKER", "main")
)

import checked  # noqa: E402  it imports JAX, for which the variables above have to be set
import jax  # noqa: E402
import pytest  # noqa: E402

checked.install()

MOST_MEMORY_MAPS = 20_000


def pytest_collection_finish() -> None:
    """Makes garbage collections rarer and leaves out the objects of imported modules, whose scans took a tenth of the
    tests' time."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Drops compiled programs once there are many.

    Each of them takes about six memory maps, of which Linux gives a process 65,530; XLA crashes when it gets no more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows with every program that XLA compiles."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()
