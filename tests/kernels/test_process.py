"""The core as a guest in a process that forks, ends, or has no memory left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SETUP = f"""
import os, resource, sys, threading, time
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.kernels.oracle import make_spec, make_tensors, spec_fields
from rwkv_chat import _native
from rwkv_chat.engine.native import NativeBackend

def load(spec, tensors=None, threads=3):
    return _native.Model(spec_fields(spec), tensors or make_tensors(spec, 1), threads, "")

def leave_memory(size):
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * os.sysconf("SC_PAGESIZE") + size
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

def leave_all_memory():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""


def succeeds(program: str) -> None:
    """Run `program` in a Python of its own; it must end without a word."""
    done = subprocess.run(
        [sys.executable, "-c", _SETUP + program],
        timeout=60, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
needs_statm = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="this system does not tell how much is mapped"
)


@needs_fork
def test_a_forked_child_computes_the_same() -> None:
    succeeds("""
model = load(make_spec())
before, _ = model.forward([1, 2, 3], None)
child = os.fork()
if child == 0:
    after, _ = model.forward([1, 2, 3], None)
    same = np.array_equal(before, after)
    del model
    sys.exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


@needs_fork
def test_a_forked_child_goes_on_counting() -> None:
    succeeds("""
spec = make_spec()
backend = NativeBackend(spec, make_tensors(spec, 1), threads=2)
backend.forward([1] * 20, None)
backend.reset_counters()
backend.forward([1, 2, 3], None)
before = backend.ffn_zero_fraction()
child = os.fork()
if child == 0:
    same = backend.ffn_zero_fraction() == before
    backend.forward([1, 2, 3], None)
    sys.exit(0 if same and abs(backend.ffn_zero_fraction() - before) < 1e-9 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


def test_a_program_may_end_while_daemon_threads_compute() -> None:
    succeeds("""
model = load(make_spec())
def work():
    while True:
        model.forward(list(range(60)), None)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
""")


def test_a_program_may_end_while_a_daemon_thread_waits_for_the_interpreter() -> None:
    succeeds("""
model = load(make_spec())
begun = threading.Event()
def work():
    begun.set()
    model.forward([1] * 2000, None)
class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.2)  # hands the interpreter over once more, when it is already ending
late = Late()
sys.setswitchinterval(100)
threading.Thread(target=work, daemon=True).start()
begun.wait()
end = time.monotonic() + 0.5
while time.monotonic() < end:
    pass
""")


@needs_statm
def test_a_step_without_memory_fails_and_can_be_repeated() -> None:
    succeeds("""
# What a step allocates last, for the parts of the channel mix, is larger than all else together.
spec = make_spec(layers=1, heads=8, head_size=64, ffn=16384)
ids = [1] * 16
model = load(spec, threads=1)
leave_memory(3 << 20)
for _ in range(2):
    try:
        model.forward(ids, None)
        sys.exit("there was memory enough")
    except MemoryError:
        pass
leave_all_memory()
logits, _ = model.forward(ids, None)
assert np.array_equal(logits, load(spec, threads=1).forward(ids, None)[0])
""")


@needs_statm
def test_threads_are_those_that_could_be_started() -> None:
    succeeds("""
spec = make_spec()
tensors = make_tensors(spec, 1)
leave_memory(64 << 20)
model = load(spec, tensors, threads=200)
leave_all_memory()
assert 1 <= model.threads < 200, model.threads
model.forward([1, 2, 3], None)
""")
