"""Compressed videos: the `.fsv` file, its reading and writing, and the quantisation of latents."""

from __future__ import annotations

from .axes_cycle import AxesCycle
from .coded_reader import CodedFsvReader
from .coded_writer import CodedFsvWriter
from .compressed_video import CompressedVideo, open_fsv
from .errors import FsvError
from .header import FORMAT_VERSION, FsvHeader, TileLayout, check_model, weight_probe
from .latents_basis import LatentsBasis
from .original import read_original_pt
from .quantization import CODED, QUANTIZATIONS, QuantizedLatents, dequantize, quantize
from .reader import FsvReader
from .window import LatentWindow, WindowSelection
from .writer import FsvWriter


__all__ = [
    "AxesCycle",
    "CODED",
    "CodedFsvReader",
    "CodedFsvWriter",
    "LatentsBasis",
    "open_fsv",
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
