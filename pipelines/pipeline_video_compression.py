r"""Clips to compressed latents and back."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging, replace_example_docstring
from diffusers.video_processor import VideoProcessor

from diffusers_vidvae.autoencoders import AnyVideoAutoencoder
from diffusers_vidvae.autoencoders.latents_basis import axes_cycle
from diffusers_vidvae.autoencoders.memory import plan_windows
from diffusers_vidvae.codec import (
    CODED,
    QUANTIZATIONS,
    CodedFsvReader,
    CodedFsvWriter,
    CompressedVideo,
    FsvError,
    FsvHeader,
    FsvWriter,
    LatentsBasis,
    LatentWindow,
    TileLayout,
    check_model,
    read_original_pt,
    weight_probe,
)
from diffusers_vidvae.codec.header import MAX_WINDOW_PIXELS
from diffusers_vidvae.files import check_output
from diffusers_vidvae.fingerprints import config_fingerprint, weights_sketch
from diffusers_vidvae.media.clip import Clip, ClipPiece
from diffusers_vidvae.media.clips import ClipInput, open_clips
from diffusers_vidvae.media.layouts import Layout, ValueRange
from diffusers_vidvae.media.transforms import resize
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.models.frame_selection import check_selection
from diffusers_vidvae.models.padding import pad_clip
from diffusers_vidvae.models.pixel_range import from_levels, to_levels

from .any_latents import EncodedWindow, decode_any, encode_any
from .callbacks import check_callback_inputs
from .compilation import CompileMixin
from .compression_budget import DEFAULT_QUALITY, Budget
from .compression_search import TargetSearch, remembering
from .encoded_clip import selection_options
from .output_videos import join_windows
from .pipeline_output import VideoCompressionPipelineOutput


if TYPE_CHECKING:
    from diffusers_vidvae.media.encoding import Codec, PixelFormat


logger = logging.get_logger(__name__)

SIZE_MODES = ("auto", "pad", "tile", "resize")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tiff")

# From how many seconds on a run is announced.
LONG_RUN = 180

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


class VideoCompressionPipeline(DiffusionPipeline, CompileMixin):
    r"""Compresses videos to the latents of the frames that `FrameSelectVAE` finds worth keeping, and back.

    Clips of any length run in windows of the model's `clip_num_frames`, no more than two of which are in memory, and
    the result does not depend on whether frames come from a file, an iterator or a tensor. Clips of any size are
    padded, tiled or resized to what the model takes, and come back at their own size.

    An `.fsv` file knows one frame rate. A file of variable frame rate keeps every frame and its duration, and comes
    back with its frames evenly spaced; `fps` resamples it by its timestamps instead.

    `FrameSelectVAE` may drop frames. Any other image or video autoencoder of diffusers or this package keeps all of
    its latents, and runs in chunks where these change nothing, whole otherwise.

    Args:
        vae: The autoencoder.
    """

    model_cpu_offload_seq = "vae"
    _callback_tensor_inputs = ["latents", "keep_probs", "keep_mask"]

    def __init__(self, vae: AnyVideoAutoencoder):
        super().__init__()
        self.register_modules(vae=vae)
        self.video_processor = VideoProcessor(do_resize=False)
        self._interrupt = False

    @property
    def selects_frames(self) -> bool:
        r"""Whether the autoencoder can drop frames."""
        return isinstance(self.vae, FrameSelectVAE)

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_inputs(
        self,
        mode: str | None,
        num_frames: int | None,
        rate: float | None,
        threshold: float,
        quantize: str | None,
        size_mode: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        check_selection(mode or "systematic", num_frames, rate, threshold)
        if size_mode not in SIZE_MODES:
            raise ValueError(f"`size_mode` must be one of {SIZE_MODES}, got {size_mode!r}.")
        if quantize is not None and quantize not in QUANTIZATIONS:
            raise ValueError(f"`quantize` must be one of {QUANTIZATIONS}, got {quantize!r}.")
        if not self.selects_frames:
            options = {"mode": mode, "num_frames": num_frames, "rate": rate}
            if given := [name for name, value in options.items() if value is not None]:
                raise ValueError(f"{type(self.vae).__name__} does not select frames, got {', '.join(given)}.")
            if size_mode not in ("auto", "pad"):
                raise ValueError(f"`size_mode` {size_mode!r} is for FrameSelectVAE, not {type(self.vae).__name__}.")
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    # Compression

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def compress(
        self,
        video: ClipInput,
        mode: str | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quality: float | None = None,
        target_size: int | None = None,
        target_bpp: float | None = None,
        target_psnr: float | None = None,
        quantize: str | None = None,
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
            mode: How frames are chosen, see `FrameSelectVAE.select_frames`. By default all frames are kept, or so many
                as `num_frames` or `rate` say at equal steps of the keep probabilities (`"systematic"`). Named without
                these, `"systematic"` keeps as many as the keep probabilities add up to.
            num_frames: Frames to keep of the whole clip, shared out among its windows, at least one each.
            rate: Share of the frames to keep, in (0, 1].
            threshold: Probability above which mode `"threshold"` keeps a frame.
            generator: Source of the randomness of `"bernoulli"`, and of `"systematic"` if given; a list has one for
                every clip.
            quality: Quality of the latents from 0 to 100. The noise that it adds is in proportion to the model's own
                error, about a seventh of it at 50, and ten times more or less for every 20; 30 by default.
            target_size: Bytes that the file may have; frames (unless chosen above) and step are then chosen for the
                best quality that fits. It keeps the latents of all frames in memory, as do the next two.
            target_bpp: The same as bits for each pixel of the clip.
            target_psnr: PSNR in dB to reach with the smallest file, as far as the model's error, for which the clip is
                decoded once, and the quantiser's tell; for models with a latents basis.
            quantize: Raw numbers instead, for training: `"bf16"`, `"fp16"`, `"fp32"`, `"int8"` or `"int4"`.
            size_mode: How frames of a size that the model does not take are brought to one that it does:
                `"pad"` (by repeating the last row and column), `"tile"` (padded, in blended tiles: those that the
                model's tiling was enabled with, or its `usual_tile`), `"resize"` (to `sample_size`, and back),
                `"auto"` (padded, and tiled if larger).
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
            ValueError: An argument or the clip is not as described, frames are smaller than a patch, or a target
                cannot be met; the message names the nearest that can.
            FsvError: `output` exists or cannot be written, or latents are not finite.
        """
        self.check_inputs(mode, num_frames, rate, threshold, quantize, size_mode, callback_on_step_end_tensor_inputs)
        budget = Budget(quantize, quality, target_size, target_bpp, target_psnr)
        channels = self.vae.config.in_channels if self.selects_frames else 3
        clips = open_clips(video, fps, layout=layout, value_range=value_range, channels=channels)
        generators = _generators_of_clips(generator, len(clips))
        if output is not None and len(clips) > 1:
            raise ValueError(f"`output` takes one clip, got a batch of {len(clips)}.")

        self._interrupt = False
        results = []
        for clip, clip_generator in zip(clips, generators, strict=True):
            if output is not None:
                # Refuses an existing file before frames are read.
                check_output(output, overwrite=overwrite, error=FsvError)
            keep_all = mode is None and num_frames is None and rate is None
            selection = selection_options(mode, num_frames, rate, threshold, clip_generator)
            if num_frames is not None:
                selection["total_frames"] = clip.count_frames()
            source: list[np.ndarray] = []
            if budget.target_psnr is not None:
                clip = remembering(clip, source)
            header, encoded = self._encode(clip, size_mode, budget)
            selection["clip_num_frames"] = header.clip_num_frames
            if budget.is_target:
                search = TargetSearch(self, clip, header, encoded, budget, selection, keep_all, source)
                results.append(search.run(output, overwrite))
                continue
            windows = self._select_windows(
                clip, encoded, selection, callback_on_step_end, callback_on_step_end_tensor_inputs
            )
            results.append(self._write(header, windows, output, overwrite))
        self.maybe_free_model_hooks()
        return results[0] if len(results) == 1 else results

    def compress_file(
        self,
        video: ClipInput,
        output: str | Path,
        overwrite: bool = False,
        mode: str | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quality: float | None = None,
        target_size: int | None = None,
        target_bpp: float | None = None,
        target_psnr: float | None = None,
        quantize: str | None = None,
        size_mode: str = "auto",
        fps: float | Fraction | None = None,
    ) -> CompressedVideo:
        r"""Compresses a clip into an `.fsv` file in constant memory; arguments and errors are those of `compress`."""
        compressed = self.compress(
            video,
            mode=mode,
            num_frames=num_frames,
            rate=rate,
            threshold=threshold,
            generator=generator,
            quality=quality,
            target_size=target_size,
            target_bpp=target_bpp,
            target_psnr=target_psnr,
            quantize=quantize,
            size_mode=size_mode,
            fps=fps,
            output=output,
            overwrite=overwrite,
        )
        return cast(CompressedVideo, compressed)

    def _encode(self, clip: Clip, size_mode: str, budget: Budget) -> tuple[FsvHeader, Iterator[EncodedWindow]]:
        """Header of a clip whose frames are still to be counted, and what the autoencoder makes of it."""
        if self.selects_frames:
            header = self.plan(clip, size_mode)
            return self._with_budget(header, budget), self._encode_frame_select(clip, header)
        sizes, encoded = encode_any(self.vae, clip, self._execution_device)
        header = FsvHeader(num_frames=0, height=clip.height, width=clip.width, fps=clip.fps, **sizes, **self._model())
        return self._with_budget(header, budget), encoded

    def _with_budget(self, header: FsvHeader, budget: Budget) -> FsvHeader:
        if budget.quantize is not None:
            return replace(header, quantization=budget.quantize, model_probe=self._model_probe())
        # Steps and channels' statistics are known once there is a basis; until then, these are placeholders.
        basis = self.latents_basis or LatentsBasis.of_channels(*np.ones((2, header.latent_channels)))
        quality = DEFAULT_QUALITY if budget.quality is None else budget.quality
        return self._with_basis(header, basis, quality)

    def _with_basis(self, header: FsvHeader, basis: LatentsBasis, quality: float) -> FsvHeader:
        sketch = weights_sketch(self.vae)
        return replace(
            header,
            quantization=CODED,
            step=basis.step(quality),
            basis=basis.name,
            channel_statistics=basis.channel_statistics,
            shared_channels=basis.cycle.shared,
            cycle_length=basis.cycle.length,
            model_sketch=() if sketch is None else tuple(max(-8.0, min(value, 8.0)) for value in sketch),
        )

    @property
    def latents_basis(self) -> LatentsBasis | None:
        r"""Axes that the model's config has for its latents."""
        return LatentsBasis.from_config(self.vae.config)

    def _write(
        self, header: FsvHeader, windows: Iterable[LatentWindow], output: str | Path | None, overwrite: bool
    ) -> CompressedVideo:
        """The clip in an `.fsv` file, or in memory."""
        if not header.is_coded:
            if output is None:
                kept = list(windows)
                return CompressedVideo(replace(header, num_frames=sum(window.num_frames for window in kept)), kept)
            with FsvWriter(output, header, overwrite) as writer:
                for window in windows:
                    writer.write_window(window)
            return CompressedVideo.load(output)
        iterator = iter(windows)
        first = next(iterator)
        basis = self.latents_basis
        if basis is None:
            quality = LatentsBasis.of_channels(*np.ones((2, header.latent_channels))).quality(header.step)
            basis = LatentsBasis.of_latents(first.latents.double().numpy(), axes_cycle(self.vae))
            header = self._with_basis(header, basis, quality)
        with CodedFsvWriter(output, header, basis, overwrite) as coded:
            for window in chain([first], iterator):
                coded.write_window(window)
        reader = CodedFsvReader(coded.data if output is None else output)
        reader.basis = basis
        return CompressedVideo(reader.header, reader, None if output is None else Path(output))

    def _model(self) -> dict[str, Any]:
        """What a header says of the model."""
        return {
            "latent_dtype": str(self.vae.dtype).removeprefix("torch."),
            "model_id": self._model_name(),
            "model_hash": config_fingerprint(self.vae.config),
        }

    def plan(self, clip: Clip, size_mode: str = "auto") -> FsvHeader:
        r"""How `FrameSelectVAE` will take a clip: the size that its frames get, their tiles, and the windows.

        Args:
            clip: A clip that `open_clips` opened; it is not read.
            size_mode: As in `compress`.

        Returns:
            The header of its compressed file, without the number of frames and how latents are stored.

        Raises:
            ValueError: The model does not take frames of this size, or there is too little memory for one.
        """
        config = self.vae.config
        if min(clip.height, clip.width) < config.patch_size:
            raise ValueError(
                f"{clip.name}: frames of {clip.width}x{clip.height} are smaller than a patch of"
                f" {config.patch_size}x{config.patch_size}."
            )
        size_fit, (height, width), tile = self._fit_size(clip, size_mode)
        side = max(height, width) if tile is None else tile.size
        clip_num_frames, _ = plan_windows(self.vae, height, width, side, clip.name)
        if clip_num_frames < config.clip_num_frames:
            logger.info(
                f"{clip.name}: windows of {clip_num_frames} frames, not {config.clip_num_frames}, to save memory."
            )
        return FsvHeader(
            num_frames=0,
            height=clip.height,
            width=clip.width,
            model_height=height,
            model_width=width,
            clip_num_frames=clip_num_frames,
            latent_channels=config.latent_channels,
            latent_height=height // config.patch_size,
            latent_width=width // config.patch_size,
            fps=clip.fps,
            size_fit=size_fit,
            tile=tile,
            **self._model(),
        )

    def _fit_size(self, clip: Clip, size_mode: str) -> tuple[str, tuple[int, int], TileLayout | None]:
        """How the clip's frames become frames of the model, and the height and width of these."""
        config, vae = self.vae.config, self.vae
        if size_mode == "resize":
            return "resize", (config.sample_size, config.sample_size), None

        tile_size, tile_overlap = (vae.tile_sample_size, vae.tile_overlap) if vae.use_tiling else vae.usual_tile
        if size_mode == "auto":
            size_mode = "pad" if max(clip.height, clip.width) <= tile_size else "tile"
        least = config.patch_size if vae.takes_any_size else config.sample_size
        height, width = (
            max(-(-side // config.patch_size) * config.patch_size, least) for side in (clip.height, clip.width)
        )
        if size_mode == "tile":
            num_tokens = tile_size // config.patch_size
            overlap = min(round(tile_overlap * num_tokens), num_tokens - 1)
            return "tile", (height, width), TileLayout(tile_size, overlap * config.patch_size)
        if not vae.takes_any_size and max(height, width) > config.sample_size:
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
        if not self.selects_frames:
            return ()
        # Models without a learned fill have no such token; the first layer of their decoder stands for it.
        weight = getattr(self.vae.fill_token, "weight", self.vae.decoder.proj_in.weight)
        return () if weight.is_meta else weight_probe(weight.float())

    def _encode_frame_select(self, clip: Clip, header: FsvHeader) -> Iterator[EncodedWindow]:
        # A generator would hold the frames of one window until those of the next are there, too.
        pieces = map(partial(self._load_piece, header), clip.cut(header.clip_num_frames))
        encoded = self.vae.encode_stream(pieces, header.clip_num_frames)
        for output in _tiled(encoded, self.vae, header, clip.name):
            latents = output.latent_dist.mode()
            yield EncodedWindow(latents, latents.shape[2], output.keep_probs)

    def _load_piece(self, header: FsvHeader, piece: ClipPiece) -> torch.Tensor:
        return _to_model_size(piece.to_tensor().to(self._execution_device), header)

    def _select_windows(
        self,
        clip: Clip,
        encoded: Iterable[EncodedWindow],
        selection: dict[str, Any],
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> Iterator[LatentWindow]:
        start, started = 0, time.monotonic()
        if self.selects_frames:
            selected = self.vae.select_stream(encoded, **selection)
        else:
            selected = ((window, torch.ones(1, window.latents.shape[2], dtype=torch.bool)) for window in encoded)
        with self.progress_bar(total=clip.num_frames or float("inf")) as progress_bar:
            for index, (window, keep_mask) in enumerate(selected):
                latents = window.latents
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "keep_probs": window.keep_probs, "keep_mask": keep_mask}
                    inputs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    outputs = callback_on_step_end(self, index, start, inputs)
                    latents = outputs.get("latents", latents)
                    keep_mask = outputs.get("keep_mask", keep_mask)

                positions = keep_mask[0].nonzero()[:, 0].cpu()
                yield LatentWindow(
                    start=start,
                    num_frames=window.num_frames,
                    gaps=positions.diff(prepend=positions.new_zeros(1)),
                    latents=latents[0, :, positions.to(latents.device)].float().cpu(),
                )
                start += window.num_frames
                progress_bar.update(window.num_frames)
                if not index:
                    _announce_long_run("Compressing", time.monotonic() - started, start, clip.num_frames)
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
        if isinstance(compressed, (str, Path)):
            if Path(compressed).suffix == ".pt":
                compressed = read_original_pt(compressed, self.vae.config.get("patch_size", 16))
            else:
                compressed = CompressedVideo.load(compressed)
        header = compressed.header
        name = str(compressed.path or "the compressed clip")
        if self.selects_frames:
            self._check_sizes(header, name)
        if header.clip_num_frames * header.model_height * header.model_width > MAX_WINDOW_PIXELS:
            raise FsvError(
                f"{name}: clip_num_frames: windows of {header.clip_num_frames} frames of {header.model_width}x"
                f"{header.model_height} exceed {MAX_WINDOW_PIXELS} pixels."
            )
        sketch = weights_sketch(self.vae) if header.model_sketch else None
        fingerprint = config_fingerprint(self.vae.config)
        check_model(header, fingerprint, self._model_name(), self._model_probe(), name, sketch or ())
        if header.basis:
            self._give_basis(compressed, name)
        return compressed

    def _check_sizes(self, header: FsvHeader, name: str) -> None:
        """Holds what a file claims against the model, so that a small one cannot ask for any memory."""
        config = self.vae.config
        if (header.latent_channels, header.patch_size) != (config.latent_channels, config.patch_size):
            raise FsvError(
                f"{name}: latents of {header.latent_channels} channels and patches of {header.patch_size} pixels, the"
                f" model has {config.latent_channels} and {config.patch_size}."
            )
        longest = max(config.clip_num_frames, config.max_num_frames)
        if header.clip_num_frames > longest:
            raise FsvError(
                f"{name}: clip_num_frames: windows of {header.clip_num_frames} frames, the model takes {longest}."
            )
        largest = max(self.vae.usual_tile[0], self.vae.tile_sample_size)
        if header.tile is not None and header.tile.size > largest:
            raise FsvError(
                f"{name}: tile_size: tiles of {header.tile.size} pixels exceed the model's {largest};"
                f" `vae.enable_tiling({header.tile.size})` allows them."
            )
        sides = {header.model_height, header.model_width}
        if header.tile is None and not self.vae.takes_any_size and sides != {config.sample_size}:
            raise FsvError(
                f"{name}: model_width: frames of {header.model_width}x{header.model_height} without tiles, the model"
                f" takes {config.sample_size}x{config.sample_size}."
            )

    def _give_basis(self, compressed: CompressedVideo, name: str) -> None:
        basis = self.latents_basis
        if basis is None or basis.name != compressed.header.basis:
            has = "none" if basis is None else basis.name
            raise FsvError(f"{name}: basis: written in the basis {compressed.header.basis}, the model has {has}.")
        if isinstance(compressed.windows, CodedFsvReader):
            compressed.windows.basis = basis

    @torch.no_grad()
    def decompress_frames(self, compressed: CompressedVideo | str | Path) -> Iterator[np.ndarray]:
        r"""Decodes a compressed clip window by window, in constant memory.

        Args:
            compressed: A compressed clip, an `.fsv` file, or a `.pt` file of the original project.

        Yields:
            Frames `(t, H, W, C)` of uint8, the clip's next ones.
        """
        for frames in self._decode_windows(self.open_compressed(compressed), as_levels=True):
            yield to_levels(frames[0]).permute(1, 2, 3, 0).cpu().numpy()
        self.maybe_free_model_hooks()

    def decompress_file(
        self,
        compressed: CompressedVideo | str | Path,
        output: str | Path,
        fps: float | Fraction | None = None,
        audio_from: str | Path | None = None,
        overwrite: bool = False,
        crf: int | None = None,
        lossless: bool = False,
        codec: "Codec | None" = None,
        preset: str = "medium",
        pixel_format: "PixelFormat | None" = None,
    ) -> Path:
        r"""Decodes a compressed clip into a video file, an animation or a folder of images, in constant memory.

        A clip of one frame, such as a compressed photo, may become an image file again, too.

        Args:
            compressed: A compressed clip, an `.fsv` file, or a `.pt` file of the original project.
            output: The file, or folder of PNG images if its name has no ending; nothing is left there after an error.
            fps: Frame rate; by default the clip's own, or 30 where it has none.
            audio_from: Media file whose sound is carried over.
            overwrite: Whether `output` may be replaced.
            crf: Quality of H.264 or VP9, lower is better; as in `diffusers_vidvae.media.VideoWriter`, like the rest.
            lossless: Whether no pixel may change, as FFV1 or lossless WebP.
            codec: Name of the video codec.
            preset: How long the encoder may take.
            pixel_format: How colours are stored.

        Raises:
            FsvError: The file is damaged, or the clip was compressed by another model.
            MediaError: `output` exists, cannot be written, or the options do not fit it.
            ValueError: Options of a video were given for an image.
        """
        from diffusers_vidvae.media import VideoWriter, save_image

        compressed = self.open_compressed(compressed)
        if compressed.header.num_frames == 1 and Path(output).suffix.lower() in IMAGE_SUFFIXES:
            options = {"fps": fps, "audio_from": audio_from, "crf": crf, "lossless": lossless, "codec": codec}
            if given := [name for name, value in options.items() if value]:
                raise ValueError(f"{output}: an image takes no options of videos, got {', '.join(given)}.")
            [frames] = self.decompress_frames(compressed)
            save_image(frames[0], output, overwrite=overwrite)
            return Path(output)
        fps = fps or compressed.header.fps or UNKNOWN_FPS
        with VideoWriter(
            output,
            fps,
            codec=codec,
            lossless=lossless,
            crf=crf,
            preset=preset,
            pixel_format=pixel_format,
            audio_from=audio_from,
            overwrite=overwrite,
        ) as writer:
            for frames in self.decompress_frames(compressed):
                writer.write(frames)
        return Path(output)

    def _latent_windows(self, compressed: CompressedVideo) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields latents `(1, C, t, h, w)`, zeros for dropped frames, and keep mask `(1, t)` of every window."""
        for window in compressed.windows:
            if compressed.path is None and not compressed.header.is_coded:
                # What a file would hold, so that saving changes nothing.
                window = window.quantized(compressed.header.quantization)
            if not self.selects_frames:
                yield window.latents[None], torch.ones(1, window.num_frames, dtype=torch.bool)
                continue
            channels, _, height, width = window.latents.shape
            latents = window.latents.new_zeros(1, channels, window.num_frames, height, width)
            latents[0, :, window.positions] = window.latents
            yield latents, window.keep_mask[None]

    def _decode_windows(self, compressed: CompressedVideo, as_levels: bool = False) -> Iterator[torch.Tensor]:
        """Yields the clip's frames `(1, C, t, H, W)` in [-1, 1], or levels where that is less, at the clip's size."""
        header, device = compressed.header, self._execution_device
        pieces = (
            (latents.to(device), keep_mask.to(device)) for latents, keep_mask in self._latent_windows(compressed)
        )
        with self.progress_bar(total=header.num_frames) as progress_bar:
            if self.selects_frames:
                as_levels = as_levels and header.size_fit != "resize"
                decoded = self.vae.decode_stream(pieces, header.clip_num_frames, as_levels)
                decoded = _tiled(decoded, self.vae, header, str(compressed.path or "the compressed clip"))
            else:
                decoded = decode_any(self.vae, pieces, header.height, header.width)
            started, seconds = time.monotonic(), None
            for frames in decoded:
                if seconds is None:
                    seconds = time.monotonic() - started
                    _announce_long_run("Decompressing", seconds, frames.shape[2], header.num_frames)
                yield _to_clip_size(frames, header)
                progress_bar.update(frames.shape[2])

    def _collect(self, windows: Iterator[Any], output_type: str) -> Any:
        """Joins the windows of a clip: a list of images, or an array or tensor with a batch dimension of one."""
        if output_type == "latent":
            return torch.cat([latents for latents, _ in windows], dim=2)
        parts = [self.video_processor.postprocess_video(frames, output_type) for frames in windows]
        joined = join_windows(parts, output_type)
        return joined if output_type == "pil" else joined[None]

    # Both ways

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        video: ClipInput,
        mode: str | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quality: float | None = None,
        target_size: int | None = None,
        target_bpp: float | None = None,
        target_psnr: float | None = None,
        quantize: str | None = None,
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
            quality: Quality of the latents, from 0 to 100.
            target_size: Bytes that a clip may cost.
            target_bpp: Bits for each pixel that it may cost.
            target_psnr: PSNR in dB to reach.
            quantize: Kind of raw numbers to store instead.
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
            quality=quality,
            target_size=target_size,
            target_bpp=target_bpp,
            target_psnr=target_psnr,
            quantize=quantize,
            size_mode=size_mode,
            fps=fps,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        return self.decompress(compressed, output_type, return_dict)


def _announce_long_run(name: str, seconds: float, num_done: int, num_frames: int | None) -> None:
    """Says how long a run will take that will take minutes, by its first window, and what would make it shorter."""
    if num_frames is None or num_done >= num_frames:
        return
    left = seconds * (num_frames - num_done) / num_done
    if left > LONG_RUN:
        logger.warning(
            f"{name} takes about {left / 60:.0f} minutes more; smaller frames take less, such as"
            " `size_mode='resize'` when compressing makes of them."
        )


def compression_statistics(compressed: CompressedVideo) -> dict[str, Any]:
    r"""`CompressedVideo.statistics` of a clip and its `value_ratio`, pixel values per latent value."""
    return compressed.statistics() | {"value_ratio": 3 / compressed.values_per_pixel}


def _to_model_size(frames: torch.Tensor, header: FsvHeader) -> torch.Tensor:
    """Brings frames `(1, C, T, H, W)` of the clip's size to the model's."""
    height, width = header.model_height, header.model_width
    if header.size_fit == "resize":
        return resize(from_levels(frames) if frames.dtype == torch.uint8 else frames.float(), height, width)
    return pad_clip(frames, (frames.shape[2], height, width))


def _to_clip_size(frames: torch.Tensor, header: FsvHeader) -> torch.Tensor:
    """Inverse of `_to_model_size`."""
    if header.size_fit == "resize":
        return resize(frames.float(), header.height, header.width)
    return frames[..., : header.height, : header.width]


def _tiled(windows: Iterator[Any], vae: FrameSelectVAE, header: FsvHeader, name: str) -> Iterator[Any]:
    """What the model yields with its tiling set; while nothing is computed the model is as it was."""
    height, width, tile = header.model_height, header.model_width, header.tile
    _, num_tiles = plan_windows(vae, height, width, max(height, width) if tile is None else tile.size, name)
    while True:
        with _tiling(vae, tile, num_tiles):
            window = next(windows, None)
        if window is None:
            return
        yield window


@contextmanager
def _tiling(vae: FrameSelectVAE, tile: TileLayout | None, num_tiles: int) -> Iterator[None]:
    """Turns the model's tiling on, with so many tiles at once, or off inside the block."""
    names = ("use_tiling", "tile_sample_size", "tile_overlap", "tiles_per_batch")
    state = {name: getattr(vae, name) for name in names}
    try:
        if tile is None:
            vae.disable_tiling()
        else:
            vae.enable_tiling(tile.size, tile.overlap / tile.size, num_tiles)
        yield
    finally:
        for name, value in state.items():
            setattr(vae, name, value)


def _generators_of_clips(
    generator: torch.Generator | list[torch.Generator] | None, num_clips: int
) -> list[torch.Generator | None]:
    """A generator for every clip, the same for all if it is one."""
    if not isinstance(generator, list):
        return [generator] * num_clips
    if len(generator) != num_clips:
        raise ValueError(f"A list of generators must have one for each of {num_clips} clips, got {len(generator)}.")
    return list(generator)


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _stack_clips(clips: list) -> Any:
    """One array or tensor where all clips, with a batch dimension of one, have one shape; otherwise a list."""
    if isinstance(clips[0], list):
        return clips
    if len({clip.shape for clip in clips}) > 1:
        return [clip[0] for clip in clips]
    return torch.cat(clips) if isinstance(clips[0], torch.Tensor) else np.concatenate(clips)
