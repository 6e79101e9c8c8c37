"""Chromium without a window, spoken to over a pipe: enough of its protocol to open a file, press
keys, and hear what the page complained about."""

# ruff: noqa: PLW1509
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = next(
    (
        answer
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (answer := shutil.which(name))
    ),
    None,
)


class Page:
    """One page of one browser.

    Attributes:
        heard: every event of the browser so far.
    """

    def __init__(self, writing: int, reading: int) -> None:
        self.writing, self.reading, self.rest, self.count, self.replies = (
            writing,
            reading,
            b"",
            0,
            list[dict[str, Any]](),
        )
        target = self.say("Target.createTarget", {"url": "about:blank"}, browser=True)["targetId"]
        self.session = self.say(
            "Target.attachToTarget", {"targetId": target, "flatten": True}, browser=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.say(f"{domain}.enable")

    def say(
        self, method: str, params: dict[str, Any] | None = None, browser: bool = False
    ) -> dict[str, Any]:
        """A command and its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params or {}} | (
            {} if browser else {"sessionId": self.session}
        )
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next(60)
            if reply.get("id") == self.count:
                assert "error" not in reply, reply["error"]
                result: dict[str, Any] = reply["result"]
                return result
            self.replies.append(reply)

    def wait_for(self, method: str, seconds: float = 60) -> None:
        """Until the browser has told of an event."""
        while not any(reply.get("method") == method for reply in self.replies):
            self.replies.append(self._next(seconds))

    def open(self, path: Path) -> None:
        self.replies.clear()
        self.say("Page.navigate", {"url": path.resolve().as_uri()})
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.say(
            "Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up."""
        same = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.say(
            "Input.dispatchKeyEvent",
            {"type": "keyDown", **same, **({"text": text} if text else {})},
        )
        self.say("Input.dispatchKeyEvent", {"type": "keyUp", **same})

    def scheme(self, name: str, media: str = "") -> None:
        """Light or dark, on a screen or on paper."""
        self.say(
            "Emulation.setEmulatedMedia",
            {"media": media, "features": [{"name": "prefers-color-scheme", "value": name}]},
        )

    def complaints(self) -> list[str]:
        """What stood in the console, exceptions included."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [
            json.dumps(reply["params"])[:300]
            for reply in self.replies
            if reply.get("method") in kinds
        ]

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        return [
            reply["params"]["request"]["url"]
            for reply in self.replies
            if reply.get("method") == "Network.requestWillBeSent"
        ]

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self.reading, 1 << 20)
            assert piece, "the browser is gone"
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\0")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A browser that is gone when the block ends.

    Args:
        profile: a folder for what it wants to remember.
    """
    assert PROGRAM is not None
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]

    def placed() -> None:  # the protocol is spoken on 3 and 4
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    flags = (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-extensions",
        "hide-scrollbars",
    )
    more = (
        "disable-background-networking",
        "disable-component-update",
        "remote-debugging-pipe",
        f"user-data-dir={profile}",
    )
    silent = subprocess.DEVNULL
    requested = [PROGRAM, *(f"--{flag}" for flag in (*flags, *more))]
    process = subprocess.Popen(
        requested,
        preexec_fn=placed,
        pass_fds=(3, 4),
        stdin=silent,
        stdout=silent,
        stderr=silent,
    )
    for end in (theirs_in, theirs_out, *high):
        os.close(end)
    try:
        yield Page(ours_out, ours_in)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()
        for end in (ours_out, ours_in):
            os.close(end)
