r"""Images and videos through any video autoencoder and back, at their own size and length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, IdentityDistribution
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from diffusers_vidvae.autoencoders import (
    AnyVideoAutoencoder,
    Posterior,
    VideoAutoencoder,
    VideoGeometry,
    crop_clip,
    open_autoencoder,
    pad_clip,
)
from diffusers_vidvae.media.transforms import to_frames, to_pixels
from diffusers_vidvae.metrics import evaluate_clip
from diffusers_vidvae.models.frame_select_vae import SELECTION_MODES, clip_windows

from .clip_source import ClipInput
from .pipeline_output import ReconstructedFile, VideoReconstructionPipelineOutput


if TYPE_CHECKING:
    from .reconstruction_files import FileJob


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
STREAM_FRAMES = 24

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


@dataclass(frozen=True)
class _Options:
    """How clips are encoded and decoded; the fields are arguments of `VideoReconstructionPipeline.__call__`."""

    sample_posterior: bool = False
    generator: torch.Generator | list[torch.Generator] | None = None
    mode: str | None = None
    num_frames: int | None = None
    rate: float | None = None
    threshold: float = 0.5
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    latents_only: bool = False
    callback: Callable[..., dict] | None = None
    callback_tensor_inputs: tuple[str, ...] = ("latents",)


class _Piece(NamedTuple):
    """Consecutive frames of clips: pixels `(B, 3, t, H, W)`, about [-1, 1], or latents where those are wanted."""

    num_frames: int
    sample: torch.Tensor | None
    latents: torch.Tensor | None
    keep_mask: torch.Tensor | None = None


class VideoReconstructionPipeline(DiffusionPipeline):
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

    def check_inputs(
        self,
        video,
        image,
        chunk_frames,
        mode,
        num_frames,
        rate,
        decode_timestep,
        decode_noise_scale,
        output_type,
        callback_on_step_end_tensor_inputs,
    ):
        if (video is None) == (image is None):
            raise ValueError(f"Give `video` or `image`, {'not both' if video is not None else 'got neither'}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        self._check_selection(mode, num_frames, rate)
        self._check_chunk_frames(chunk_frames)
        if not self.vae.config.get("timestep_conditioning") and (decode_timestep or decode_noise_scale):
            raise ValueError(
                f"`decode_timestep` and `decode_noise_scale` are for decoders that are conditioned on a timestep,"
                f" which that of {type(self.vae).__name__} is not."
            )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got"
                f" {sorted(unknown)}."
            )

    def _check_selection(self, mode: str | None, num_frames: int | None, rate: float | None):
        if mode is None:
            if num_frames is not None or rate is not None:
                raise ValueError(f"`num_frames` and `rate` need a `mode`, one of {SELECTION_MODES}.")
            return
        if not open_autoencoder(self.vae).is_a("FrameSelectVAE"):
            raise ValueError(f"`mode` is for FrameSelectVAE, {type(self.vae).__name__} does not select frames.")
        if mode not in SELECTION_MODES:
            raise ValueError(f"`mode` must be None or one of {SELECTION_MODES}, got {mode!r}.")

    def _check_chunk_frames(self, chunk_frames: int | None):
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
            raise ValueError(
                f"`chunk_frames` must be a number of frames that {model.name} takes at once,"
                f" {', '.join(map(str, counts))}, ..., got {chunk_frames}."
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
    ) -> VideoReconstructionPipelineOutput | tuple:
        r"""Reconstructs a clip or an image, or a batch of them that have one size.

        Args:
            video: A path, a list of PIL images, a `(T, H, W, C)` array of uint8 or of floats in [0, 1], an iterator of
                such frames, or a batch: a `(B, C, T, H, W)` tensor in [-1, 1] or a list of clips.
            image: In place of a video: a path, a PIL image, an `(H, W, C)` array, or a batch: a `(B, C, H, W)` tensor
                in [-1, 1] or a list of images. It is a video of one frame.
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

        Examples:

        Raises:
            ValueError: An argument or a clip is not as described, the clips of a batch differ in size, or the
                autoencoder does not return clips of the size that it was given.
        """
        self.check_inputs(
            video,
            image,
            chunk_frames,
            mode,
            num_frames,
            rate,
            decode_timestep,
            decode_noise_scale,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        if compute_metrics and output_type == "latent":
            raise ValueError("`compute_metrics` needs pixels, which `output_type` 'latent' does not give.")
        clips, clip_fps = load_clips(video, fps) if video is not None else (load_images(image), None)
        options = _Options(
            sample_posterior,
            generator,
            mode,
            num_frames,
            rate,
            threshold,
            decode_timestep,
            decode_noise_scale,
            output_type == "latent",
            callback_on_step_end,
            tuple(callback_on_step_end_tensor_inputs),
        )

        self._interrupt = False
        pieces = []
        with self.progress_bar(total=clips.shape[2]) as progress_bar:
            for piece in self._run(clips.split(chunk_frames or clips.shape[2], dim=2), options, chunk_frames):
                pieces.append(piece)
                progress_bar.update(piece.num_frames)
        keep_mask = _join(pieces, "keep_mask", dim=1) if mode is not None else None
        self.maybe_free_model_hooks()

        metrics = original = None
        if output_type == "latent":
            frames = _join(pieces, "latents", dim=2)
        else:
            sample = _join(pieces, "sample", dim=2)
            clips = clips[:, :, : sample.shape[2]]
            if compute_metrics:
                metrics = measure_clips(clips, sample, keep_mask, self._boundaries(pieces))
            frames, original = (
                self.video_processor.postprocess_video(pixels, output_type) for pixels in (sample, clips)
            )
        if not return_dict:
            return frames, original, metrics, keep_mask, clip_fps
        return VideoReconstructionPipelineOutput(
            frames=frames, original=original, metrics=metrics, keep_mask=keep_mask, fps=clip_fps
        )

    def _boundaries(self, pieces: list[_Piece]) -> list[int]:
        """First frames of the chunks or windows that a clip ran in, without 0."""
        if len(pieces) == 1 and open_autoencoder(self.vae).is_a("FrameSelectVAE"):
            windows = clip_windows(pieces[0].num_frames, self.vae.config.clip_num_frames)
            return [window.first_new for window in windows[1:]]
        return list(accumulate(piece.num_frames for piece in pieces))[:-1]

    # Files

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
            overwrite: Whether files may be replaced.
            writer_options: Options of `VideoWriter`, such as `crf`, `lossless` or `audio_from`.
            callback_on_step_end: As in `__call__`.
            callback_on_step_end_tensor_inputs: As in `__call__`.

        Raises:
            ValueError: An argument is not as described.
            MediaError: A file cannot be read, exists, cannot be written, or the clip is too slow or too small. Nothing
                half-written is left.
        """
        from diffusers_vidvae.media import media_kind

        from .reconstruction_files import FileJob, beside

        inputs = callback_on_step_end_tensor_inputs
        self.check_inputs(
            input, None, chunk_frames, mode, None, rate, decode_timestep, decode_noise_scale, "pil", inputs
        )
        is_kl_3d = open_autoencoder(self.vae).is_a("AutoencoderKL3D")
        if isinstance(original_output, bool):
            original_output = beside(Path(output), "_original") if original_output else ""
        job = FileJob(
            Path(input),
            Path(output),
            Path(original_output) if original_output else None,
            preprocess=is_kl_3d if preprocess is None else preprocess,
            least_side=self.vae.spatial_compression_ratio if is_kl_3d else 1,
            size_bucket=size_bucket,
            fps=None if fps is None else Fraction(fps).limit_denominator(1001),
            compute_metrics=compute_metrics,
            overwrite=overwrite,
            writer_options=writer_options or {},
        )
        options = _Options(
            sample_posterior, generator, mode, None, rate, threshold, decode_timestep, decode_noise_scale
        )
        options = replace(options, callback=callback_on_step_end, callback_tensor_inputs=tuple(inputs))
        self._interrupt = False
        if media_kind(job.input) == "image":
            result = self._reconstruct_image(job, options)
        else:
            result = self._reconstruct_video(job, options, chunk_frames)
        self.maybe_free_model_hooks()
        return result

    def _reconstruct_image(self, job: "FileJob", options: _Options) -> ReconstructedFile:
        image = job.load_image()
        pixels = to_pixels(image)
        (piece,) = self._run([pixels], options)
        assert piece.sample is not None
        metrics = measure_clips(pixels, piece.sample, piece.keep_mask)[0] if job.compute_metrics else None
        job.save_images(to_frames(piece.sample)[0, 0], image)
        return ReconstructedFile(
            job.output, job.original_output, num_frames=1, height=image.height, width=image.width, metrics=metrics
        )

    def _reconstruct_video(self, job: "FileJob", options: _Options, chunk_frames: int | None) -> ReconstructedFile:
        model = open_autoencoder(self.vae)
        with job.open_video() as tape:
            if model.is_a("FrameSelectVAE"):
                pieces = self._run_windows(model, tape.windows(self.vae.config.clip_num_frames), options)
            elif model.is_a("AutoencoderKL3D"):
                chunk_frames = chunk_frames or self.vae.chunk_frames or STREAM_FRAMES
                pieces = self._run_stream(model, tape.pieces(chunk_frames), options)
            else:
                pieces = self._run_chunks(model, tape.pieces(chunk_frames), options)
            with self.progress_bar(total=tape.expected_frames or float("inf")) as progress_bar:
                for piece in pieces:
                    assert piece.sample is not None
                    tape.write(piece.sample, piece.keep_mask)
                    progress_bar.update(piece.num_frames)
        return ReconstructedFile(
            job.output,
            job.original_output,
            num_frames=tape.num_frames,
            height=tape.size[0],
            width=tape.size[1],
            fps=tape.fps,
            keep_rate=tape.keep_rate(),
            metrics=tape.measure(),
        )

    # Running a model. All of these take consecutive pieces `(B, 3, t, H, W)` of clips and yield what becomes of them.

    def _run(
        self, pieces: Iterable[torch.Tensor], options: _Options, chunk_frames: int | None = None
    ) -> Iterator[_Piece]:
        model = open_autoencoder(self.vae)
        if chunk_frames is not None and model.is_a("AutoencoderKL3D"):
            return self._run_stream(model, pieces, options)
        return self._run_chunks(model, pieces, options)

    def _run_chunks(
        self, model: VideoAutoencoder, pieces: Iterable[torch.Tensor], options: _Options
    ) -> Iterator[_Piece]:
        """Runs every piece as a clip of its own."""
        start = 0
        for index, piece in enumerate(pieces):
            size = model.geometry.padded_size(*piece.shape[2:])
            with model.tiling(*size[1:]):
                encoded = model.encode(pad_clip(piece.to(self._execution_device), size))
                latents = self._draw_latents(encoded.posterior, options)
                keep_mask = self._select_frames(encoded.keep_probs, options)
                latents, keep_mask = self._call_back(index, start, latents, keep_mask, options)
                sample = None if options.latents_only else self._decode(model, latents, size, keep_mask, options)
            sample = None if sample is None else crop_clip(sample, piece.shape[2:]).cpu()
            yield _Piece(piece.shape[2], sample, latents if options.latents_only else None, keep_mask)
            start += piece.shape[2]
            if self.interrupt:
                return

    def _run_stream(
        self, model: VideoAutoencoder, pieces: Iterable[torch.Tensor], options: _Options
    ) -> Iterator[_Piece]:
        """Runs `AutoencoderKL3D` piece after piece with the state that makes them one clip."""
        ratio = self.vae.temporal_compression_ratio
        num_read, size = 0, torch.Size()

        def read() -> Iterator[torch.Tensor]:
            nonlocal num_read, size
            for piece in pieces:
                num_read, size = num_read + piece.shape[2], piece.shape[3:]
                padded_size = model.geometry.padded_size(*piece.shape[2:])
                yield pad_clip(piece.to(self._execution_device), padded_size)

        def latent_pieces() -> Iterator[torch.Tensor]:
            num_latents = 0
            for index, parameters in enumerate(self.vae.encode_stream(read())):
                latents = self._draw_latents(DiagonalGaussianDistribution(parameters), options)
                yield self._call_back(index, num_latents * ratio, latents, None, options)[0]
                num_latents += latents.shape[2]
                if self.interrupt:
                    return

        num_done = 0
        results = latent_pieces() if options.latents_only else self.vae.decode_stream(latent_pieces())
        for result in results:
            # The last latent frame may stand for fewer frames than the ratio.
            num_frames = min(result.shape[2] * (ratio if options.latents_only else 1), num_read - num_done)
            if options.latents_only:
                yield _Piece(num_frames, None, result)
            else:
                yield _Piece(num_frames, crop_clip(result.float(), (num_frames, *size)).cpu(), None)
            num_done += num_frames

    def _run_windows(
        self, model: VideoAutoencoder, windows: Iterable[tuple[torch.Tensor, int]], options: _Options
    ) -> Iterator[_Piece]:
        """Runs `FrameSelectVAE` window by window, as it runs a whole clip.

        Args:
            windows: Frames `(1, 3, t, H, W)`, and the number of leading ones that the window before held, too.
        """
        start, latents, keep_mask = 0, None, None
        for index, (frames, num_seen) in enumerate(windows):
            num_new = frames.shape[2] - num_seen
            size = model.geometry.padded_size(*frames.shape[2:])
            with model.tiling(*size[1:]):
                encoded = model.encode(pad_clip(frames.to(self._execution_device), size))
                assert encoded.keep_probs is not None
                new_latents = self._draw_latents(encoded.posterior, options)[:, :, num_seen:]
                new_mask = self._select_frames(encoded.keep_probs[:, num_seen:], options)
                new_latents, new_mask = self._call_back(index, start, new_latents, new_mask, options)
                # Frames of the window before keep what it made of them.
                latents = _append(latents, new_latents, num_seen, dim=2)
                keep_mask = None if new_mask is None else _append(keep_mask, new_mask, num_seen, dim=1)
                sample = self._decode(model, latents, size, keep_mask, options)
            sample = crop_clip(sample, frames.shape[2:])[:, :, num_seen:].cpu()
            yield _Piece(num_new, sample, None, new_mask)
            start += num_new
            if self.interrupt:
                return

    def _draw_latents(self, posterior: Posterior, options: _Options) -> torch.Tensor:
        if not options.sample_posterior:
            return posterior.mode()
        if isinstance(posterior, IdentityDistribution):
            raise ValueError(f"{type(self.vae).__name__} has no posterior to draw from; leave out `sample_posterior`.")
        return posterior.sample(options.generator)

    def _select_frames(self, keep_probs: torch.Tensor | None, options: _Options) -> torch.Tensor | None:
        if keep_probs is None or options.mode is None:
            return None
        return self.vae.select_frames(
            keep_probs,
            mode=options.mode,
            num_frames=options.num_frames,
            rate=options.rate,
            threshold=options.threshold,
            generator=options.generator,
        )

    def _decode(
        self,
        model: VideoAutoencoder,
        latents: torch.Tensor,
        size: tuple[int, int, int],
        keep_mask: torch.Tensor | None,
        options: _Options,
    ) -> torch.Tensor:
        timestep = options.decode_timestep or 0.0
        noise_scale = timestep if options.decode_noise_scale is None else options.decode_noise_scale
        if noise_scale:
            noise = randn_tensor(latents.shape, options.generator, latents.device, latents.dtype)
            latents = (1 - noise_scale) * latents + noise_scale * noise
        return model.decode(latents, size, timestep, keep_mask)

    def _call_back(
        self, index: int, start: int, latents: torch.Tensor, keep_mask: torch.Tensor | None, options: _Options
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if options.callback is None:
            return latents, keep_mask
        tensors = {"latents": latents, "keep_mask": keep_mask}
        outputs = options.callback(
            self, index, start, {name: tensors[name] for name in options.callback_tensor_inputs}
        )
        return outputs.get("latents", latents), outputs.get("keep_mask", keep_mask)


def _append(previous: torch.Tensor | None, new: torch.Tensor, num_kept: int, dim: int) -> torch.Tensor:
    """Puts the last `num_kept` of the previous ones before the new ones."""
    if previous is None or not num_kept:
        return new
    return torch.cat([previous.narrow(dim, previous.shape[dim] - num_kept, num_kept), new], dim=dim)


def _join(pieces: list[_Piece], field: str, dim: int) -> torch.Tensor:
    return torch.cat([getattr(piece, field) for piece in pieces], dim=dim)


def load_clips(video: ClipInput, fps: float | Fraction | None = None) -> tuple[torch.Tensor, Fraction | None]:
    r"""Brings what pipelines are given to one batch `(B, 3, T, H, W)` of float32 in [-1, 1].

    Args:
        video: What `VideoReconstructionPipeline` takes.
        fps: Rate to which files are resampled by their timestamps, or the rate of frames in memory.

    Returns:
        The clips, and their frame rate where it is known.

    Raises:
        ValueError: It is something else, or the clips differ in size.
        MediaError: A file cannot be read.
    """
    rate = None if fps is None else Fraction(fps).limit_denominator(1001)
    if rate is not None and rate <= 0:
        raise ValueError(f"`fps` must be positive, got {fps}.")
    if _is_path(video):
        media = _load_clip(video, fps=rate)
        return to_pixels(media.frames), rate or media.fps
    if isinstance(video, (list, tuple)) and video and all(_is_path(item) for item in video):
        clips = [_load_clip(path, fps=rate) for path in video]
        return to_pixels([media.frames for media in clips]), rate or clips[0].fps
    return to_pixels(list(video) if isinstance(video, Iterator) else video), rate


def _load_clip(path: str | PathLike[str], fps: Fraction | None) -> Any:
    from diffusers_vidvae.media import load_media

    return load_media(path, fps=fps)


def _load_image(path: str | PathLike[str]) -> Any:
    from diffusers_vidvae.media import load_image

    return load_image(path)


def load_images(image: ClipInput) -> torch.Tensor:
    r"""Brings an image, or a list or tensor `(B, 3, H, W)` of them, to a batch of clips of one frame."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 4:
            raise ValueError(f"An image tensor must have shape (B, 3, H, W), got {tuple(image.shape)}.")
        return to_pixels(image[:, :, None])
    images = image if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("`image` is an empty list.")
    return to_pixels([[_load_image(item) if _is_path(item) else item] for item in images])


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, PathLike))


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
