r"""The page itself: what is on it, and what it says when something is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .generating import DEFAULT_STEPS, has_text, longest_clip
from .page import Page, PageModels
from .settings import Limits


# One job of the models at a time, whoever asks for it.
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "multiple",
}
_MOST_WAITING = 20
_CACHE_SECONDS = 3600

MODES = [("by the model", "systematic"), ("the most probable", "top_k"), ("evenly", "uniform")]
EXAMPLE_PROMPT = "a large red disc moves fast to the left on a blue background"

# Gradio cuts videos by a program that browsers load from elsewhere; the page stays on its machine.
CSS = """
#video button[aria-label^="Trim"], #video button[aria-label^="Reset"] { display: none; }
.timeline { display: block; width: 100%; height: 80px; }
.timeline .filled rect { fill: var(--neutral-400); }
.timeline .kept rect { fill: #e67e00; }
.caption { color: var(--body-text-color); opacity: 0.7; font-size: 0.8rem; margin: 4px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px 16px; margin: 0; }
.figures dt { color: var(--body-text-color); opacity: 0.7; font-size: 0.8rem; }
.figures dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
"""


def build_page(models: PageModels, limits: Limits, folder: Path) -> gr.Blocks:
    r"""The page, not yet served.

    Args:
        models: What it runs.
        limits: What visitors may ask for.
        folder: Where their files lie; it must exist, and be where Gradio keeps its own.
    """
    page = Page(models, limits, folder)
    with gr.Blocks(title="vidvae", analytics_enabled=False, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS)) as blocks:
        gr.Markdown(f"# vidvae\nVideo as few numbers, and back, with {models.name}.")
        with gr.Tab("Compress"):
            _add_compression(page)
        if models.generation is not None:
            with gr.Tab("Generate"):
                _add_generation(page, longest_clip(models.generation, limits), has_text(models.generation))
        blocks.unload(page.leave)
    return blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)


def _add_compression(page: Page) -> None:
    limits = page.limits
    selects = page.models.compression.selects_frames
    with gr.Row():
        with gr.Column(scale=2):
            video = gr.Video(
                label=f"Video, at most {limits.max_megabytes:g} MB and {limits.max_frames} frames",
                sources=["upload"],
                height=260,
                elem_id="video",
            )
            demo = gr.Button("Take a short clip to try it", size="sm", elem_id="demo")
            side = gr.Radio(limits.sides, value=min(128, limits.max_side), label="Shorter side, in pixels")
            rate = gr.Slider(1, 100, 50, step=1, label="Frames kept, %", visible=selects, elem_id="rate")
            mode = gr.Radio(MODES, value="systematic", label="Frames chosen", visible=selects)
            quality = gr.Slider(0, 100, 50, step=1, label="Quality", elem_id="quality")
            stop = gr.Button("Stop", size="sm", elem_id="stop-compressing")
        with gr.Column(scale=3):
            about = gr.Markdown(elem_id="about")
            figures = gr.HTML(elem_id="figures")
            timeline = gr.HTML(elem_id="timeline")
            both = gr.Video(
                label="Original and what comes back; kept frames have an orange bar",
                interactive=False,
                autoplay=True,
                loop=True,
                elem_id="both",
            )
            download = gr.DownloadButton("Download .fsv", interactive=False, elem_id="download")
    choice = [rate, quality, mode]
    shown: dict[str, Any] = {"inputs": choice, "outputs": [figures, timeline, download, both], **_MODEL}
    clip_events = [video.change, side.input]
    gr.on(clip_events, page.announce_clip, [video, side], None, **_QUIET)
    opening = gr.on(clip_events, page.open_clip, [video, side], about, api_name="open_clip", **_MODEL)
    showing = opening.success(page.show_choice, api_name="show_first", api_visibility="private", **shown)
    opening.success(page.allow_download, None, download, **_QUIET)
    choice_events = [rate.change, quality.change, mode.input]
    gr.on(choice_events, page.announce_choice, choice, None, **_QUIET)
    changing = gr.on(choice_events, page.show_choice, trigger_mode="always_last", api_name="show_choice", **shown)
    demo.click(page.take_demo_clip, None, video, api_visibility="private")
    stop.click(page.stop, None, None, cancels=[opening, showing, changing], **_QUIET)


def _add_generation(page: Page, longest: int, has_prompt: bool) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(EXAMPLE_PROMPT, label="Prompt", lines=2, visible=has_prompt, elem_id="prompt")
            with gr.Row():
                first = gr.Image(label="First picture, if any", type="filepath", sources=["upload"], height=140)
                last = gr.Image(label="Last picture, if any", type="filepath", sources=["upload"], height=140)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
                length = gr.Slider(2, longest, longest, step=1, label="Length, frames")
            with gr.Accordion("More", open=False):
                fps = gr.Slider(1, 30, 8, step=1, label="Frames per second")
                steps = gr.Slider(1, 100, DEFAULT_STEPS, step=1, label="Steps", elem_id="steps")
                guidance = gr.Slider(1, 10, 4, step=0.5, label="Guidance by the prompt", visible=has_prompt)
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="go")
                stop = gr.Button("Stop", elem_id="stop-generating")
        with gr.Column(scale=3):
            video = gr.Video(label="Generated clip", interactive=False, autoplay=True, loop=True, elem_id="generated")
            about = gr.Markdown(elem_id="about-generated")
    wish = [prompt, seed, length, fps, steps, guidance, first, last]
    going = go.click(page.generate, wish, [video, about], api_name="generate", **_MODEL)
    stop.click(page.stop, None, None, cancels=[going], **_QUIET)
