r"""Images and videos through any video autoencoder and back, at their own size and length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import IdentityDistribution
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from diffusers_vidvae.autoencoders import (
    AnyVideoAutoencoder,
    Posterior,
    VideoAutoencoder,
    VideoGeometry,
    open_autoencoder,
)
from diffusers_vidvae.autoencoders.memory import MemoryPlan, less_memory, plan_memory
from diffusers_vidvae.autoencoders.streams import EncodedPiece, LatentPiece, open_stream, rechunk
from diffusers_vidvae.media.clips import ClipInput, open_clips, open_images, stack_clips
from diffusers_vidvae.media.layouts import Layout, ValueRange
from diffusers_vidvae.metrics import ClipMetrics, PerceptualMetric, evaluate_clip
from diffusers_vidvae.models.frame_selection import SELECTION_MODES
from diffusers_vidvae.models.tiling import is_out_of_memory

from .callbacks import check_callback_inputs
from .compilation import CompileMixin
from .pipeline_output import ReconstructedFile, VideoReconstructionPipelineOutput


if TYPE_CHECKING:
    from .reconstruction_files import SourceFile


logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

EXAMPLE_DOC_STRING = """
    Examples:
        ```python
        >>> from diffusers import AutoencoderKLWan
        >>> from diffusers_vidvae import VideoReconstructionPipeline

        >>> vae = AutoencoderKLWan.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", subfolder="vae")
        >>> pipe = VideoReconstructionPipeline(vae)
        >>> output = pipe("clip.mp4", compute_metrics=True)  # any number of frames, any size
        >>> print(output.metrics[0]["psnr"], len(output.frames[0]) == len(output.original[0]))
        ```
