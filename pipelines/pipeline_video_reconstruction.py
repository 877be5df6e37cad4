r"""Images and videos through any video autoencoder and back, at their own size and length."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, IdentityDistribution
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from diffusers_vidvae.metrics import evaluate_clip
from diffusers_vidvae.models.frame_select_vae import SELECTION_MODES

from .clip_source import ClipInput, ClipSource, open_clips
from .pipeline_output import VideoReconstructionPipelineOutput
from .video_autoencoders import (
    AnyVideoAutoencoder,
    Posterior,
    VideoAutoencoder,
    VideoGeometry,
    crop_clip,
    pad_clip,
)


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
        return VideoAutoencoder(self.vae).geometry

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
        if not VideoAutoencoder(self.vae).is_a("FrameSelectVAE"):
            raise ValueError(f"`mode` is for FrameSelectVAE, {type(self.vae).__name__} does not select frames.")
        if mode not in SELECTION_MODES:
            raise ValueError(f"`mode` must be None or one of {SELECTION_MODES}, got {mode!r}.")

    def _check_chunk_frames(self, chunk_frames: int | None):
        if chunk_frames is None:
            return
        model = VideoAutoencoder(self.vae)
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
        sources = open_clips(video, fps) if video is not None else open_images(image)
        clips = stack_clips(sources)
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
        keep_mask = torch.cat([piece.keep_mask for piece in pieces], dim=1) if mode is not None else None
        self.maybe_free_model_hooks()

        metrics = original = None
        if output_type == "latent":
            frames = torch.cat([piece.latents for piece in pieces], dim=2)
        else:
            sample = torch.cat([piece.sample for piece in pieces], dim=2)
            clips = clips[:, :, : sample.shape[2]]
            if compute_metrics:
                metrics = measure_clips(clips, sample, keep_mask)
            frames, original = (
                self.video_processor.postprocess_video(pixels, output_type) for pixels in (sample, clips)
            )
        if not return_dict:
            return frames, original, metrics, keep_mask, sources[0].fps
        return VideoReconstructionPipelineOutput(
            frames=frames, original=original, metrics=metrics, keep_mask=keep_mask, fps=sources[0].fps
        )

    # Running a model. All of these take consecutive pieces `(B, 3, t, H, W)` of clips and yield what becomes of them.

    def _run(
        self, pieces: Iterable[torch.Tensor], options: _Options, chunk_frames: int | None = None
    ) -> Iterator[_Piece]:
        model = VideoAutoencoder(self.vae)
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
                keep_mask = self._select_frames(encoded.keep_probs, piece.shape[2], options)
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
        num_read, size = 0, (0, 0)

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

    def _draw_latents(self, posterior: Posterior, options: _Options) -> torch.Tensor:
        if not options.sample_posterior:
            return posterior.mode()
        if isinstance(posterior, IdentityDistribution):
            raise ValueError(f"{type(self.vae).__name__} has no posterior to draw from; leave out `sample_posterior`.")
        return posterior.sample(options.generator)

    def _select_frames(
        self, keep_probs: torch.Tensor | None, num_frames: int, options: _Options
    ) -> torch.Tensor | None:
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


def open_images(image: ClipInput) -> list[ClipSource]:
    r"""Opens an image, or every image of a batch, as clips of one frame."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 4:
            raise ValueError(f"An image tensor must have shape (B, C, H, W), got {tuple(image.shape)}.")
        return open_clips(image[:, :, None])
    images = image if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("`image` is an empty list.")
    return [source for item in images for source in open_clips(item if _is_path(item) else [item])]


def _is_path(item: Any) -> bool:
    return isinstance(item, str) or hasattr(item, "__fspath__")


def stack_clips(sources: list[ClipSource]) -> torch.Tensor:
    r"""Reads clips into one batch `(B, 3, T, H, W)` of float32 in [-1, 1].

    Raises:
        ValueError: They differ in length or size, or are not RGB.
    """
    clips = [torch.stack(list(source.frames), dim=1) for source in sources]
    shapes = sorted({tuple(clip.shape[1:]) for clip in clips})
    if len(shapes) > 1:
        raise ValueError(f"All clips of a batch must have one (frames, height, width), got {shapes}.")
    if clips[0].shape[0] != 3:
        raise ValueError(f"Clips must have 3 channels, red, green and blue, got {clips[0].shape[0]}.")
    return torch.stack(clips)


def measure_clips(
    clips: torch.Tensor, sample: torch.Tensor, keep_mask: torch.Tensor | None = None
) -> list[dict[str, Any]]:
    r"""Fidelity of every clip of a batch of reconstructions `(B, 3, T, H, W)`, see `diffusers_vidvae.metrics`."""
    masks = [None] * len(clips) if keep_mask is None else [mask.cpu() for mask in keep_mask]
    pairs = zip(clips.split(1), sample.split(1), masks, strict=True)
    return [evaluate_clip(clip, reconstruction, mask) for clip, reconstruction, mask in pairs]
