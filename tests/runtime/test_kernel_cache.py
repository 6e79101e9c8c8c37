"""Memory does not grow with the numbers of tokens that rows have had: of compiled products only the
latest are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ROWS = """
import ctypes
import {imported}
import torch


class Told(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]


def held():
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = Told
    return library.mallinfo2().uordblks


def product(rows):
    torch.nn.functional.linear(torch.zeros(rows, 512, dtype=torch.bfloat16), weight)


torch.set_num_threads(1)
weight = torch.ones(256, 512, dtype=torch.bfloat16)
with torch.inference_mode():
    for rows in range(100, 400):
        product(rows)
    before = held()
    for rows in range(400, 600):
        product(rows)
print(held() - before)
"""


def ran(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, told of capacities only what ``settings`` say."""
    context = {
        name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")
    } | settings
    return subprocess.run(
        [sys.executable, "-c", program],
        env=context,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def grown(imported: str) -> int:
    """Bytes held after 200 products of new numbers of rows."""
    done = ran(ROWS.format(imported=imported))
    if "mallinfo2" in done.stderr or "libc.so.6" in done.stderr:
        pytest.skip("the C library does not tell what is held")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_rows_of_many_lengths_leave_nothing_behind() -> None:
    if grown("torch") < 10 * 2**20:
        pytest.skip("PyTorch keeps no compiled products of bfloat16 on this processor")
    assert (
        grown("os, clinpeft.core.offline; clinpeft.core.offline.set_offline_mode(os.environ)")
        < 2 * 2**20
    )


def test_what_the_shell_says_stays() -> None:
    asked = (
        "import os, clinpeft.core.offline as offline; offline.set_offline_mode(os.environ); "
        "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    done = ran(asked, LRU_CACHE_CAPACITY="7")
    assert done.stdout.split() == ["7", "256"], done.stderr
