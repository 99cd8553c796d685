"""Chromium without a window, driven by its debugging protocol over a pipe: no port, no package."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One browser with a profile of its own.

    Args:
        folder: For its profile and its downloads.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        self.downloads = folder / "downloads"
        # Chromium reads commands from file 3 and answers on file 4; ours are above both, or one would cover the other.
        from_us, self._to_it = map(_above_nine, os.pipe())
        self._from_it, to_us = map(_above_nine, os.pipe())
        arguments = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", CHROMIUM, *arguments],
            pass_fds=(from_us, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(from_us)
        os.close(to_us)
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True,
        )  # fmt: skip

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is kept in ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        while (found := self._receive()).get("id") != message["id"]:
            self.events.append(found)
        assert "error" not in found, f"{method}: {found['error']}"
        return found["result"]

    def wait_for(self, method: str, **wanted: Any) -> dict[str, Any]:
        """Wait for an event with these parameters."""
        while True:
            for event in self.events:
                parameters = event.get("params", {})
                if event.get("method") == method and wanted.items() <= parameters.items():
                    return parameters
            self.events.append(self._receive())

    @contextlib.contextmanager
    def page(self, url: str, dark: bool = False, width: int = 1400, height: int = 900) -> Iterator["Page"]:
        """Open a page in a tab, and close it at the end."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.open(url)
        yield page
        self.call("Target.closeTarget", targetId=target)
        self.wait_for("Target.detachedFromTarget", sessionId=session)

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(BrokenPipeError, EOFError):
            self.call("Browser.close")
        os.close(self._to_it)
        os.close(self._from_it)
        self._process.wait()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            part = os.read(self._from_it, 1 << 16)
            if not part:
                raise EOFError("the browser has ended")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, self.session, **parameters)

    def open(self, url: str) -> None:
        """Go to a page, and wait until it has loaded."""
        self.browser.events = [event for event in self.browser.events if event.get("method") != "Page.loadEventFired"]
        self.call("Page.navigate", url=url)
        self.browser.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of a script."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys, by the names that events have for them."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def faults(self) -> list[str]:
        """What went wrong in scripts, or was refused by the page's policy."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [json.dumps(event["params"]) for event in mine if event["method"] in kinds]

    def requested(self) -> list[str]:
        """The addresses that were asked for, without what the page holds itself."""
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        urls = [event["params"]["request"]["url"] for event in mine if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


def _above_nine(number: int) -> int:
    found = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return found
