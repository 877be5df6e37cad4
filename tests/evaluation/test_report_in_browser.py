"""The report in a real browser: opened, played, scrubbed, sorted; on a desk and on a phone, bright and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import Browser, browser_driver

from diffusers_vidvae import FrameSelectVAE, demo_model
from diffusers_vidvae.evaluation import EvaluationSettings, evaluate_models, write_report


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver_port() -> Iterator[int]:
    with browser_driver() as port:
        yield port


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    vae = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae")
    settings = EvaluationSettings(
        rates=(0.25, 1.0),
        modes=("systematic",),
        quantizations=("bf16",),
        qualities=(20.0,),
        top_k=(),
        codecs=("x264",),
        max_frames=16,
    )
    return write_report(evaluate_models({"demo": vae}, [], tmp_path_factory.mktemp("report"), settings))


@pytest.fixture(params=[(1200, False), (420, True)], ids=["desk, bright", "phone, dark"])
def browser(request, driver_port, report) -> Iterator[Browser]:
    width, dark = request.param
    browser = Browser(driver_port, width, dark)
    try:
        browser.open(report.as_uri())
        yield browser
        assert browser.errors() == []
    finally:
        browser.close()


PIXELS = """
const canvas = document.querySelector(".player canvas");
return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).join();
"""


def test_one_control_scrubs_and_plays_every_method(browser):
    browser.wait_until("return document.querySelector('.player output').value.startsWith('1 /')")
    first = browser.run(PIXELS)
    browser.run("""
        const slider = document.querySelector(".player input");
        slider.value = 9;
        slider.dispatchEvent(new Event("input"));
    """)
    assert browser.run("return document.querySelector('.player output').value") == "10 / 16"
    assert browser.run(PIXELS) != first
    kept = browser.run("""
        const canvas = document.querySelectorAll(".player canvas")[1];
        return [canvas.dataset.kept.split(" ").includes("9"), canvas.classList.contains("is-kept")];
    """)
    assert kept[0] == kept[1]
    assert browser.run("return document.querySelectorAll('.player')[0].querySelectorAll('canvas').length") == 7
    browser.run("document.querySelector('.player .play').click()")
    browser.wait_until("return document.querySelector('.player input').value > 10")
    browser.run("document.querySelector('.player .play').click()")
    assert browser.run("return document.querySelector('.player .play').getAttribute('aria-label')") == "play"


def test_tables_sort_both_ways(browser):
    script = """
        const table = document.getElementById("points");
        const heading = [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith("PSNR, dB"));
        heading.firstElementChild.click();
        const values = [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].dataset.value);
        return [heading.getAttribute("aria-sort"), values.filter(Boolean).map(Number)];
    """
    order, values = browser.run(script)
    assert order == "ascending" and values == sorted(values) and len(values) > 2
    order, values = browser.run(script)
    assert order == "descending" and values == sorted(values, reverse=True)


def test_charts_change_and_nothing_sticks_out(browser):
    shown = "return [...document.querySelectorAll('[id^=chart-]')].filter((f) => !f.hidden).map((f) => f.id)"
    assert browser.run(shown) == ["chart-psnr"]
    browser.run("document.querySelector('[data-chart=ssim]').click()")
    assert browser.run(shown) == ["chart-ssim"]
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_colours_follow_the_scheme(browser):
    dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 20, 23)" if dark else "rgb(255, 255, 255)")
    assert dark == (browser.run("return window.innerWidth") < 600)
