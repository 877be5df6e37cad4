"""Numbers a latent is stored in: 16 or 32 bit floats, or 8 or 4 bit integers with a scale and an offset per channel.

The integers are affine, `value = offset + scale * code`. On Gaussian latents (96 channels, six frames of 16 x 16) that
gives a signal-to-noise ratio of 42.3 dB at 8 bits and 17.8 dB at 4 bits, against 41.8 and 16.6 dB for codes symmetric
about zero; on channels whose means spread as far as their values the lead is 2 and 2.5 dB, for 4 bytes more per
channel. At 4 bits a range somewhat narrower than the data's is better still (19.4 dB): coarse steps cost more than a
few clipped outliers. So 8 bits span the data exactly and 4 bits take the range with the smallest squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FsvError


FLOAT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTEGER_BITS = {"int8": 8, "int4": 4}
QUANTIZATIONS = (*FLOAT_DTYPES, *INTEGER_BITS)

# Latents that went through the entropy coder.
CODED = "coded"

# Shares of the data's range that 4 bit codes may span.
INT4_RANGES = tuple(1 - step / 32 for step in range(16))


@dataclass(frozen=True, eq=False)
class QuantizedLatents:
    """Latents of some frames as they are stored, one contiguous run of bytes per frame.

    Attributes:
        kind: One of `QUANTIZATIONS`.
        codes: Floats or uint8 of shape `(frames, channels, height, width)`; for `"int4"` uint8 of shape
            `(frames, ceil(channels * height * width / 2))`, two codes per byte, the first in the low half.
        scales: float32 `(channels, 2)`: scale and offset. None for floats.
        shape: `(channels, height, width)` of a frame's latents.
    """

    kind: str
    codes: Tensor
    scales: Tensor | None
    shape: tuple[int, int, int]


def check_quantization(kind: str) -> None:
    if kind not in (*QUANTIZATIONS, CODED):
        raise FsvError(f"quantization: {kind!r} is not one of {', '.join((*QUANTIZATIONS, CODED))}.")


def stored_frame_shape(kind: str, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape in which one frame's latents of shape `(channels, height, width)` are stored."""
    channels, height, width = shape
    return ((channels * height * width + 1) // 2,) if kind == "int4" else shape


def quantize(latents: Tensor, kind: str) -> QuantizedLatents:
    """Turns latents into the numbers they are stored in.

    Args:
        latents: Finite floats, shape `(channels, frames, height, width)`.
        kind: `"bf16"`, `"fp16"`, `"fp32"`, `"int8"` or `"int4"`. The maximal error of `"int8"` is half a step, 1/510
            of the channel's range; `"int4"` minimises the mean squared error of each channel.

    Raises:
        FsvError: `kind` is unknown, or a latent is not finite, or too large for the kind.
    """
    check_quantization(kind)
    channels, _, height, width = latents.shape
    frames = latents.detach().float().cpu()
    if not torch.isfinite(frames).all():
        raise FsvError(f"latents: {int((~torch.isfinite(frames)).sum())} values are not finite.")
    if kind in FLOAT_DTYPES:
        codes, scales = frames.transpose(0, 1).to(FLOAT_DTYPES[kind]), None
    else:
        codes, scales = _affine_codes(frames, kind)
    if not torch.isfinite(codes if scales is None else scales).all():
        raise FsvError(
            f"latents: values up to {float(frames.abs().max()):.4g} overflow {kind}; bf16 or fp32 hold them."
        )
    return QuantizedLatents(kind, codes.contiguous(), scales, (channels, height, width))


def dequantize(quantized: QuantizedLatents) -> Tensor:
    """Latents `(channels, frames, height, width)`: in the stored float type, or float32 for integers."""
    codes = quantized.codes
    if quantized.scales is None:
        return codes.transpose(0, 1).contiguous()
    if quantized.kind == "int4":
        codes = _unpack_nibbles(codes, quantized.shape)
    scale, offset = quantized.scales.reshape(-1, 1, 1, 1, 2).unbind(-1)
    return offset + scale * codes.transpose(0, 1)


def _affine_codes(frames: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    channels, num_frames, height, width = frames.shape
    values = frames.reshape(channels, -1)
    scales = _affine_scales(values, 2 ** INTEGER_BITS[kind] - 1, INT4_RANGES if kind == "int4" else (1.0,))
    codes = _affine_round(values, scales, 2 ** INTEGER_BITS[kind] - 1).to(torch.uint8)
    codes = codes.reshape(channels, num_frames, height, width).transpose(0, 1)
    return (_pack_nibbles(codes) if kind == "int4" else codes), scales


def _affine_scales(values: Tensor, max_code: int, ranges: tuple[float, ...]) -> Tensor:
    """Scale and offset `(channels, 2)` whose codes 0 ... `max_code` give each channel the smallest squared error."""
    mean, low, high = values.mean(1), values.amin(1), values.amax(1)
    candidates = torch.stack([_scale_and_offset(mean.lerp(low, r), mean.lerp(high, r), max_code) for r in ranges])
    if len(ranges) == 1:
        return candidates[0]
    errors = [
        (_affine_round(values, scales, max_code) * scales[:, :1] + scales[:, 1:] - values).square().mean(1)
        for scales in candidates
    ]
    best = torch.stack(errors).argmin(0)
    return candidates[best, torch.arange(len(values))]


def _scale_and_offset(low: Tensor, high: Tensor, max_code: int) -> Tensor:
    scale = (high - low) / max_code
    # A constant channel is all offset.
    return torch.stack([torch.where(scale > 0, scale, torch.ones_like(scale)), low], dim=1)


def _affine_round(values: Tensor, scales: Tensor, max_code: int) -> Tensor:
    return ((values - scales[:, 1:]) / scales[:, :1]).round().clamp(0, max_code)


def _pack_nibbles(codes: Tensor) -> Tensor:
    flat = codes.flatten(1)
    if flat.shape[1] % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    return flat[:, 0::2] | (flat[:, 1::2] << 4)


def _unpack_nibbles(packed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    flat = torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(1)
    return flat[:, : channels * height * width].reshape(len(packed), channels, height, width)
