r"""What the page answers to what its visitors do."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from diffusers_vidvae.assets import demo_film
from diffusers_vidvae.codec import CompressedVideo
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline
from diffusers_vidvae.pipelines.pipeline_video_compression import VideoCompressionPipeline

from .compressing import Choice, UploadedClip, bring_back, code, open_upload
from .generating import Wish, generate
from .sessions import Session, Sessions, Stopped
from .settings import Limits
from .timeline import draw_figures, draw_timeline


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PageModels:
    r"""The models that the page runs.

    Args:
        name: What they are called.
        compression: Compresses clips.
        generation: Generates them; None for an autoencoder alone.
    """

    name: str
    compression: VideoCompressionPipeline
    generation: GapDiTPipeline | None = None


class Page:
    r"""Answers to events; every method is one, and takes and returns what Gradio's components hold.

    Args:
        models: The models.
        limits: What visitors may ask for.
        folder: Where their files lie.
    """

    def __init__(self, models: PageModels, limits: Limits, folder: Path) -> None:
        self.models, self.limits, self.folder = models, limits, folder
        self.sessions = Sessions(folder)

    # Compress

    def take_demo_clip(self, request: gr.Request) -> str:
        path = self._session(request).new_folder("demo") / "demo.mp4"
        return str(shutil.copyfile(demo_film(), path))

    def announce_clip(self, video: str | None, side: int, request: gr.Request) -> None:
        session = self._session(request)
        session.want("clip", (video, side))
        # What is still made of the clip before it is of no use.
        session.stop("choice")

    def announce_choice(self, rate: float, quality: float, mode: str, request: gr.Request) -> None:
        self._session(request).want("choice", Choice(rate / 100, quality, mode))

    def open_clip(
        self,
        video: str | None,
        side: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        r"""Reads and encodes a clip; says what it is."""
        session = self._session(request)
        session.upload = None
        if video is None:
            return ""
        session.uploads.add(Path(video))
        advance = session.begin("clip", (video, side), lambda share: progress(share, desc="Encoding"))
        with self._telling():
            try:
                upload = open_upload(Path(video), side, self.models.compression, self.limits, advance)
            except Stopped:
                return "Stopped."
        session.upload = upload
        return describe_upload(upload)

    def show_choice(
        self,
        rate: float,
        quality: float,
        mode: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        r"""Codes the clip, shows what that costs, and then what comes back of it.

        Yields:
            Figures and timeline as HTML, the `.fsv` file to download, and the video of both.
        """
        session, choice = self._session(request), Choice(rate / 100, quality, mode)
        upload = session.upload
        if upload is None:
            yield "", "", None, None
            return
        advance = session.begin("choice", choice, lambda share: progress(share, desc="Decoding"))
        with self._telling():
            compressed = code(upload, choice)
            folder = session.new_folder("choice")
            file = compressed.save(folder / f"{Path(upload.name).stem}.fsv")
            probs = upload.encoded.keep_probs
            timeline = draw_timeline(None if probs is None else probs.tolist(), compressed.keep_mask.tolist())
            yield draw_figures(describe_cost(upload, compressed, {})), timeline, str(file), gr.skip()
            try:
                figures = bring_back(upload, compressed, folder / "both.mp4", advance)
            except Stopped:
                return
            known = draw_figures(describe_cost(upload, compressed, figures))
            yield known, timeline, str(file), str(folder / "both.mp4")

    def allow_download(self, request: gr.Request) -> dict[str, Any]:
        return gr.update(interactive=self._session(request).upload is not None)

    # Generate

    def generate(
        self,
        prompt: str,
        seed: float,
        num_frames: int,
        fps: int,
        steps: int,
        guidance_scale: float,
        first: str | None,
        last: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str | None, str]:
        r"""Generates a clip; says which of its frames are not filled in."""
        session = self._session(request)
        assert self.models.generation is not None
        session.uploads |= {Path(picture) for picture in (first, last) if picture is not None}
        with self._telling():
            wish = Wish(prompt, int(seed), num_frames, fps, steps, guidance_scale, first, last)
            advance = session.begin("wish", wish, lambda share: progress(share, desc="Generating"))
            video = session.new_folder("wish") / "generated.mp4"
            try:
                positions = generate(self.models.generation, wish, video, advance)
            except Stopped:
                return None, "Stopped."
        frames = ", ".join(map(str, positions))
        return str(video), f"Seed {wish.seed}. Frames {frames} were generated, the others filled in between."

    # Sessions

    def stop(self, request: gr.Request) -> None:
        self._session(request).stop()

    def leave(self, request: gr.Request) -> None:
        self.sessions.close(str(request.session_hash))

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.of(str(request.session_hash))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns errors into one sentence for the visitor; where files lie on this machine is nobody's business."""
        try:
            yield
        except (ValueError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = re.sub(rf"{re.escape(str(self.folder))}/(\w+/)?", "", first)
        except Exception as error:
            logger.exception("A visitor's job failed.")
            message = (
                f"This failed for a reason that nobody foresaw ({type(error).__name__}); the server's log has it."
            )
        else:
            return
        raise gr.Error(escape(message, quote=False), print_exception=False)


def describe_upload(upload: UploadedClip) -> str:
    r"""A clip in words."""
    sizes = ["x".join(map(str, size)) for size in (upload.size, upload.file_size)]
    scaled = "" if sizes[0] == sizes[1] else f", scaled from {sizes[1]}"
    frames = "1 frame" if len(upload.frames) == 1 else f"{len(upload.frames)} frames"
    clip = f"{frames} of {sizes[0]}{scaled}, {float(upload.fps):.4g} per second"
    return f"{upload.name} ({upload.file_bytes:,} bytes): {clip}."


def describe_cost(upload: UploadedClip, compressed: CompressedVideo, figures: dict[str, Any]) -> dict[str, Any]:
    r"""What a coded clip costs and, if it is known, how near it comes; None for what is not."""
    count = len(upload.frames)
    described: dict[str, Any] = {
        "bytes": f"{compressed.num_bytes:,}",
        "bits per pixel": f"{compressed.bits_per_pixel:.3f}",
        "kbit/s": f"{compressed.kbps:.1f}",
        "frames kept": f"{compressed.kept_frames} of {count}",
    }
    names = {"psnr": "PSNR", "psnr_kept": "kept", "psnr_dropped": "filled in", "psnr_worst": "worst frame"}
    for key, name in names.items():
        if not figures:
            described[name] = None
        elif figures[key] is not None:
            described[name] = f"{figures[key]:.2f} dB"
    return described
