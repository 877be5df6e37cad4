"""Version 2 of the `.fsv` file: coded latents.

    magic       8 bytes, of which the first is no text and the others notice changed line ends, as in PNG
    version     1 byte, 2
    coder       1 byte, the number of the entropy coder
    length      2 bytes, of the header
    header      sizes, step, fingerprints (`_FIXED`); by coder 2 the cycle (`_CYCLE`); texts and statistics of channels
    groups      coded latents of `windows_per_group` windows each, the last may have fewer
    index       bytes of every group; frames, kept frames and which ones of every window; deflated
    trailer     windows, groups, bytes of the index and of the inflated index, SHA-256 of all before it

All numbers are little-endian. What is known only at the end stands at the end, so that files are written in one go.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from math import comb

import numpy as np

from .entropy_coder import read_varint, write_varint
from .errors import FsvError
from .header import LATENT_DTYPES, MAX_FRAMES, MAX_WINDOW_PIXELS, SIZE_FITS, FsvHeader, TileLayout
from .quantization import CODED
from .selections import WindowSelections


MAGIC = b"\x89FSV\r\n\x1a\n"
VERSION = 2
CODERS = (1, 2)

_FIXED = struct.Struct("<II HHHH I HHH BB HH f B B 32s 8s 8h H")
_CYCLE = struct.Struct("<HB")
_TRAILER = struct.Struct("<IIII32s")
TRAILER_BYTES = _TRAILER.size
CHECKSUM_BYTES = 32
_SKETCH_SCALE = 4096

# A mask is cut into pieces whose ranks among all masks of as many kept frames are small numbers.
_MASK_FRAMES = 64


def encode_header(header: FsvHeader) -> bytes:
    """Everything before the groups."""
    tile = header.tile or TileLayout(0, 0)
    sketch = header.model_sketch or (0.0,) * 8
    flags = bool(header.basis) | bool(header.model_sketch) << 1
    fixed = _FIXED.pack(
        header.fps.numerator if header.fps else 0,
        header.fps.denominator if header.fps else 0,
        header.height,
        header.width,
        header.model_height,
        header.model_width,
        header.clip_num_frames,
        header.latent_channels,
        header.latent_height,
        header.latent_width,
        SIZE_FITS.index(header.size_fit),
        LATENT_DTYPES.index(header.latent_dtype),
        tile.size,
        tile.overlap,
        header.step,
        header.windows_per_group,
        flags,
        bytes.fromhex(header.model_hash or "0" * 64),
        bytes.fromhex(header.basis or "0" * 16),
        *(round(value * _SKETCH_SCALE) for value in sketch),
        len(header.model_id.encode()),
    )
    statistics = np.array(header.channel_statistics, dtype="<f4").tobytes()
    cycle = _CYCLE.pack(header.cycle.shared, header.cycle.length) if header.coder > 1 else b""
    body = fixed + cycle + header.model_id.encode() + statistics
    return MAGIC + struct.pack("<BBH", VERSION, header.coder, len(body)) + body


PREFIX_BYTES = len(MAGIC) + 4


def decode_prefix(data: bytes) -> tuple[int, int]:
    """Number of the coder and bytes of the header, from the `PREFIX_BYTES` before it.

    Raises:
        FsvError: The file is of another kind, a newer version or by an unknown coder.
    """
    version, coder, length = struct.unpack("<BBH", data[len(MAGIC) :])
    if version != VERSION:
        newer = "; a newer version of this package reads it" if version > VERSION else ""
        raise FsvError(f"version: {version} cannot be read, only 1 and {VERSION}{newer}.")
    if coder not in CODERS:
        raise FsvError(
            f"coder: number {coder} cannot be read, only {' and '.join(map(str, CODERS))}; a newer version of this"
            " package may."
        )
    return coder, length


def decode_header(body: bytes, num_frames: int, coder: int) -> FsvHeader:
    """The header, from what `encode_header` made of it behind the prefix.

    Raises:
        FsvError: A field is malformed, out of its limits or contradicts another one.
    """
    size = _FIXED.size + (_CYCLE.size if coder > 1 else 0)
    if len(body) < size:
        raise FsvError(f"header: {len(body)} bytes of at least {size}.")
    (
        fps_numerator, fps_denominator, height, width, model_height, model_width, clip_num_frames, channels,
        latent_height, latent_width, size_fit, latent_dtype, tile_size, tile_overlap, step, windows_per_group, flags,
        model_hash, basis, *sketch, id_bytes,
    ) = _FIXED.unpack_from(body)  # fmt: skip
    if size_fit >= len(SIZE_FITS) or latent_dtype >= len(LATENT_DTYPES) or flags > 3:
        raise FsvError(f"header: unknown size_fit {size_fit}, latent_dtype {latent_dtype} or flags {flags}.")
    shared, cycle_length = _CYCLE.unpack_from(body, _FIXED.size) if coder > 1 else (0, 1)
    if coder > 1 and not shared:
        raise FsvError("cycle: nothing takes turns; coder 1 writes such files.")
    texts, rest = body[size : size + id_bytes], body[size + id_bytes :]
    has_basis, has_sketch = bool(flags & 1), bool(flags & 2)
    if len(rest) != (0 if has_basis else 8 * channels):
        raise FsvError(f"channel_statistics: {len(rest)} bytes for {channels} channels.")
    try:
        model_id = texts.decode()
    except UnicodeDecodeError as error:
        raise FsvError("model_id: not a text.") from error
    if bool(fps_numerator) != bool(fps_denominator):
        raise FsvError(f"fps: {fps_numerator}/{fps_denominator} is not a rate.")
    header = FsvHeader(
        num_frames=num_frames,
        height=height,
        width=width,
        model_height=model_height,
        model_width=model_width,
        clip_num_frames=clip_num_frames,
        latent_channels=channels,
        latent_height=latent_height,
        latent_width=latent_width,
        fps=Fraction(fps_numerator, fps_denominator) if fps_denominator else None,
        size_fit=SIZE_FITS[size_fit],
        tile=TileLayout(tile_size, tile_overlap) if tile_size or tile_overlap else None,
        quantization=CODED,
        latent_dtype=LATENT_DTYPES[latent_dtype],
        model_id=model_id,
        model_hash=model_hash.hex() if any(model_hash) else "",
        step=step,
        basis=basis.hex() if has_basis else "",
        channel_statistics=tuple(map(tuple, np.frombuffer(rest, "<f4").reshape(-1, 2).tolist())),
        windows_per_group=windows_per_group,
        shared_channels=shared,
        cycle_length=cycle_length,
        model_sketch=tuple(value / _SKETCH_SCALE for value in sketch) if has_sketch else (),
    )
    if clip_num_frames * model_height * model_width > MAX_WINDOW_PIXELS:
        raise FsvError(f"clip_num_frames: windows of {clip_num_frames} frames exceed {MAX_WINDOW_PIXELS} pixels.")
    return header


# Index


def encode_index(group_bytes: Sequence[int], masks: Sequence[np.ndarray]) -> bytes:
    """Index and trailer but for the checksum.

    Args:
        group_bytes: Size of every group.
        masks: Of every window, bool `(frames,)`: True for kept frames.
    """
    numbers = [*group_bytes, *map(len, masks), *(int(mask.sum()) for mask in masks)]
    plain = b"".join(map(write_varint, numbers)) + b"".join(map(_encode_mask, masks))
    packed = zlib.compress(plain, 9)
    return packed + _TRAILER.pack(len(masks), len(group_bytes), len(packed), len(plain), b"")[:-CHECKSUM_BYTES]


def decode_trailer(data: bytes) -> tuple[int, int, int, int, bytes]:
    """Numbers of windows and groups, bytes of the index and of the inflated index, and the checksum."""
    return _TRAILER.unpack(data)


def decode_index(
    data: bytes, num_windows: int, num_groups: int, num_bytes: int, clip_num_frames: int
) -> tuple[np.ndarray, WindowSelections]:
    """Bytes of every group, and the frames and kept frames of every window.

    Raises:
        FsvError: The index contradicts itself or the trailer.
    """
    # Five bytes hold any of the numbers, and a mask takes no more than a bit a frame and two bytes a piece.
    most = 5 * num_groups + num_windows * (10 + clip_num_frames // 8 + 3 * (clip_num_frames // _MASK_FRAMES + 1))
    if num_bytes > most:
        raise FsvError(f"index: {num_bytes} bytes for {num_windows} windows of {clip_num_frames} frames.")
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, num_bytes + 1)
    except zlib.error as error:
        raise FsvError(f"index: cannot be inflated ({error}).") from error
    if len(plain) != num_bytes or not inflater.eof or inflater.unused_data:
        raise FsvError(f"index: is not of the {num_bytes} bytes that the trailer says.")
    view = memoryview(plain)
    numbers = np.empty(num_groups + 2 * num_windows, dtype=np.int64)
    for index in range(len(numbers)):
        numbers[index], view = read_varint(view)
    groups, frames, kept = np.split(numbers, [num_groups, num_groups + num_windows])
    if (frames < 1).any() or (frames > clip_num_frames).any() or (kept < 1).any() or (kept > frames).any():
        raise FsvError(f"index: a window has no frames, none kept, or more than {clip_num_frames}.")
    if frames.sum() > MAX_FRAMES:
        raise FsvError(f"num_frames: {frames.sum()} frames exceed {MAX_FRAMES}.")
    gaps = np.empty(kept.sum(), dtype=np.int64)
    filled = 0
    for length, count in zip(frames.tolist(), kept.tolist(), strict=True):
        mask, view = _decode_mask(view, length)
        positions = np.flatnonzero(mask)
        if len(positions) != count:
            raise FsvError(f"index: a window keeps {len(positions)} frames and is said to keep {count}.")
        gaps[filled : filled + count] = np.diff(positions, prepend=0)
        filled += count
    if len(view):
        raise FsvError(f"index: {len(view)} bytes are left over.")
    return groups, WindowSelections(frames, kept, gaps)


def _encode_mask(mask: np.ndarray) -> bytes:
    """For every piece of a mask the number of kept frames, and its rank among all masks with as many.

    Enumerative coding (Cover, 1973): as short as any code for masks of which no more than the count is known.
    """
    data = b""
    for start in range(0, len(mask), _MASK_FRAMES):
        piece = mask[start : start + _MASK_FRAMES]
        positions = np.flatnonzero(piece).tolist()
        rank = sum(comb(position, order + 1) for order, position in enumerate(positions))
        data += bytes([len(positions)]) + rank.to_bytes(_rank_bytes(len(piece), len(positions)), "little")
    return data


def _decode_mask(data: memoryview, num_frames: int) -> tuple[np.ndarray, memoryview]:
    mask = np.zeros(num_frames, dtype=bool)
    for start in range(0, num_frames, _MASK_FRAMES):
        length = min(_MASK_FRAMES, num_frames - start)
        count = data[0] if len(data) else length + 1
        if count > length:
            raise FsvError("index: the mask of a window is damaged.")
        size = _rank_bytes(length, count)
        rank, data = int.from_bytes(data[1 : 1 + size], "little"), data[1 + size :]
        if rank >= comb(length, count):
            raise FsvError("index: the mask of a window is damaged.")
        for position in range(length - 1, -1, -1):
            if count and rank >= comb(position, count):
                rank -= comb(position, count)
                mask[start + position] = True
                count -= 1
    return mask, data


def _rank_bytes(length: int, count: int) -> int:
    return ((comb(length, count) - 1).bit_length() + 7) // 8
