from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import replace_example_docstring
from diffusers.video_processor import VideoProcessor

from diffusers_vidvae.autoencoders import require_frame_select
from diffusers_vidvae.codec import (
    QUANTIZATIONS,
    CompressedVideo,
    FsvError,
    FsvHeader,
    FsvWriter,
    LatentWindow,
    TileLayout,
    check_model,
    read_original_pt,
    weight_probe,
)
from diffusers_vidvae.fingerprints import config_fingerprint
from diffusers_vidvae.media.clip import Clip
from diffusers_vidvae.media.clips import ClipInput, open_clips
from diffusers_vidvae.media.layouts import Layout, ValueRange
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.models.frame_selection import check_selection

from .pipeline_output import VideoCompressionPipelineOutput


SIZE_MODES = ("auto", "pad", "tile", "resize")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tiff")

# What the original project writes its videos at.
UNKNOWN_FPS = Fraction(30)

EXAMPLE_DOC_STRING = """
    Examples:
        ```python
        >>> from diffusers_vidvae import VideoCompressionPipeline, demo_model

        >>> pipe = VideoCompressionPipeline.from_pretrained(demo_model())
        >>> compressed = pipe.compress("clip.mp4", rate=0.25)
        >>> compressed.save("clip.fsv")
        >>> print(compressed.statistics())
        >>> frames = pipe.decompress("clip.fsv").frames[0]
        ```
"""


