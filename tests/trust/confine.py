"""Run the command with what must not happen made impossible, or written down: ``python confine.py
REPORT [verb ...]``.

Linux kills the process when it, or any library in it, opens a socket of the internet (a seccomp
filter, below Python). Every object that pickle makes, every connection that Python attempts and
every process started is written to REPORT, a JSON object of counts.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import platform
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06  # instructions of the Berkeley packet filter
KILL, ALLOW = 0x80000000, 0x7FFF0000
INTERNET = (2, 10)  # AF_INET, AF_INET6
SYSTEM_CALL, FIRST_ARGUMENT = 0, 16  # where they stand in what a filter sees
NO_NEW_PRIVILEGES, SECCOMP, WITH_FILTER = 38, 22, 2

WATCHED = (
    "pickle.find_class",
    "marshal.loads",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "subprocess.Popen",
    "os.system",
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def without_internet() -> bool:
    """From here on a socket of the internet is the end of this process, by SIGSYS; whether the
    system took the filter."""
    if sys.platform != "linux" or SOCKET is None:
        return False
    steps = [(LOAD, 0, 0, SYSTEM_CALL), (EQUAL, 0, 4, SOCKET), (LOAD, 0, 0, FIRST_ARGUMENT)]
    steps += [
        (EQUAL, 1, 0, INTERNET[0]),
        (EQUAL, 0, 1, INTERNET[1]),
        (GIVE, 0, 0, KILL),
        (GIVE, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        and libc.prctl(SECCOMP, WITH_FILTER, ctypes.byref(program), 0, 0) == 0
    )


def watched(report: Path) -> Counter[str]:
    """Counts of the events of ``WATCHED``, written to ``report`` at the end."""
    seen: Counter[str] = Counter()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED:
            first = (
                ""
                if event == "marshal.loads"
                else f" {args[0]}"
                if not event.startswith("socket")
                else f" {args[1:]}"
            )
            seen[event + first] += 1

    sys.addaudithook(hook)
    atexit.register(lambda: report.write_text(json.dumps(dict(seen)), encoding="utf-8"))
    return seen


def main() -> None:
    report, lines = Path(sys.argv[1]), [line.split("\x1f") for line in sys.argv[2:]]
    seen = watched(report)
    seen["filter"] = int(without_internet())
    from clinpeft import cli

    for words in lines:
        sys.argv = ["clinpeft", *words]
        try:
            cli.main()
        except SystemExit as left:
            if left.code:
                raise


if __name__ == "__main__":
    main()
