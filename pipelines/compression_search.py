r"""Compression to a size or a fidelity: latents are coded again and again, the model runs once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusers_vidvae.autoencoders.latents_basis import axes_cycle
from diffusers_vidvae.codec import (
    CodedFsvReader,
    CodedFsvWriter,
    CompressedVideo,
    FsvError,
    FsvHeader,
    LatentsBasis,
    LatentWindow,
)
from diffusers_vidvae.files import write_file
from diffusers_vidvae.media.clip import Clip, ClipFrame

from .any_latents import EncodedWindow
from .compression_budget import Budget, first_that, operating_points


if TYPE_CHECKING:
    from .pipeline_video_compression import VideoCompressionPipeline


class TargetSearch:
    r"""Codes the latents of a clip again and again, until they cost what they may.

    Args:
        pipeline: The pipeline.
        clip: The clip.
        header: Its header, without step.
        encoded: All its latents.
        budget: The target.
        selection: Arguments of `select_stream`.
        chooses_rate: Whether frames may be dropped to meet the target.
        source: The clip's frames `(H, W, C)` in eight bits as they were read, for a PSNR.
    """

    def __init__(
        self,
        pipeline: VideoCompressionPipeline,
        clip: Clip,
        header: FsvHeader,
        encoded: Iterator[EncodedWindow],
        budget: Budget,
        selection: dict[str, Any],
        chooses_rate: bool,
        source: list[np.ndarray],
    ) -> None:
        self.pipeline, self.clip, self.header, self.budget = pipeline, clip, header, budget
        self.selection = selection
        by_psnr = budget.target_psnr is not None
        self.points = operating_points(fixed_rate=by_psnr or not chooses_rate or not pipeline.selects_frames)
        basis = pipeline.latents_basis
        if by_psnr and basis is None:
            raise ValueError("`target_psnr` needs a model with a latents basis; `vidvae stats --update` measures one.")
        self.encoded = [window.cpu() for window in encoded]
        self.basis = basis or LatentsBasis.of_latents(
            self.encoded[0].latents[0].double().numpy(), axes_cycle(pipeline.vae)
        )
        self.model_error = self._model_error(source) if by_psnr else 0.0

    def run(self, output: str | Path | None, overwrite: bool) -> CompressedVideo:
        """The best quality that fits a size, or the smallest file that reaches a PSNR.

        Raises:
            ValueError: There is none; the message names the nearest.
        """
        budget, num_pixels = self.budget, self.header.height * self.header.width * self._num_frames
        if budget.target_psnr is not None:
            psnr = budget.target_psnr
            coded = first_that(self.points[::-1], self._code, lambda coded: self._psnr(coded) >= psnr)
            is_met, nearest = self._psnr(coded) >= psnr, f"{self._psnr(coded):.2f} dB"
        else:
            most = budget.target_size or int((budget.target_bpp or 0) * num_pixels / 8)
            coded = first_that(self.points, self._code, lambda coded: len(coded.data) <= most)
            is_met, nearest = len(coded.data) <= most, f"{len(coded.data)} bytes"
            if budget.target_bpp is not None:
                nearest = f"{8 * len(coded.data) / num_pixels:.4g} bits per pixel"
        if not is_met:
            raise ValueError(f"{self.clip.name}: the target cannot be met; the nearest that can is {nearest}.")
        if output is not None:
            write_file(output, coded.data, overwrite=overwrite, error=FsvError)
        reader = CodedFsvReader(coded.data if output is None else output)
        reader.basis = self.basis
        return CompressedVideo(reader.header, reader, None if output is None else Path(output))

    @property
    def _num_frames(self) -> int:
        return sum(window.num_frames for window in self.encoded)

    def _windows(self, rate: float | None = None) -> Iterator[LatentWindow]:
        selection = self.selection if rate is None else {**self.selection, "rate": rate}
        if selection["generator"] is not None:
            # Every try draws the same frames.
            generator = torch.Generator(selection["generator"].device)
            selection = {**selection, "generator": generator.manual_seed(selection["generator"].initial_seed())}
        return self.pipeline._select_windows(self.clip, self.encoded, selection)

    def _code(self, rate: float | None, quality: float) -> CodedFsvWriter:
        header = self.pipeline._with_basis(self.header, self.basis, quality)
        with CodedFsvWriter(None, header, self.basis) as writer:
            for window in self._windows(rate):
                writer.write_window(window)
        return writer

    def _psnr(self, coded: CodedFsvWriter) -> float:
        """In the axes of the basis, errors of latents are as large as those of the pixels that they make."""
        num_values = 3 * self.header.height * self.header.width * self._num_frames
        return float(10 * np.log10(4 / (self.model_error + coded.squared_error / num_values)))

    def _model_error(self, source: list[np.ndarray]) -> float:
        """Mean squared error of the frames as the model decodes them from exact latents."""
        header = replace(self.header, quantization="fp32", num_frames=self._num_frames)
        decoded = self.pipeline._decode_windows(CompressedVideo(header, list(self._windows())))
        total, start = 0.0, 0
        for frames in decoded:
            images = np.stack(source[start : start + frames.shape[2]])
            pixels = torch.from_numpy(images).permute(3, 0, 1, 2).float() / 127.5 - 1
            total += float((frames[0].float().cpu().clamp(-1, 1) - pixels).square().sum())
            start += frames.shape[2]
        return total / (3 * header.height * header.width * start)


def remembering(clip: Clip, source: list[np.ndarray]) -> Clip:
    """The clip, which keeps a copy of every frame in eight bits as it is read."""

    def read() -> Iterator[ClipFrame]:
        for frame in clip:
            source.append(frame.to_image())
            yield frame

    return Clip(read, clip.height, clip.width, clip.fps, clip.num_frames, clip.name, count=clip.count_frames)
