"""What an `.fsv` file says of its clip, and the model that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from diffusers_vidvae.fingerprints import SKETCH_LENGTH, same_sketch

from .axes_cycle import AxesCycle
from .errors import FsvError
from .quantization import CODED, check_quantization


FORMAT_VERSION = 1

MAX_FRAMES = 1 << 24
MAX_CLIP_FRAMES = 1 << 16
MAX_SIDE = 1 << 15
MAX_PIXELS = 1 << 27
MAX_CHANNELS = 1 << 12
MAX_TEXT = 512
MAX_PROBES = 16

# Pixels of a window, so that a small file cannot ask for any memory.
MAX_WINDOW_PIXELS = 1 << 29

SIZE_FITS = ("pad", "resize", "tile")
LATENT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TileLayout:
    """Square tiles in which the model saw each frame.

    Attributes:
        size: Side of a tile, in pixels.
        overlap: Pixels that neighbouring tiles share, less than `size`.
    """

    size: int
    overlap: int


@dataclass(frozen=True, kw_only=True)
class FsvHeader:
    """What an `.fsv` file says of its clip.

    Attributes:
        model_id: Name of the model that wrote the latents, as it was loaded: a Hub id or a folder.
        model_hash: `config_fingerprint` of its config; empty when unknown.
        model_probe: Some of its learned numbers (`weight_probe`), which tell two trainings of one config apart.
        num_frames: Frames of the clip. 0 lets `FsvWriter` count the frames of the windows it is given.
        height: Height in pixels at which the clip is shown.
        width: Width in pixels at which the clip is shown.
        model_height: Height in pixels of the frames that the model saw, a multiple of `latent_height`.
        model_width: Width in pixels of the frames that the model saw, a multiple of `latent_width`.
        size_fit: How `height x width` became `model_height x model_width`: `"pad"` (below and on the right),
            `"resize"`, or `"tile"` (padded likewise, then cut into tiles, whose latents are stored as one map).
        tile: The tiles, for `"tile"` only.
        fps: Frames per second; None when unknown.
        clip_num_frames: Frames of a window; no window covers more.
        latent_channels: Channels of the latents.
        latent_height: Height of the latents.
        latent_width: Width of the latents.
        latent_dtype: Type in which the model computed the latents: `"float32"`, `"bfloat16"` or `"float16"`.
        quantization: Type in which they are stored, one of `QUANTIZATIONS`, or `"coded"`.
        step: Step of the quantiser of coded latents, a float32.
        basis: Name of the model's `LatentsBasis` of coded latents; empty for their channels as they are.
        channel_statistics: Mean and deviation of every channel, of coded latents without basis.
        windows_per_group: Windows after which coded latents start anew.
        shared_channels: Last channels of coded latents, in which axes take turns (`AxesCycle.shared`); 0 for none.
        cycle_length: After how many frames it is an axis's turn again; 1 without shared channels.
        model_sketch: `weights_sketch` of the model, with coded latents; empty when unknown.
        sha256: Checksum of the file, 64 hexadecimal digits; empty until the file is written.

    Raises:
        FsvError: A field is out of its limits or contradicts another one; the message names it.
    """

    num_frames: int
    height: int
    width: int
    model_height: int
    model_width: int
    clip_num_frames: int
    latent_channels: int
    latent_height: int
    latent_width: int
    fps: Fraction | None = None
    size_fit: str = "pad"
    tile: TileLayout | None = None
    quantization: str = "bf16"
    latent_dtype: str = "float32"
    model_id: str = ""
    model_hash: str = ""
    model_probe: tuple[float, ...] = ()
    step: float = 0.0
    basis: str = ""
    channel_statistics: tuple[tuple[float, float], ...] = ()
    windows_per_group: int = 8
    shared_channels: int = 0
    cycle_length: int = 1
    model_sketch: tuple[float, ...] = ()
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_integer("num_frames", self.num_frames, 0, MAX_FRAMES)
        _check_integer("clip_num_frames", self.clip_num_frames, 1, MAX_CLIP_FRAMES)
        _check_integer("latent_channels", self.latent_channels, 1, MAX_CHANNELS)
        for name in ("height", "width", "model_height", "model_width", "latent_height", "latent_width"):
            _check_integer(name, getattr(self, name), 1, MAX_SIDE)
        self._check_sizes()
        self._check_tile()
        self._check_fps()
        check_quantization(self.quantization)
        _check_choice("latent_dtype", self.latent_dtype, LATENT_DTYPES)
        _check_text("model_id", self.model_id, MAX_TEXT)
        _check_digest("model_hash", self.model_hash)
        _check_digest("sha256", self.sha256)
        self._check_probe()
        if self.is_coded:
            self._check_coding()

    @property
    def is_coded(self) -> bool:
        """Whether latents went through the entropy coder."""
        return self.quantization == CODED

    @property
    def cycle(self) -> AxesCycle:
        """The axes that the channels of each frame show."""
        return AxesCycle(self.latent_channels, self.shared_channels, self.cycle_length)

    @property
    def coder(self) -> int:
        """Number of the entropy coder."""
        return 2 if self.shared_channels else 1

    @property
    def patch_size(self) -> int:
        """Side in pixels of the square that one latent stands for."""
        return self.model_height // self.latent_height

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of the latents of a frame."""
        return self.latent_channels, self.latent_height, self.latent_width

    def _check_sizes(self) -> None:
        _check_choice("size_fit", self.size_fit, SIZE_FITS)
        for prefix in ("", "model_"):
            height, width = getattr(self, f"{prefix}height"), getattr(self, f"{prefix}width")
            if height * width > MAX_PIXELS:
                raise FsvError(f"{prefix}width: {height} x {width} pixels are more than {MAX_PIXELS}.")
        patch_size = self.patch_size
        if self.model_height != patch_size * self.latent_height or self.model_width != patch_size * self.latent_width:
            raise FsvError(
                f"latent_width: {self.latent_height} x {self.latent_width} latents do not divide "
                f"{self.model_height} x {self.model_width} pixels into square patches."
            )
        if self.size_fit != "resize" and (self.height > self.model_height or self.width > self.model_width):
            raise FsvError(
                f"model_width: {self.height} x {self.width} pixels cannot be padded "
                f"to {self.model_height} x {self.model_width}."
            )

    def _check_tile(self) -> None:
        if (self.tile is not None) != (self.size_fit == "tile"):
            raise FsvError(f"tile: {self.tile} with size_fit {self.size_fit!r}; tiles go with 'tile' only.")
        if self.tile is not None:
            _check_integer("tile_size", self.tile.size, 1, MAX_SIDE)
            _check_integer("tile_overlap", self.tile.overlap, 0, self.tile.size - 1)

    def _check_fps(self) -> None:
        if self.fps is None:
            return
        if not isinstance(self.fps, Fraction):
            raise FsvError(f"fps: expected a Fraction or None, got {self.fps!r}.")
        if not (0 < self.fps.numerator < 1 << 31 and self.fps.denominator < 1 << 31):
            raise FsvError(f"fps: {self.fps} is not a positive ratio of numbers below 2^31.")

    def _check_probe(self) -> None:
        if len(self.model_probe) > MAX_PROBES or not all(abs(value) < 1e30 for value in self.model_probe):
            raise FsvError(f"model_probe: expected at most {MAX_PROBES} finite numbers.")

    def _check_coding(self) -> None:
        _check_integer("windows_per_group", self.windows_per_group, 1, 255)
        # Refuses numbers that contradict each other.
        _ = self.cycle
        if not 0 < self.step < float("inf") or self.step != float(np.float32(self.step)):
            raise FsvError(f"step: {self.step!r} is not a positive float32.")
        if not re.fullmatch(r"([0-9a-f]{16})?", self.basis):
            raise FsvError(f"basis: {self.basis[:32]!r} is not 16 hexadecimal digits.")
        statistics = np.array(self.channel_statistics, dtype=np.float64).reshape(-1, 2)
        if len(statistics) != (0 if self.basis else self.latent_channels):
            raise FsvError(
                f"channel_statistics: {len(statistics)} for {self.latent_channels} channels with basis {self.basis!r}."
            )
        if not np.isfinite(statistics).all() or (statistics[:, 1] <= 0).any():
            raise FsvError("channel_statistics: a value is not finite, or a deviation not positive.")
        if len(self.model_sketch) not in (0, SKETCH_LENGTH) or not all(abs(v) <= 8 for v in self.model_sketch):
            raise FsvError(f"model_sketch: expected {SKETCH_LENGTH} numbers of at most 8.")

    def to_metadata(self) -> dict[str, str]:
        """The header as the strings that the file holds, the version first and the checksum last."""
        metadata = {"format": "fsv", "version": str(FORMAT_VERSION)}
        for name in (item.name for item in fields(self) if item.name not in (*_CODED_FIELDS, "tile", "sha256")):
            value = getattr(self, name)
            if name == "model_probe":
                value = " ".join(f"{number:.4g}" for number in value)
            if value is not None and value != "":
                metadata[name] = str(value)
        if self.tile is not None:
            metadata |= {"tile_size": str(self.tile.size), "tile_overlap": str(self.tile.overlap)}
        return metadata | {"sha256": self.sha256}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> FsvHeader:
        """Reads what `to_metadata` made.

        Raises:
            FsvError: A field is missing, unknown, malformed or out of its limits, or the version is another one.
        """
        values = _check_format(metadata)
        if not values.get("sha256"):
            raise FsvError("sha256: missing.")
        parsed: dict[str, Any] = {name: _parse_field(name, text) for name, text in values.items()}
        if "tile_size" in parsed or "tile_overlap" in parsed:
            parsed["tile"] = TileLayout(*(_take(parsed, name) for name in ("tile_size", "tile_overlap")))
        required = (item.name for item in fields(cls) if item.name in _INTEGERS)
        for name in (*required, "size_fit", "quantization", "latent_dtype"):
            if name not in parsed:
                raise FsvError(f"{name}: missing.")
        header = cls(**parsed)
        if header.num_frames < 1:
            raise FsvError("num_frames: 0 frames.")
        return header


