"""Compressed videos: the `.fsv` file, its reading and writing, and the quantisation of latents."""

from __future__ import annotations

from .compressed_video import CompressedVideo
from .errors import FsvError
from .header import FORMAT_VERSION, FsvHeader, TileLayout, check_model, weight_probe
from .original import read_original_pt
from .quantization import QUANTIZATIONS, QuantizedLatents, dequantize, quantize
from .reader import FsvReader
from .window import LatentWindow, WindowSelection
from .writer import FsvWriter


__all__ = [
    "FORMAT_VERSION",
    "QUANTIZATIONS",
    "CompressedVideo",
    "FsvError",
    "FsvHeader",
    "FsvReader",
    "FsvWriter",
    "LatentWindow",
    "QuantizedLatents",
    "TileLayout",
    "WindowSelection",
    "check_model",
    "dequantize",
    "quantize",
    "read_original_pt",
    "weight_probe",
]
