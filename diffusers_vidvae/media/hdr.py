"""Tone mapping: high dynamic range pictures to what an ordinary screen shows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


# ITU-R BT.2408: diffuse white of HDR programmes, and the peak most of them are mastered for, in cd/m2.
REFERENCE_WHITE = 203.0
PEAK = 1000.0

# ITU-R BT.2087: linear BT.2020 to linear BT.709.
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)

# Below this share of white nothing changes; highlights above are compressed into the rest.
_KNEE = 0.6
_OUTPUT_STEPS = 4096


def tone_map(image: NDArray[np.uint16], transfer: str, wide_gamut: bool) -> NDArray[np.uint8]:
    r"""Maps a PQ (SMPTE ST 2084) or HLG (ARIB STD-B67) picture to 8-bit sRGB.

    Diffuse white becomes white's neighbour; highlights up to 1000 cd/m2 roll off towards white with their hue kept.

    Args:
        image: Non-linear RGB `(H, W, 3)`, uint16 over the full range.
        transfer: "pq" or "hlg".
        wide_gamut: Whether the primaries are BT.2020's, to be turned into BT.709's.
    """
    light = np.take(_decoding_table(transfer), np.moveaxis(image, 2, 0).reshape(3, -1))  # (3, H*W)
    if transfer == "hlg":
        # BT.2100's system gamma for a 1000 cd/m2 screen.
        light *= (_BT2020_LUMINANCE @ light) ** 0.2 * np.float32(PEAK / REFERENCE_WHITE)
    if wide_gamut:
        light = _BT2020_TO_BT709 @ light
    brightest = np.maximum(light.max(axis=0), 1e-6)
    light *= _roll_off(brightest) / brightest
    np.clip(light, 0, 1, out=light)
    steps = (light * np.float32(_OUTPUT_STEPS - 1) + np.float32(0.5)).astype(np.uint16)
    return np.ascontiguousarray(np.take(_encoding_table(), steps).T).reshape(image.shape)


def _roll_off(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Extended Reinhard above the knee: slope 1 at the knee, and the peak becomes 1."""
    peak = (PEAK / REFERENCE_WHITE - _KNEE) / (1 - _KNEE)
    excess = np.maximum(level - _KNEE, 0) / (1 - _KNEE)
    return np.minimum(level, _KNEE) + (1 - _KNEE) * excess * (1 + excess / peak**2) / (1 + excess)


@lru_cache(maxsize=2)
def _decoding_table(transfer: str) -> NDArray[np.float32]:
    """Linear light of all code values: for PQ as a multiple of reference white, for HLG of the scene in [0, 1]."""
    code = np.linspace(0, 1, 65536)
    if transfer == "pq":
        power = code ** (1 / 78.84375)
        linear = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        return (10_000 / REFERENCE_WHITE * linear ** (1 / 0.1593017578125)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _encoding_table() -> NDArray[np.uint8]:
    linear = np.linspace(0, 1, _OUTPUT_STEPS)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)
