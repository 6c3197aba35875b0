"""Keeping freed memory takes effect where the C library can do it, and ends."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_large_block_is_reused_without_new_page_faults_and_given_back_at_the_end() -> None:
    """In a process of its own: 64 MiB are allocated and freed again and again; kept memory is faulted in once."""
    code = (
        "import ctypes, resource, sys, platform\n"
        "from vtlvlm.system.malloc import freed_memory_kept\n"
        "if platform.libc_ver()[0] != 'glibc': sys.exit(0)\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "start = resident()\n"
        "with freed_memory_kept() as kept:\n"
        "    assert kept\n"
        "    bytearray(2**26); before = faults()\n"
        "    for _ in range(5): bytearray(2**26)\n"
        "    assert faults() - before < 2**26 // 4096, faults() - before\n"
        "    assert resident() - start > 2**25\n"
        "assert resident() - start < 2**25, resident() - start\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