_CODED_FIELDS = (
    "step",
    "basis",
    "channel_statistics",
    "windows_per_group",
    "shared_channels",
    "cycle_length",
    "model_sketch",
)
_INTEGERS = (
    "num_frames",
    "height",
    "width",
    "model_height",
    "model_width",
    "clip_num_frames",
    "latent_channels",
    "latent_height",
    "latent_width",
    "tile_size",
    "tile_overlap",
)
_TEXTS = ("size_fit", "quantization", "latent_dtype", "model_id", "model_hash", "sha256")


def weight_probe(weight: Tensor, count: int = 4) -> tuple[float, ...]:
    """The first numbers of a learned tensor to four digits, for `FsvHeader.model_probe`."""
    return tuple(float(f"{value:.4g}") for value in weight.detach().flatten()[:count].tolist())


def check_model(
    header: FsvHeader,
    model_hash: str,
    model_id: str = "",
    model_probe: Sequence[float] = (),
    name: str = "video",
    model_sketch: Sequence[float] = (),
) -> None:
    """Refuses latents of another model.

    What is unknown on either side (an empty hash or probe) is not compared. Model ids are not compared either: one
    model has many names. Probes may differ by 1 % of their largest number, the rounding of 16 bit weights.

    Args:
        header: Header of the compressed video.
        model_hash: `config_fingerprint` of the model that is to decode it.
        model_id: The model's name, for the message.
        model_probe: `weight_probe` of the same weight that was probed when writing.
        name: The file's name, for the message.
        model_sketch: `weights_sketch` of the model.

    Raises:
        FsvError: The configs or the probed weights differ.
    """
    models = f"written by {header.model_id or 'a model'!r}, to be read by {model_id or 'a model'!r}"
    if header.model_hash and model_hash and header.model_hash != model_hash:
        raise FsvError(
            f"{name}: model_hash: {header.model_hash[:12]} is not this model's {model_hash[:12]} ({models})."
        )
    if header.model_sketch and model_sketch and not same_sketch(header.model_sketch, model_sketch):
        raise FsvError(f"{name}: model_sketch: same config, other weights ({models}).")
    if not header.model_probe or not model_probe:
        return
    largest = max(abs(value) for value in (*header.model_probe, *model_probe))
    same_count = len(header.model_probe) == len(model_probe)
    if not same_count or any(
        abs(a - b) > 0.01 * largest for a, b in zip(header.model_probe, model_probe, strict=True)
    ):
        raise FsvError(f"{name}: model_probe: same config, other weights ({models}).")


