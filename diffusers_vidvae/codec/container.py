"""The safetensors file around the latents of a clip.

    8 bytes         length of the header, little-endian
    header          JSON, padded with spaces: types, shapes and places of the tensors; `FsvHeader` as `__metadata__`
    latents         (kept, channels, height, width), or (kept, bytes) for 4 bits: window after window
    scales          (windows, channels, 2) float32: scale and offset, for integers only
    gaps            (kept,) uint8, or int32 where windows may exceed 256 frames
    window_frames   (windows,) int32: frames that each window covers
    window_kept     (windows,) int32: frames that each window keeps

Any safetensors reader can open it. `sha256` in the metadata covers the whole file: the tensors' bytes, then everything
before them with the digits of the checksum itself replaced by zeros.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from .errors import FsvError
from .header import MAX_FRAMES, FsvHeader
from .quantization import INTEGER_BITS, stored_frame_shape


MAX_HEADER_BYTES = 1 << 16

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "I32": torch.int32,
}
_LATENT_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "int8": "U8", "int4": "U8"}

# By whether a window's gaps fit into a byte.
_GAPS_DTYPE = {True: "U8", False: "I32"}

_NO_CHECKSUM = "0" * 64


@dataclass(frozen=True)
class StoredTensor:
    """Type, shape and place (bytes `start` to `stop` after the header) of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def stop(self) -> int:
        return self.start + self.num_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize


def stored_tensors(header: FsvHeader, num_windows: int, num_kept: int) -> dict[str, StoredTensor]:
    """The tensors of a clip of so many windows and kept frames, in the file's order."""
    latents = (num_kept, *stored_frame_shape(header.quantization, header.latent_shape))
    shapes = {"latents": (_LATENT_DTYPES[header.quantization], latents)}
    if header.quantization in INTEGER_BITS:
        shapes["scales"] = ("F32", (num_windows, header.latent_channels, 2))
    shapes |= {
        "gaps": (_GAPS_DTYPE[header.clip_num_frames <= 256], (num_kept,)),
        "window_frames": ("I32", (num_windows,)),
        "window_kept": ("I32", (num_windows,)),
    }
    tensors, start = {}, 0
    for name, (dtype, shape) in shapes.items():
        tensors[name] = StoredTensor(dtype, shape, start)
        start = tensors[name].stop
    return tensors


def gaps_dtype(header: FsvHeader) -> torch.dtype:
    return DTYPES[_GAPS_DTYPE[header.clip_num_frames <= 256]]


def payload_bytes(tensors: dict[str, StoredTensor]) -> int:
    return tensors["window_kept"].stop


def prologue_size(header: FsvHeader) -> int:
    """Bytes before the tensors: enough for any windows of the clip, so that these can be written first."""
    most = replace(header, num_frames=header.num_frames or MAX_FRAMES)
    return len(encode_prologue(most, stored_tensors(most, most.num_frames, most.num_frames)))


def encode_prologue(header: FsvHeader, tensors: dict[str, StoredTensor], size: int = 0) -> bytes:
    """Length and JSON header, padded to `size` bytes and to a multiple of 8, with zeros for an unknown checksum."""
    metadata = header.to_metadata()
    metadata["sha256"] = metadata["sha256"] or _NO_CHECKSUM
    content: dict[str, Any] = {"__metadata__": metadata}
    for name, tensor in tensors.items():
        content[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (tensor.start, tensor.stop)}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * max(size - 8 - len(text), -len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def without_checksum(prologue: bytes, checksum: str) -> bytes:
    """The prologue as the checksum covers it.

    Raises:
        FsvError: The checksum does not stand in the prologue as it was written.
    """
    field = b'"sha256":"%s"'
    written = field % checksum.encode()
    if prologue.count(written) != 1:
        raise FsvError("sha256: the header was rewritten by another program.")
    return prologue.replace(written, field % _NO_CHECKSUM.encode())


def parse_prologue(text: bytes) -> tuple[FsvHeader, dict[str, StoredTensor]]:
    """Header and tensors from the JSON text, each field checked against the others.

    Raises:
        FsvError: The text is not JSON, or a field is missing, unknown, malformed or contradicts another one.
    """
    content = _parse_json(text)
    metadata = content.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FsvError("__metadata__: not a compressed video.")
    header = FsvHeader.from_metadata(metadata)
    num_kept, num_windows = (_length(content, name, header.num_frames) for name in ("gaps", "window_kept"))
    tensors = stored_tensors(header, num_windows, num_kept)
    if set(content) != set(tensors):
        odd = min(set(content) ^ set(tensors))
        raise FsvError(f"{odd[:64]}: {'missing' if odd in tensors else 'unknown tensor'}.")
    for name, tensor in tensors.items():
        expected = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.stop]}
        _check_entry(name, content[name], expected)
    return header, tensors


def _length(content: dict[str, Any], name: str, limit: int) -> int:
    entry = content.get(name)
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or not 1 <= shape[0] <= limit:
        raise FsvError(f"{name}: shape is not one whole number from 1 to {limit}.")
    return shape[0]


def _check_entry(name: str, entry: Any, expected: dict[str, Any]) -> None:
    if not isinstance(entry, dict) or set(entry) != set(expected):
        raise FsvError(f"{name}: expected the entries {', '.join(expected)}.")
    for key, value in expected.items():
        # JSON's `1.0` and `true` equal 1 in Python, hence the comparison as text.
        if repr(entry[key]) != repr(value):
            raise FsvError(f"{name}: {key} is {repr(entry[key])[:64]} where the other fields ask for {value}.")


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise FsvError("header: nested too deeply.") from error
    except FsvError:
        raise
    except ValueError as error:
        raise FsvError(f"header: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise FsvError("header: not a JSON object.")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise FsvError("header: a key occurs twice.")
    return content


def _refuse_constant(constant: str) -> NoReturn:
    raise FsvError(f"header: {constant} is not JSON.")