class VideoCompressionPipeline(DiffusionPipeline):
    r"""Compresses videos to the latents of the frames that `FrameSelectVAE` finds worth keeping, and back.

    Clips of any length run in windows of the model's `clip_num_frames`, no more than two of which are in memory, and
    the result does not depend on whether frames come from a file, an iterator or a tensor. Clips of any size are
    padded, tiled or resized to what the model takes, and come back at their own size.

    An `.fsv` file knows one frame rate. A file of variable frame rate keeps every frame and its duration, and comes
    back with its frames evenly spaced; `fps` resamples it by its timestamps instead.

    Args:
        vae: The autoencoder.
    """

    model_cpu_offload_seq = "vae"
    _callback_tensor_inputs = ["latents", "keep_probs", "keep_mask"]

    def __init__(self, vae: FrameSelectVAE):
        super().__init__()
        require_frame_select(vae, type(self).__name__)
        self.register_modules(vae=vae)
        self.video_processor = VideoProcessor(do_resize=False)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_inputs(self, mode, num_frames, rate, threshold, quantize, size_mode, callback_on_step_end_tensor_inputs):
        check_selection(mode, num_frames, rate, threshold)
        if size_mode not in SIZE_MODES:
            raise ValueError(f"`size_mode` must be one of {SIZE_MODES}, got {size_mode!r}.")
        if quantize not in QUANTIZATIONS:
            raise ValueError(f"`quantize` must be one of {QUANTIZATIONS}, got {quantize!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got"
                f" {sorted(unknown)}."
            )

    # Compression

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def compress(
        self,
        video: ClipInput,
        mode: str = "systematic",
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quantize: str = "bf16",
        size_mode: str = "auto",
        fps: float | Fraction | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        layout: Layout | None = None,
        value_range: ValueRange | None = None,
    ) -> CompressedVideo | list[CompressedVideo]:
        r"""Compresses a clip, or every clip of a batch.

        Args:
            video: A path, URL, bytes or folder of pictures, PIL images, arrays, tensors, or an iterator of frames: one
                clip or a batch, see `diffusers_vidvae.media.open_clips`.
            mode: How frames are chosen, see `FrameSelectVAE.select_frames`.
            num_frames: Frames to keep of the whole clip, shared out among its windows, at least one each.
            rate: Share of the frames to keep, in (0, 1]. With neither, as many as the keep probabilities add up to.
            threshold: Probability above which mode `"threshold"` keeps a frame.
            generator: Source of the randomness of `"bernoulli"`, and of `"systematic"` if given; a list has one for
                every clip.
            quantize: How latents are stored: `"bf16"`, `"fp16"`, `"fp32"`, `"int8"` or `"int4"`.
            size_mode: How frames of a size that the model does not take are brought to one that it does:
                `"pad"` (by repeating the last row and column), `"tile"` (padded, in blended tiles of the model's
                `sample_size`), `"resize"` (to `sample_size`, and back), `"auto"` (padded, and tiled if larger).
            fps: Frame rate. Files are resampled to it by their timestamps; for frames in memory it is their rate.
            output: `.fsv` file to write while compressing, in constant memory.
            overwrite: Whether `output` may replace a file.
            callback_on_step_end: Called after every window with the pipeline, the index of the window, the index of
                its first frame, and a dictionary of tensors; `keep_mask` and `latents` may be returned changed.
            callback_on_step_end_tensor_inputs: Which of `_callback_tensor_inputs` it is given.
            layout: Order of the dimensions of an array or tensor where its shape fits two, such as `"BTCHW"`.
            value_range: What black and white are in an array or tensor of floats, if not what `open_clips` says.

        Examples:

        Returns:
            The compressed clip, with its windows in memory, or read from `output` as they are used; a list of them
            for a batch of more than one clip.

        Raises:
            ValueError: An argument or the clip is not as described, or frames are smaller than a patch.
            FsvError: `output` exists or cannot be written.
        """
        self.check_inputs(mode, num_frames, rate, threshold, quantize, size_mode, callback_on_step_end_tensor_inputs)
        channels = self.vae.config.in_channels
        clips = open_clips(video, fps, layout=layout, value_range=value_range, channels=channels)
        generators = generator if isinstance(generator, list) else [generator] * len(clips)
        if len(generators) != len(clips):
            raise ValueError(
                f"A list of generators must have one for each of {len(clips)} clips, got {len(generators)}."
            )
        if output is not None and len(clips) > 1:
            raise ValueError(f"`output` takes one clip, got a batch of {len(clips)}.")

        self._interrupt = False
        results = []
        for clip, clip_generator in zip(clips, generators, strict=True):
            header = self._make_header(clip, size_mode, quantize)
            # Refuses an existing file before frames are read.
            writer = None if output is None else FsvWriter(output, header, overwrite)
            selection: dict[str, Any] = {"mode": mode, "num_frames": num_frames, "rate": rate, "threshold": threshold}
            if num_frames is not None:
                selection["total_frames"] = clip.count_frames()
            windows = self._compress_windows(
                clip,
                header,
                selection | {"generator": clip_generator},
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            if writer is None:
                kept = list(windows)
                total = sum(window.num_frames for window in kept)
                results.append(CompressedVideo(replace(header, num_frames=total), kept))
            else:
                with writer:
                    for window in windows:
                        writer.write_window(window)
                results.append(CompressedVideo.load(writer.path))
        self.maybe_free_model_hooks()
        return results[0] if len(results) == 1 else results

    def compress_file(
        self, video: ClipInput, output: str | Path, overwrite: bool = False, **options: Any
    ) -> CompressedVideo:
        r"""Compresses a clip into an `.fsv` file in constant memory; `options` are those of `compress`."""
        return self.compress(video, output=output, overwrite=overwrite, **options)

    def _make_header(self, clip: Clip, size_mode: str, quantize: str) -> FsvHeader:
        """Header of a clip whose frames are still to be counted."""
        config = self.vae.config
        if min(clip.height, clip.width) < config.patch_size:
            raise ValueError(
                f"{clip.name}: frames of {clip.width}x{clip.height} are smaller than a patch of"
                f" {config.patch_size}x{config.patch_size}."
            )
        size_fit, (height, width), tile = self._fit_size(clip, size_mode)
        return FsvHeader(
            num_frames=0,
            height=clip.height,
            width=clip.width,
            model_height=height,
            model_width=width,
            clip_num_frames=config.clip_num_frames,
            latent_channels=config.latent_channels,
            latent_height=height // config.patch_size,
            latent_width=width // config.patch_size,
            fps=clip.fps,
            size_fit=size_fit,
            tile=tile,
            quantization=quantize,
            latent_dtype=str(self.vae.dtype).removeprefix("torch."),
            model_id=self._model_name(),
            model_hash=config_fingerprint(config),
            model_probe=self._model_probe(),
        )

    def _fit_size(self, clip: Clip, size_mode: str) -> tuple[str, tuple[int, int], TileLayout | None]:
        """How the clip's frames become frames of the model, and the height and width of these."""
        config, vae = self.vae.config, self.vae
        if size_mode == "resize":
            return "resize", (config.sample_size, config.sample_size), None

        tile_size = vae.tile_sample_size if vae.use_tiling else config.sample_size
        if size_mode == "auto":
            size_mode = "pad" if max(clip.height, clip.width) <= tile_size else "tile"
        takes_any_size = config.keep_head == "pooled"
        least = config.patch_size if takes_any_size else config.sample_size
        height, width = (
            max(-(-side // config.patch_size) * config.patch_size, least) for side in (clip.height, clip.width)
        )
        if size_mode == "tile":
            num_tokens = tile_size // config.patch_size
            overlap = min(round(vae.tile_overlap * num_tokens), num_tokens - 1)
            return "tile", (height, width), TileLayout(tile_size, overlap * config.patch_size)
        if not takes_any_size and max(height, width) > config.sample_size:
            raise ValueError(
                f"{clip.name}: frames of {clip.width}x{clip.height} are larger than this model's"
                f" {config.sample_size}x{config.sample_size}; `size_mode` 'tile' or 'resize' takes them."
            )
        return "pad", (height, width), None

    def _model_name(self) -> str:
        """Hub id of the model, or name of its folder: where it lies on this machine is nobody's business."""
        name = str(self.config.get("_name_or_path") or self.vae.config.get("_name_or_path") or "")
        name = Path(name).name if Path(name).exists() else name
        return name if name.isprintable() and len(name) <= 512 else ""

    def _model_probe(self) -> tuple[float, ...]:
        """Some learned numbers, which tell two trainings of one configuration apart."""
        # Models without a learned fill have no such token; the first layer of their decoder stands for it.
        weight = getattr(self.vae.fill_token, "weight", self.vae.decoder.proj_in.weight)
        return () if weight.is_meta else weight_probe(weight.float())

    def _compress_windows(
        self,
        clip: Clip,
        header: FsvHeader,
        selection: dict[str, Any],
        callback_on_step_end: Callable[..., dict] | None,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> Iterator[LatentWindow]:
        frames = clip.pieces(header.clip_num_frames)
        pieces = (_to_model_size(piece.to(self._execution_device), header) for piece in frames)
        encoded = _tiled(self.vae.encode_stream(pieces), self.vae, header.tile)
        start = 0
        with self.progress_bar(total=clip.num_frames or float("inf")) as progress_bar:
            for index, (output, keep_mask) in enumerate(self.vae.select_stream(encoded, **selection)):
                latents = output.latent_dist.mode()
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "keep_probs": output.keep_probs, "keep_mask": keep_mask}
                    inputs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    outputs = callback_on_step_end(self, index, start, inputs)
                    latents = outputs.get("latents", latents)
                    keep_mask = outputs.get("keep_mask", keep_mask)

                packed = self.vae.pack_frames(latents, keep_mask)
                yield LatentWindow(
                    start=start,
                    num_frames=keep_mask.shape[1],
                    gaps=packed.gaps[0].cpu(),
                    latents=packed.latents[0].cpu(),
                )
                start += keep_mask.shape[1]
                progress_bar.update(keep_mask.shape[1])
                if self.interrupt:
                    return

    # Decompression

    @torch.no_grad()
    def decompress(
        self,
        compressed: CompressedVideo | str | Path | list,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VideoCompressionPipelineOutput | tuple:
        r"""Decodes a compressed clip, every frame of it at the clip's own size, or every clip of a list.

        Args:
            compressed: A compressed clip, an `.fsv` file, a `.pt` file of the original project, or a list of them.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"latent"` for the latents `(1, C, T, h, w)` with zeros in the
                place of dropped frames.
            return_dict: Whether to return a `VideoCompressionPipelineOutput` instead of a tuple.

        Raises:
            ValueError: `output_type` is unknown.
            FsvError: A file is damaged, or the clip was compressed by another model.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        videos = [self.open_compressed(item) for item in _as_list(compressed)]
        decode = self._latent_windows if output_type == "latent" else self._decode_windows
        frames = _stack_clips([self._collect(decode(video), output_type) for video in videos])
        self.maybe_free_model_hooks()
        statistics = [compression_statistics(video) for video in videos]
        if not return_dict:
            return frames, videos, statistics
        return VideoCompressionPipelineOutput(frames=frames, compressed=videos, statistics=statistics)

    def open_compressed(self, compressed: CompressedVideo | str | Path) -> CompressedVideo:
        r"""Opens a compressed clip and makes sure that this pipeline's model can decode it.

        Args:
            compressed: A compressed clip, an `.fsv` file, or a `.pt` file of the original project.

        Raises:
            FsvError: The file is damaged, or the clip was compressed by another model.
        """
        config = self.vae.config
        if isinstance(compressed, (str, Path)):
            if Path(compressed).suffix == ".pt":
                compressed = read_original_pt(compressed, config.patch_size)
            else:
                compressed = CompressedVideo.load(compressed)
        header = compressed.header
        name = str(compressed.path or "the compressed clip")
        if (header.latent_channels, header.patch_size) != (config.latent_channels, config.patch_size):
            raise FsvError(
                f"{name}: latents of {header.latent_channels} channels and patches of {header.patch_size} pixels, the"
                f" model has {config.latent_channels} and {config.patch_size}"
            )
        check_model(header, config_fingerprint(config), self._model_name(), self._model_probe(), name)
        return compressed

    @torch.no_grad()
    def decompress_frames(self, compressed: CompressedVideo | str | Path) -> Iterator[np.ndarray]:
        r"""Decodes a compressed clip window by window, in constant memory.

        Args:
            compressed: A compressed clip, an `.fsv` file, or a `.pt` file of the original project.

        Yields:
            Frames `(t, H, W, C)` of uint8, the clip's next ones.
        """
        for frames in self._decode_windows(self.open_compressed(compressed)):
            pixels = (frames[0].float() / 2 + 0.5).clamp(0, 1) * 255
            yield pixels.round().byte().permute(1, 2, 3, 0).cpu().numpy()
        self.maybe_free_model_hooks()

    def decompress_file(
        self,
        compressed: CompressedVideo | str | Path,
        output: str | Path,
        fps: float | Fraction | None = None,
        audio_from: str | Path | None = None,
        overwrite: bool = False,
        **writer_options: Any,
    ) -> Path:
        r"""Decodes a compressed clip into a video file, an animation or a folder of images, in constant memory.

        A clip of one frame, such as a compressed photo, may become an image file again, too.

        Args:
            compressed: A compressed clip, an `.fsv` file, or a `.pt` file of the original project.
            output: The file, or folder of PNG images if its name has no ending; nothing is left there after an error.
            fps: Frame rate; by default the clip's own, or 30 where it has none.
            audio_from: Media file whose sound is carried over.
            overwrite: Whether `output` may be replaced.
            writer_options: Options of `diffusers_vidvae.media.VideoWriter`, such as `lossless` or `crf`.

        Raises:
            FsvError: The file is damaged, or the clip was compressed by another model.
            MediaError: `output` exists, cannot be written, or the options do not fit it.
            ValueError: Options of a video were given for an image.
        """
        from diffusers_vidvae.media import VideoWriter, save_image

        compressed = self.open_compressed(compressed)
        if compressed.header.num_frames == 1 and Path(output).suffix.lower() in IMAGE_SUFFIXES:
            options = {"fps": fps, "audio_from": audio_from, **writer_options}
            if given := [name for name, value in options.items() if value]:
                raise ValueError(f"{output}: an image takes no options of videos, got {', '.join(given)}.")
            [frames] = self.decompress_frames(compressed)
            save_image(frames[0], output, overwrite=overwrite)
            return Path(output)
        fps = fps or compressed.header.fps or UNKNOWN_FPS
        with VideoWriter(output, fps, audio_from=audio_from, overwrite=overwrite, **writer_options) as writer:
            for frames in self.decompress_frames(compressed):
                writer.write(frames)
        return Path(output)

    def _latent_windows(self, compressed: CompressedVideo) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields latents `(1, C, t, h, w)`, zeros for dropped frames, and keep mask `(1, t)` of every window."""
        for window in compressed.windows:
            if compressed.path is None:
                # What a file would hold, so that saving changes nothing.
                window = window.quantized(compressed.header.quantization)
            channels, _, height, width = window.latents.shape
            latents = window.latents.new_zeros(1, channels, window.num_frames, height, width)
            latents[0, :, window.positions] = window.latents
            yield latents, window.keep_mask[None]

    def _decode_windows(self, compressed: CompressedVideo) -> Iterator[torch.Tensor]:
        """Yields the clip's frames `(1, C, t, H, W)` in [-1, 1], at the clip's own size."""
        header, device = compressed.header, self._execution_device
        pieces = (
            (latents.to(device), keep_mask.to(device)) for latents, keep_mask in self._latent_windows(compressed)
        )
        with self.progress_bar(total=header.num_frames) as progress_bar:
            decoded = self.vae.decode_stream(pieces, header.clip_num_frames)
            for frames in _tiled(decoded, self.vae, header.tile):
                yield _to_clip_size(frames, header)
                progress_bar.update(frames.shape[2])

    def _collect(self, windows: Iterator[Any], output_type: str) -> Any:
        """Joins the windows of a clip: a list of images, or an array or tensor with a batch dimension of one."""
        if output_type == "latent":
            return torch.cat([latents for latents, _ in windows], dim=2)
        parts = [self.video_processor.postprocess_video(frames, output_type) for frames in windows]
        if output_type == "pil":
            return [image for (images,) in parts for image in images]
        return np.concatenate(parts, axis=1) if output_type == "np" else torch.cat(parts, dim=1)

    # Both ways

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        video: ClipInput,
        mode: str = "systematic",
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quantize: str = "bf16",
        size_mode: str = "auto",
        fps: float | Fraction | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> VideoCompressionPipelineOutput | tuple:
        r"""Compresses clips and decodes what an `.fsv` file of them would hold.

        Args:
            video: As `compress` takes it, like the other arguments that it has.
            mode: How frames are chosen.
            num_frames: Frames to keep of every clip.
            rate: Share of the frames to keep.
            threshold: Probability above which mode `"threshold"` keeps a frame.
            generator: Source of the randomness of the choice.
            quantize: How latents are stored.
            size_mode: How frames are brought to a size that the model takes.
            fps: Frame rate.
            output_type: As `decompress` takes it.
            return_dict: Whether to return a `VideoCompressionPipelineOutput` instead of a tuple.
            callback_on_step_end: Called after every compressed window.
            callback_on_step_end_tensor_inputs: Which tensors it is given.

        Examples:

        Returns:
            Frames, compressed clips and their statistics.
        """
        compressed = self.compress(
            video,
            mode=mode,
            num_frames=num_frames,
            rate=rate,
            threshold=threshold,
            generator=generator,
            quantize=quantize,
            size_mode=size_mode,
            fps=fps,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        return self.decompress(compressed, output_type, return_dict)


def compression_statistics(compressed: CompressedVideo) -> dict[str, Any]:
    r"""`CompressedVideo.statistics` of a clip and its `value_ratio`, pixel values per latent value."""
    return compressed.statistics() | {"value_ratio": 3 / compressed.values_per_pixel}


def _to_model_size(frames: torch.Tensor, header: FsvHeader) -> torch.Tensor:
    """Brings frames `(1, C, T, H, W)` of the clip's size to the model's."""
    height, width = header.model_height, header.model_width
    if header.size_fit == "resize":
        return _resize(frames, height, width)
    padding = (0, width - header.width, 0, height - header.height, 0, 0)
    return F.pad(frames, padding, mode="replicate") if any(padding) else frames


def _to_clip_size(frames: torch.Tensor, header: FsvHeader) -> torch.Tensor:
    """Inverse of `_to_model_size`."""
    if header.size_fit == "resize":
        return _resize(frames, header.height, header.width)
    return frames[..., : header.height, : header.width]


def _resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if frames.shape[3:] == (height, width):
        return frames
    images = frames.transpose(1, 2).flatten(0, 1).float()  # (B * T, C, H, W)
    images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return images.unflatten(0, (frames.shape[0], frames.shape[2])).transpose(1, 2)


def _tiled(windows: Iterator[Any], vae: FrameSelectVAE, tile: TileLayout | None) -> Iterator[Any]:
    """What the model yields with its tiling set; while nothing is computed the model is as it was."""
    while True:
        with _tiling(vae, tile):
            window = next(windows, None)
        if window is None:
            return
        yield window


@contextmanager
def _tiling(vae: FrameSelectVAE, tile: TileLayout | None) -> Iterator[None]:
    """Turns the model's tiling on or off inside the block."""
    state = {name: getattr(vae, name) for name in ("use_tiling", "tile_sample_size", "tile_overlap")}
    try:
        if tile is None:
            vae.disable_tiling()
        else:
            vae.enable_tiling(tile.size, tile.overlap / tile.size, vae.tiles_per_batch)
        yield
    finally:
        for name, value in state.items():
            setattr(vae, name, value)


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _stack_clips(clips: list) -> Any:
    """One array or tensor where all clips, with a batch dimension of one, have one shape; otherwise a list."""
    if isinstance(clips[0], list):
        return clips
    if len({clip.shape for clip in clips}) > 1:
        return [clip[0] for clip in clips]
    return torch.cat(clips) if isinstance(clips[0], torch.Tensor) else np.concatenate(clips)