def _check_format(metadata: Mapping[str, str]) -> dict[str, str]:
    values = dict(metadata)
    if values.pop("format", None) != "fsv":
        raise FsvError("format: not a compressed video.")
    version = values.pop("version", None)
    if version != str(FORMAT_VERSION):
        raise FsvError(f"version: {version!r} cannot be read, only {FORMAT_VERSION}.")
    return values


def _take(parsed: dict[str, Any], name: str) -> Any:
    if name not in parsed:
        raise FsvError(f"{name}: missing.")
    return parsed.pop(name)


def _parse_field(name: str, text: str) -> Any:
    if name in _INTEGERS:
        if not re.fullmatch(r"[0-9]{1,10}", text):
            raise FsvError(f"{name}: {text[:32]!r} is not a whole number of at most ten digits.")
        return int(text)
    if name in _TEXTS:
        return text
    if name == "fps":
        if not re.fullmatch(r"[1-9][0-9]{0,9}(/[1-9][0-9]{0,9})?", text):
            raise FsvError(f"fps: {text[:32]!r} is not a ratio of whole numbers.")
        return Fraction(text)
    if name == "model_probe":
        return tuple(_parse_number(name, part) for part in text.split(" "))
    raise FsvError(f"{name[:64]}: unknown field.")


def _parse_number(name: str, text: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,16}(\.[0-9]{1,16})?(e[+-]?[0-9]{1,3})?", text):
        raise FsvError(f"{name}: {text[:32]!r} is not a number.")
    return float(text)


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise FsvError(f"{name}: {value!r} is not a whole number from {low} to {high}.")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise FsvError(f"{name}: {value!r} is not one of {', '.join(allowed)}.")


def _check_text(name: str, value: Any, max_length: int) -> None:
    if not isinstance(value, str) or len(value) > max_length or not value.isprintable():
        raise FsvError(f"{name}: expected at most {max_length} printable characters.")


def _check_digest(name: str, value: Any) -> None:
    if not isinstance(value, str) or (value and not re.fullmatch(r"[0-9a-f]{64}", value)):
        raise FsvError(f"{name}: expected 64 hexadecimal digits.")
