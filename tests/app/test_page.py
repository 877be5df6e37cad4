r"""The page in a real browser, over its client, as a command and as a Space."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsers import Browser, browser_driver, free_port
from typer.testing import CliRunner

from diffusers_vidvae import VideoCompressionPipeline, demo_model
from diffusers_vidvae.cli.app import app, run


gradio = pytest.importorskip("gradio", reason="needs the extra `app`")
pytestmark = pytest.mark.slow

CLIP = "bear_odd_161x121.webm"
SECONDS = 300


@pytest.fixture(scope="module")
def models():
    from diffusers_vidvae.cli.models import Device
    from diffusers_vidvae.cli.web_page import load_page_models

    return load_page_models(None, Device.choose("cpu", None))


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    from diffusers_vidvae.app.serving import open_page
    from diffusers_vidvae.app.settings import Address, Limits

    with open_page(models, Limits(max_megabytes=0.2, max_frames=40, max_side=64), Address(port=free_port())) as url:
        yield url


@pytest.fixture(scope="module")
def driver_port() -> Iterator[int]:
    with browser_driver() as port:
        yield port


@pytest.fixture
def browser(driver_port, address, tmp_path) -> Iterator[Browser]:
    browser = Browser(driver_port, 1200, dark=False, downloads=tmp_path)
    try:
        browser.open(address)
        browser.wait_until("return document.querySelector('#video input[type=file]') !== null", SECONDS)
        yield browser
        assert browser.errors() == []
    finally:
        browser.close()


FIGURES = """
const figures = {};
for (const item of document.querySelectorAll("#figures .figures > div"))
  figures[item.querySelector("dt").innerText] = item.querySelector("dd").innerText;
