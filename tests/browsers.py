r"""A real browser for the tests: a headless Chromium, told what to do by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


# How the protocol calls the key of an element's name.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A headless Chromium whose window has a width and a colour scheme."""

    def __init__(self, port: int, width: int, dark: bool, downloads: Path | None = None):
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},900",
        ]
        arguments += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        options: dict[str, Any] = {"args": arguments}
        if downloads is not None:
            options["prefs"] = {"download.default_directory": str(downloads)}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = self.send("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def send(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=180) as answer:
            return json.loads(answer.read())["value"]

    def open(self, address: str) -> None:
        self.send("POST", f"/session/{self.session}/url", {"url": address})

    def run(self, script: str) -> Any:
        return self.send("POST", f"/session/{self.session}/execute/sync", {"script": script, "args": []})

    def type(self, selector: str, text: str) -> None:
        """Types into an element, or chooses a file for one, whether it is visible or not."""
        found = self.send("POST", f"/session/{self.session}/element", {"using": "css selector", "value": selector})
        self.send("POST", f"/session/{self.session}/element/{found[ELEMENT]}/value", {"text": text})

    def wait_until(self, script: str, seconds: float = 10) -> Any:
        """Runs a script until what it returns is true, and returns that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := self.run(script):
                return result
            time.sleep(0.1)
        raise AssertionError(f"never came true: {script}")

    def errors(self) -> list[str]:
        entries = self.send("POST", f"/session/{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def take_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("GET", f"/session/{self.session}/screenshot")))

    def close(self) -> None:
        self.send("DELETE", f"/session/{self.session}")


@contextmanager
def browser_driver() -> Iterator[int]:
    """Port of a driver of browsers; skips the test where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