"""


class ReconstructedPiece(NamedTuple):
    """Consecutive frames of a clip, or of a batch of clips.

    Args:
        original: Pixels `(batch, 3, t, height, width)` in [-1, 1], as they were encoded.
        sample: Reconstruction of the same shape, float32, about [-1, 1]; None where only latents are wanted.
        latents: Latents of these frames, or those that were decoded for them.
        keep_mask: Frames that were decoded from their latents, bool `(batch, t)`; None if all were.
    """

    original: torch.Tensor
    sample: torch.Tensor | None
    latents: torch.Tensor | None
    keep_mask: torch.Tensor | None = None


class VideoReconstructionPipeline(DiffusionPipeline, CompileMixin):
    r"""Sends images and videos through an autoencoder and returns what comes back, with the size of what went in.

    It works with every image and video autoencoder of diffusers and with those of this package. Each takes sizes of
    its own, such as `4k + 1` frames and multiples of 8 pixels: clips are padded to the next of these by repeating the
    last frame, row and column, and what comes back is cropped. `geometry` tells which sizes those are; autoencoders of
    unknown classes are probed with small clips at the first call. `AutoencoderKLAllegro` and, for frames of another
    size than its own, `FrameSelectVAE` run in tiles, also where tiling is not enabled.

    Clips run whole by default. With `chunk_frames` they run in chunks of that many frames, in less memory. The chunks
    of `AutoencoderKL3D` give the result of the whole clip, but for float rounding; other autoencoders treat each chunk
    as a clip of its own, which changes the result and may show at the seams. `FrameSelectVAE` always runs in windows
    of its `clip_num_frames`.

    Args:
        vae: The autoencoder.
    """

    model_cpu_offload_seq = "vae"
    _callback_tensor_inputs = ["latents", "keep_mask"]

    def __init__(self, vae: AnyVideoAutoencoder):
        super().__init__()
        self.register_modules(vae=vae)
        self.video_processor = VideoProcessor(do_resize=False)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def geometry(self) -> VideoGeometry:
        r"""Numbers of frames, heights and widths that the autoencoder takes; all others are padded."""
        return open_autoencoder(self.vae).geometry

    def check_inputs(self, video: Any, image: Any, output_type: str, compute_metrics: bool) -> None:
        if (video is None) == (image is None):
            raise ValueError(f"Give `video` or `image`, {'not both' if video is not None else 'got neither'}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if compute_metrics and output_type == "latent":
            raise ValueError("`compute_metrics` needs pixels, which `output_type` 'latent' does not give.")

    def _prepare_run(
        self,
        chunk_frames: int | None,
        sample_posterior: bool,
        mode: str | None,
        num_frames: int | None,
        rate: float | None,
        threshold: float,
        decode_timestep: float | None,
        decode_noise_scale: float | None,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[..., dict] | None = None,
        callback_tensor_inputs: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Checks the arguments that all runs share, and names them as `_reconstruct` does."""
        self._check_selection(mode, num_frames, rate)
        self._check_chunk_frames(chunk_frames)
        if not self.vae.config.get("timestep_conditioning") and (decode_timestep or decode_noise_scale):
            raise ValueError(
                f"`decode_timestep` and `decode_noise_scale` are for decoders that are conditioned on a timestep,"
                f" which that of {type(self.vae).__name__} is not."
            )
        check_callback_inputs(callback_tensor_inputs, self._callback_tensor_inputs)
        decode_timestep = decode_timestep or 0.0
        selection = {"mode": mode, "num_frames": num_frames, "rate": rate, "threshold": threshold}
        return {
            "chunk_frames": chunk_frames,
            "sample_posterior": sample_posterior,
            "selection": None if mode is None else selection,
            "decode_timestep": decode_timestep,
            "decode_noise_scale": decode_timestep if decode_noise_scale is None else decode_noise_scale,
            "generator": generator,
            "callback": callback,
            "callback_tensor_inputs": callback_tensor_inputs,
        }

    def _check_selection(self, mode: str | None, num_frames: int | None, rate: float | None) -> None:
        if mode is None:
            if num_frames is not None or rate is not None:
                raise ValueError(f"`num_frames` and `rate` need a `mode`, one of {SELECTION_MODES}.")
            return
        if not open_autoencoder(self.vae).is_a("FrameSelectVAE"):
            raise ValueError(f"`mode` is for FrameSelectVAE, {type(self.vae).__name__} does not select frames.")
        if mode not in SELECTION_MODES:
            raise ValueError(f"`mode` must be None or one of {SELECTION_MODES}, got {mode!r}.")

    def _check_chunk_frames(self, chunk_frames: int | None) -> None:
        if chunk_frames is None:
            return
        model = open_autoencoder(self.vae)
        if model.is_a("FrameSelectVAE"):
            raise ValueError(
                f"FrameSelectVAE runs in windows of its own `clip_num_frames`, {self.vae.config.clip_num_frames};"
                f" leave out `chunk_frames`, got {chunk_frames}."
            )
        ratio = self.vae.temporal_compression_ratio if model.is_a("AutoencoderKL3D") else 1
        if chunk_frames < 1 or not model.geometry.accepts_frames(chunk_frames) or chunk_frames % ratio:
            counts = [ratio * i for i in range(1, 6)] if ratio > 1 else model.geometry.first_frame_counts()
            least = max(chunk_frames, 1)
            following = -(-least // ratio) * ratio if ratio > 1 else model.geometry.padded_frames(least)
            raise ValueError(
                f"`chunk_frames` must be a number of frames that {model.name} takes at once,"
                f" {', '.join(map(str, counts))}, ..., got {chunk_frames}; the next is {following}."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        video: ClipInput | None = None,
        image: ClipInput | None = None,
        fps: float | Fraction | None = None,
        chunk_frames: int | None = None,
        sample_posterior: bool = False,
        mode: str | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        compute_metrics: bool = False,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        layout: Layout | None = None,
        value_range: ValueRange | None = None,
    ) -> VideoReconstructionPipelineOutput | tuple:
        r"""Reconstructs a clip or an image, or a batch of them that have one size.

        Args:
            video: A path, URL, bytes or folder of pictures, PIL images, arrays, tensors, or an iterator of frames: one
                clip or a batch, see `diffusers_vidvae.media.open_clips`.
            image: In place of a video: a path, a URL, a PIL image, an `(H, W, C)` array, or a batch: a
                `(B, C, H, W)` tensor in [-1, 1] or a list of images. It is a video of one frame.
            fps: Frame rate. Files are resampled to it by their timestamps; for frames in memory it is their rate.
            chunk_frames: Frames to run at a time, a number that the autoencoder takes; by default the whole clip.
            sample_posterior: Whether to draw the latents from the posterior instead of taking its mode.
            mode: For `FrameSelectVAE`: how frames are chosen, see `FrameSelectVAE.select_frames`; the others are
                decoded from their neighbours. By default all frames are kept.
            num_frames: Frames to keep of each clip.
            rate: Share of the frames to keep, in (0, 1].
            threshold: Probability above which mode `"threshold"` keeps a frame.
            decode_timestep: Noise level told to decoders that are conditioned on one (LTX-Video), in [0, 1]; 0 by
                default.
            decode_noise_scale: Share of noise mixed into the latents for those decoders; by default
                `decode_timestep`.
            generator: Source of the randomness of all of these; a list has one for every clip.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"latent"` for the latents, which are not normalised.
            return_dict: Whether to return a `VideoReconstructionPipelineOutput` instead of a tuple.
            compute_metrics: Whether to measure every reconstruction, see `diffusers_vidvae.metrics`.
            callback_on_step_end: Called between encoding and decoding of every chunk with the pipeline, the index of
                the chunk, the index of its first frame, and a dictionary of tensors, which may be returned changed. If
                it sets `pipe._interrupt = True`, the chunk is the last one, and the output ends with it.
            callback_on_step_end_tensor_inputs: Which of `_callback_tensor_inputs` it is given.
            layout: Order of the dimensions of an array or tensor where its shape fits two, such as `"BTCHW"`.
            value_range: What black and white are in an array or tensor of floats, if not what `open_clips` says.

        Examples:

        Raises:
            ValueError: An argument or a clip is not as described, the clips of a batch differ in size, or the
                autoencoder does not return clips of the size that it was given.
        """
        self.check_inputs(video, image, output_type, compute_metrics)
        run = self._prepare_run(
            chunk_frames,
            sample_posterior,
            mode,
            num_frames,
            rate,
            threshold,
            decode_timestep,
            decode_noise_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        if video is not None:
            opened = open_clips(video, fps, layout=layout, value_range=value_range)
        else:
            opened = open_images(image, value_range=value_range)
        clips, clip_fps = stack_clips([clip.read() for clip in opened]), opened[0].fps
        pieces = []
        with self.progress_bar(total=clips.shape[2]) as progress_bar:
            for piece in self._reconstruct(
                [clips], total_frames=clips.shape[2], latents_only=output_type == "latent", **run
            ):
                pieces.append(piece)
                progress_bar.update(piece.original.shape[2])
        self.maybe_free_model_hooks()

        keep_mask = _join(pieces, "keep_mask", dim=1) if mode is not None else None
        metrics = original = None
        if output_type == "latent":
            frames = _join(pieces, "latents", dim=2)
        else:
            sample, clips = _join(pieces, "sample", dim=2), _join(pieces, "original", dim=2)
            if compute_metrics:
                boundaries = list(accumulate(piece.original.shape[2] for piece in pieces))[:-1]
                metrics = measure_clips(clips, sample, keep_mask, boundaries)
            frames, original = (
                self.video_processor.postprocess_video(pixels, output_type) for pixels in (sample, clips)
            )
        if not return_dict:
            return frames, original, metrics, keep_mask, clip_fps
        return VideoReconstructionPipelineOutput(
            frames=frames, original=original, metrics=metrics, keep_mask=keep_mask, fps=clip_fps
        )

    # Streams and files

    def reconstruct_frames(
        self,
        video: str | PathLike[str],
        fps: float | Fraction | None = None,
        chunk_frames: int | None = None,
        sample_posterior: bool = False,
        mode: str | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[ReconstructedPiece]:
        r"""Reconstructs an image or video file at its own size, piece by piece, as memory allows.

        Args:
            video: The file.
            fps: Rate that a video is resampled to by its timestamps.
            chunk_frames: As in `__call__`, like the arguments that follow.
            sample_posterior: Whether to draw the latents.
            mode: Frame selection.
            rate: Share of the frames to keep.
            threshold: For mode `"threshold"`.
            decode_timestep: For decoders conditioned on one.
            decode_noise_scale: For those decoders.
            generator: Source of randomness.

        Yields:
            Pieces with the original and its reconstruction.

        Raises:
            ValueError: An argument is not as described.
            MediaError: The file cannot be read.
        """
        run = self._prepare_run(
            chunk_frames,
            sample_posterior,
            mode,
            None,
            rate,
            threshold,
            decode_timestep,
            decode_noise_scale,
            generator,
        )
        source = self._open_source(Path(video), preprocess=False, size_bucket=None, fps=fps)
        yield from self._reconstruct(source.pieces(), total_frames=source.total_frames, **run)
        self.maybe_free_model_hooks()

    @torch.no_grad()
    def reconstruct_file(
        self,
        input: str | PathLike[str],
        output: str | PathLike[str],
        original_output: str | PathLike[str] | bool = True,
        preprocess: bool | None = None,
        size_bucket: str | None = None,
        fps: float | Fraction | None = None,
        chunk_frames: int | None = None,
        sample_posterior: bool = False,
        mode: str | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        generator: torch.Generator | None = None,
        compute_metrics: bool = False,
        lpips: PerceptualMetric | None = None,
        overwrite: bool = False,
        writer_options: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ReconstructedFile:
        r"""Reconstructs an image or video file into another one, and saves beside it the original as it was encoded.

        Videos stream: `AutoencoderKL3D` runs in chunks, with the result of the whole clip, `FrameSelectVAE` in its
        windows, both in memory that does not grow with the clip. Other autoencoders take the whole clip, unless
        `chunk_frames` says that each chunk shall be a clip of its own. Sound is dropped, see `writer_options`.

        Preprocessing is that of the data that `AutoencoderKL3D` is meant for, and its default: images are scaled and
        cut to their nearest size bucket; videos are resampled to 24 frames per second by their timestamps, slower ones
        are refused, and their sides are cut to multiples of 8. Other autoencoders take the native size and rate.

        Args:
            input: The file. Whether it is an image or a video is told by its content.
            output: Where the reconstruction goes; the name's ending says the format. A video without an ending becomes
                a folder of PNG frames.
            original_output: Where the preprocessed original goes. True puts it beside `output`, with `_original` added
                to its name, False nowhere.
            preprocess: Whether to preprocess as described above; by default for `AutoencoderKL3D` only.
            size_bucket: Size that an image is brought to, `"XX_SMALL"` to `"XX_LARGE"`; by default the nearest.
            fps: Frame rate that a video is resampled to by its timestamps.
            chunk_frames: Frames to run at a time; for `AutoencoderKL3D` 24 by default.
            sample_posterior: As in `__call__`, like the arguments that follow.
            mode: Frame selection, window by window.
            rate: Share of the frames to keep of every window.
            threshold: For mode `"threshold"`.
            decode_timestep: For decoders conditioned on one.
            decode_noise_scale: For those decoders.
            generator: Source of randomness.
            compute_metrics: Whether to measure the reconstruction, before the image or video codec.
            lpips: Perceptual distance to measure, too, such as `LPIPS()` of `diffusers_vidvae.metrics`.
            overwrite: Whether files may be replaced.
            writer_options: Options of `VideoWriter`, such as `crf`, `lossless` or `audio_from`.
            callback_on_step_end: As in `__call__`.
            callback_on_step_end_tensor_inputs: As in `__call__`.

        Raises:
            ValueError: An argument is not as described.
            MediaError: A file cannot be read, exists, cannot be written, or the clip is too slow or too small. Nothing
                half-written is left.
        """
        from .reconstruction_files import PieceTally, open_outputs, output_paths

        run = self._prepare_run(
            chunk_frames,
            sample_posterior,
            mode,
            None,
            rate,
            threshold,
            decode_timestep,
            decode_noise_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        paths = output_paths(Path(input), output, original_output)
        source = self._open_source(Path(input), preprocess, size_bucket, fps)
        tally = PieceTally(ClipMetrics(lpips=lpips) if compute_metrics else None)
        with (
            open_outputs(source, paths, overwrite, writer_options or {}) as write,
            self.progress_bar(total=source.expected_frames or float("inf")) as progress_bar,
        ):
            for piece in self._reconstruct(source.pieces(), total_frames=source.total_frames, **run):
                write(piece.sample, piece.original)
                tally.add(piece)
                progress_bar.update(piece.original.shape[2])
        self.maybe_free_model_hooks()
        size: dict[str, Any] = {"height": source.height, "width": source.width, "fps": source.fps}
        return ReconstructedFile(*paths, **size, **tally.result())

    def _open_source(
        self, path: Path, preprocess: bool | None, size_bucket: str | None, fps: float | Fraction | None
    ) -> SourceFile:
        """Opens a file as `reconstruct_file` describes it."""
        from .reconstruction_files import open_source

        if fps is not None and fps <= 0:
            raise ValueError(f"`fps` must be positive, got {fps}.")
        is_kl_3d = open_autoencoder(self.vae).is_a("AutoencoderKL3D")
        preprocess = is_kl_3d if preprocess is None else preprocess
        if size_bucket is not None and not preprocess:
            raise ValueError(f"`size_bucket` {size_bucket!r} needs `preprocess`, which resizes.")
        return open_source(
            path,
            preprocess=preprocess,
            size_bucket=size_bucket,
            fps=None if fps is None else Fraction(fps).limit_denominator(1001),
            least_side=self.vae.spatial_compression_ratio if is_kl_3d else 1,
        )

    # From pixels to pixels

    @torch.no_grad()
    def _reconstruct(
        self, pieces: Iterable[torch.Tensor], chunk_frames: int | None, **options: Any
    ) -> Iterator[ReconstructedPiece]:
        """Runs clips that arrive in pieces `(B, 3, t, H, W)`; if memory runs out at the start, once more with less.

        `options` are those of `_run`.
        """
        self._interrupt = False
        model = open_autoencoder(self.vae)
        pieces = iter(pieces)
        first = next(pieces)
        height, width = first.shape[3:]
        plan = plan_memory(model, height, width, chunk_frames)
        unfinished = deque([first])
        results = self._run(model, plan, pieces, unfinished, **options)
        try:
            first_result = next(results)
        except (RuntimeError, MemoryError) as error:
            smaller = less_memory(model, plan) if is_out_of_memory(error) else None
            if smaller is None:
                raise
            logger.warning(f"Memory ran out with {plan.describe()}; trying {smaller.describe()}.")
            results = self._run(model, smaller, pieces, unfinished, **options)
            first_result = next(results)
        yield first_result
        yield from results

    def _run(
        self,
        model: VideoAutoencoder,
        plan: MemoryPlan,
        pieces: Iterator[torch.Tensor],
        unfinished: deque[torch.Tensor],
        total_frames: int | None = None,
        selection: dict[str, Any] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents_only: bool = False,
        decode_timestep: float = 0.0,
        **options: Any,
    ) -> Iterator[ReconstructedPiece]:
        """Sends clips both ways. `unfinished` holds what was read and has not come out yet; it goes first.

        `options` are those of `_draw_latents`.
        """
        stream = open_stream(model, plan, total_frames)

        again = list(unfinished)
        unfinished.clear()

        def read() -> Iterator[torch.Tensor]:
            for piece in chain(again, pieces):
                unfinished.append(piece)
                yield piece

        chunks = (chunk.to(self._execution_device) for chunk in rechunk(read(), plan.chunk_frames))
        encoded = stream.encode(chunks, None if selection is None else {**selection, "generator": generator})
        latents = self._draw_latents(encoded, generator, **options)
        if latents_only:
            for piece in latents:
                yield ReconstructedPiece(_take(unfinished, piece.size[0]), None, piece.latents, piece.keep_mask)
            return
        for decoded in stream.decode(latents, decode_timestep):
            sample = decoded.sample.cpu()
            yield ReconstructedPiece(_take(unfinished, sample.shape[2]), sample, None, decoded.keep_mask)

    def _draw_latents(
        self,
        encoded: Iterable[EncodedPiece],
        generator: torch.Generator | list[torch.Generator] | None,
        sample_posterior: bool = False,
        decode_noise_scale: float = 0.0,
        callback: Callable[..., dict] | None = None,
        callback_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Iterator[LatentPiece]:
        """Latents of every piece, after the callback had its say, until it interrupts."""
        start = 0
        for index, piece in enumerate(encoded):
            latents, keep_mask = self._draw(piece.posterior, sample_posterior, generator), piece.keep_mask
            if callback is not None:
                tensors = {"latents": latents, "keep_mask": keep_mask}
                changed = callback(self, index, start, {name: tensors[name] for name in callback_tensor_inputs})
                latents, keep_mask = changed.get("latents", latents), changed.get("keep_mask", keep_mask)
            if decode_noise_scale:
                noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
                latents = (1 - decode_noise_scale) * latents + decode_noise_scale * noise
            yield LatentPiece(latents, piece.size, keep_mask)
            start += piece.size[0]
            if self.interrupt:
                return

    def _draw(
        self,
        posterior: Posterior,
        sample_posterior: bool,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        if not sample_posterior:
            return posterior.mode()
        if isinstance(posterior, IdentityDistribution):
            raise ValueError(f"{type(self.vae).__name__} has no posterior to draw from; leave out `sample_posterior`.")
        return posterior.sample(generator)


def _take(pieces: deque[torch.Tensor], num_frames: int) -> torch.Tensor:
    """Takes the next frames off a queue of pieces `(B, C, t, H, W)`."""
    taken = []
    while num_frames:
        piece = pieces.popleft()
        if piece.shape[2] > num_frames:
            pieces.appendleft(piece[:, :, num_frames:])
            piece = piece[:, :, :num_frames]
        taken.append(piece)
        num_frames -= piece.shape[2]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


def _join(pieces: list[ReconstructedPiece], field: str, dim: int) -> torch.Tensor:
    return torch.cat([getattr(piece, field) for piece in pieces], dim=dim)


def measure_clips(
    clips: torch.Tensor,
    sample: torch.Tensor,
    keep_mask: torch.Tensor | None = None,
    boundaries: Sequence[int] = (),
) -> list[dict[str, Any]]:
    r"""Fidelity of every clip of a batch of reconstructions `(B, 3, T, H, W)`, see `diffusers_vidvae.metrics`."""
    masks = [None] * len(clips) if keep_mask is None else [mask.cpu() for mask in keep_mask]
    pairs = zip(clips.split(1), sample.split(1), masks, strict=True)
    return [evaluate_clip(clip, reconstruction, mask, boundaries) for clip, reconstruction, mask in pairs]