return figures["PSNR"]?.includes("dB") && figures["bytes"] !== %s && figures;
"""
SHOWN_BUTTONS = """
const buttons = [...document.querySelectorAll("#video button")].filter((button) => button.offsetParent);
return buttons.map((button) => button.getAttribute("aria-label")).join();
"""
SET_SLIDER = """
const slider = document.querySelector("#%s input[type=range]");
slider.value = %d;
slider.dispatchEvent(new Event("input", {bubbles: true}));
slider.dispatchEvent(new Event("pointerup", {bubbles: true}));
"""


def upload(browser: Browser, path: Path) -> dict[str, str]:
    """Uploads a clip, and waits until all is known of it."""
    browser.type("#video input[type=file]", str(path))
    return browser.wait_until(FIGURES % '""', SECONDS)


def test_numbers_change_with_sliders_and_the_file_comes_back(browser, shared_media, tmp_path):
    first = upload(browser, shared_media / "clips" / CLIP)
    assert first["frames kept"] == "15 of 30"
    about = browser.run("return document.querySelector('#about').innerText")
    assert "30 frames of 85x64, scaled from 161x121" in about
    assert "15 of 30" in browser.run("return document.querySelector('#timeline svg').getAttribute('aria-label')")
    assert browser.run("return document.querySelector('#both video').src")
    shown = browser.run(SHOWN_BUTTONS)
    assert "Clear" in shown and "Trim" not in shown

    browser.run(SET_SLIDER % ("quality", 80))
    finer = browser.wait_until(FIGURES % f'"{first["bytes"]}"', SECONDS)
    assert number(finer["bytes"]) > number(first["bytes"]) and number(finer["PSNR"]) > number(first["PSNR"])
    browser.run(SET_SLIDER % ("rate", 10))
    fewer = browser.wait_until(FIGURES % f'"{finer["bytes"]}"', SECONDS)
    assert fewer["frames kept"] == "3 of 30" and number(fewer["bytes"]) < number(finer["bytes"])

    browser.run("document.querySelector('a:has(> #download), #download').click()")
    file = tmp_path / "bear_odd_161x121.fsv"
    wait_for_file(file)
    assert file.stat().st_size == number(fewer["bytes"])
    pipeline = VideoCompressionPipeline.from_pretrained(demo_model())
    pipeline.set_progress_bar_config(disable=True)
    assert np.concatenate(list(pipeline.decompress_frames(file))).shape == (30, 64, 85, 3)


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def wait_for_file(path: Path) -> None:
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path.name} was not downloaded, there are {[item.name for item in path.parent.iterdir()]}")


WRONG = [
    ("office_fast_pan_720p.mp4", "office_fast_pan_720p.mp4 has 0.317 MB, this page takes 0.2 MB."),
    ("text_named.mp4", "text_named.mp4"),
]


@pytest.mark.parametrize("name, message", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(browser, shared_media, name, message):
    browser.type("#video input[type=file]", str(shared_media / ("bad" if "text" in name else "clips") / name))
    # Gradio may say before, for itself, that a browser cannot play the file.
    script = f"const told = document.querySelector('.toast-wrap')?.innerText; return told?.includes('{name}') && told"
    told = browser.wait_until(script, SECONDS)
    assert message in told and "Traceback" not in told and "/tmp" not in told


TAB = """
const tabs = [...document.querySelectorAll("button[role=tab]")];
tabs.find((tab) => tab.innerText === "Generate").click();
"""
GENERATED = "return document.querySelector('#generated video')?.src"


def test_generates_and_stops(browser):
    browser.run(TAB)
    browser.wait_until("return document.querySelector('#go')?.offsetParent", SECONDS)
    browser.run("document.querySelector('#go').click()")
    browser.wait_until("return document.querySelector('#generated').innerText.includes('%')", SECONDS)
    browser.run("document.querySelector('#stop-generating').click()")
    browser.wait_until("return !document.querySelector('#generated').innerText.includes('%')", SECONDS)
    assert not browser.run(GENERATED)
    browser.run("document.querySelector('#go').click()")
    assert browser.wait_until(GENERATED, SECONDS)
    assert "Seed 0." in browser.wait_until("return document.querySelector('#about-generated').innerText", SECONDS)


# Without a browser


def test_its_client_compresses_and_is_refused(address, shared_media):
    client_library = pytest.importorskip("gradio_client")
    client = client_library.Client(address, verbose=False)
    about = client.predict(client_library.handle_file(str(shared_media / "clips" / CLIP)), 64, api_name="/open_clip")
    assert "30 frames of 85x64" in about
    figures, timeline, file, both = client.predict(20, 50, "systematic", api_name="/show_choice")
    assert "6 of 30" in figures and "6 of 30 frames are kept" in timeline
    assert Path(file).name == "bear_odd_161x121.fsv" and Path(both).suffix == ".mp4"
    with pytest.raises(Exception, match=r"has 0.317 MB, this page takes 0.2 MB"):
        large = client_library.handle_file(str(shared_media / "clips" / "office_fast_pan_720p.mp4"))
        client.predict(large, 64, api_name="/open_clip")


def serve(command: list[str], folder: Path, port: int) -> subprocess.Popen:
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for_page(process: subprocess.Popen, port: int) -> str:
    for _ in range(SECONDS):
        if process.poll() is not None:
            raise AssertionError(process.stdout.read().decode()[-3000:])
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read().decode()
        except OSError:
            time.sleep(1)
    raise AssertionError("The page never came.")


def test_the_command_cleans_up_when_it_is_ended(tmp_path):
    port = free_port()
    process = serve(["-m", "diffusers_vidvae", "app"], tmp_path, port)
    try:
        assert "vidvae" in wait_for_page(process, port)
        assert list((tmp_path / "tmp").glob("vidvae-app-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert not list((tmp_path / "tmp").glob("vidvae-app-*"))


def test_a_space_runs_from_its_folder_alone(tmp_path):
    space = tmp_path / "space"
    arguments = ["app", "--export-space", str(space), "--model", str(demo_model()), "--max-frames", "20"]
    assert run(arguments) == 0
    front = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front and f"sdk_version: {gradio.__version__}" in front
    assert any(line.startswith("torch") for line in (space / "requirements.txt").read_text().splitlines())
    port = free_port()
    process = serve(["space/app.py", "--host", "127.0.0.1"], tmp_path, port)
    try:
        page = wait_for_page(process, port)
        assert "20 frames" in page and f"with {Path(demo_model()).name}." in page
    finally:
        process.kill()
        process.wait()
    assert not (space / "diffusers_vidvae" / "pipelines").is_symlink()


def test_a_space_needs_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["app", "--export-space", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    result = CliRunner().invoke(app, ["app", "--export-space", str(tmp_path)])
    assert "is not empty." in str(result.exception)
