"""What is freed while a builder runs is the system's again."""

import subprocess
import sys

import pytest

from tests.runtime.processes import ENV

SCRIPT = """
import ctypes, sys
from contextlib import nullcontext
from pathlib import Path
from bei.compiler.engines.heap import giving_back

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
MIB = 1 << 20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def block(size):
    at = libc.malloc(size)
    ctypes.memset(at, 1, size)
    return at

libc.free(block(24 * MIB))  # from here on glibc keeps blocks of this size
with giving_back() if sys.argv[1] == "giving" else nullcontext():
    before = resident()
    blocks = [block(20 * MIB) for _ in range(5)]
    for at in blocks[:-1]:  # the last one keeps the heap from shrinking
        libc.free(at)
    print((resident() - before) // MIB)
    libc.free(blocks[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and glibc")
@pytest.mark.parametrize(("how", "kept"), [("giving", range(19, 30)), ("keeping", range(90, 120))])
def test_memory_after_blocks_were_freed(how: str, kept: range) -> None:
    """In MiB; the second case shows what happens otherwise."""
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert int(done.stdout) in kept
