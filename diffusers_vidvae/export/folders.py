r"""Folders of exported graphs: how they are written, and how they run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_vidvae.autoencoders.video_autoencoder import EncodedClip
from diffusers_vidvae.files import atomic_path, check_output

from .graphs import Graph, expected_outputs, make_graph, random_arguments, solving_by_elimination
from .sizes import SizeOption, SizeRange, size_ranges


FORMATS = {"torch": ".pt2", "onnx": ".onnx"}
PARTS = ("encoder", "decoder")
DESCRIPTION = "export.json"

# Largest difference that an exported graph may have, relative to the largest value, or absolute below 1.
_TOLERANCE = 1e-3

Run = Callable[..., Sequence[torch.Tensor]]


def export_autoencoder(
    vae: Any,
    folder: str | PathLike[str],
    format: str = "onnx",
    parts: Sequence[str] = PARTS,
    frames: SizeOption = None,
    height: SizeOption = None,
    width: SizeOption = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    r"""Writes the encoder and the decoder of an autoencoder as graphs that take every size of a range.

    The encoder takes pixels `(1, C, T, H, W)` in [-1, 1] and gives mean and log variance of the latents, one behind
    the other along channels, `FrameSelectVAE` its keep probabilities, too; the decoder takes latents, and for
    `FrameSelectVAE` the mask of frames that were kept, and gives pixels. A graph runs a clip at once: neither chunks,
    nor tiles, nor windows. Each is run at two sizes and compared with the model.

    Args:
        vae: An `AutoencoderKL3D` or `FrameSelectVAE`, float32.
        folder: The folder to write, with a file for each part and `export.json`, which describes them.
        format: `"torch"` for programs of `torch.export`, `"onnx"` for ONNX.
        parts: `"encoder"`, `"decoder"` or both.
        frames: Frames of the clips: a number, a pair of least and largest, or None for all that the model takes:
            multiples of 4 from 8 on of `AutoencoderKL3D` (with `first_frame_alone` 5, 9, 13, ...), of `FrameSelectVAE`
            2 to its `clip_num_frames`. 1 alone is an image.
        height: Height of the frames, likewise: multiples of 8, or of the patch size; `sample_size` alone for a
            `FrameSelectVAE` whose keep head is `"latent"`.
        width: Width, likewise.
        overwrite: Whether the folder may be replaced if it is an export.

    Returns:
        What `export.json` holds; for each part its file, its bytes and the largest difference to the model.

    Raises:
        ValueError: A size is none that the model takes, an argument is not as described, the folder exists, a package
            is missing, or a graph cannot be made or differs from the model.
    """
    folder = Path(folder)
    _check_arguments(vae, format, parts)
    sizes = size_ranges(vae, frames=frames, height=height, width=width)
    options: dict[str, Any] = {"overwrite": overwrite, "folder": True, "reason_to_keep": _reason_to_keep}
    check_output(folder, **options)
    description: dict[str, Any] = {
        "class": type(vae).__name__,
        "format": format,
        "sizes": [asdict(size) for size in sizes],
        "parts": {},
    }
    with _whole_frames(vae), atomic_path(folder, **options) as temporary:
        for part in parts:
            description["parts"][part] = _export_part(vae, part, sizes, format, temporary)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return description


def open_export(folder: str | PathLike[str]) -> ExportedAutoencoder:
    r"""Opens what `export_autoencoder` wrote, on the CPU.

    Raises:
        ValueError: The folder is none, or a package is missing that runs its format.
    """
    return ExportedAutoencoder(folder)


class ExportedAutoencoder:
    r"""Runs exported graphs, and refuses sizes that they do not take.

    Args:
        folder: What `export_autoencoder` wrote.

    Attributes:
        sizes: Frames, heights and widths that the graphs take.
    """

    def __init__(self, folder: str | PathLike[str]):
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            raise ValueError(f"{self.folder}: is no folder of exported graphs ({DESCRIPTION} is missing).")
        self.description = json.loads((self.folder / DESCRIPTION).read_text())
        self.sizes = tuple(SizeRange(**size) for size in self.description["sizes"])
        open_graph = {"torch": _open_torch, "onnx": _open_onnx}[self.description["format"]]
        self._graphs = {
            part: open_graph(self.folder / entry["file"]) for part, entry in self.description["parts"].items()
        }

    def encode(self, pixels: torch.Tensor) -> EncodedClip:
        r"""Posterior and, of `FrameSelectVAE`, keep probabilities of a clip `(1, C, T, H, W)` in [-1, 1].

        Raises:
            ValueError: The encoder was not exported, or not for this size.
        """
        parameters, *rest = self._run("encoder", self.sizes, pixels)
        return EncodedClip(DiagonalGaussianDistribution(parameters), rest[0] if rest else None)

    def decode(self, latents: torch.Tensor, keep_mask: torch.Tensor | None = None) -> torch.Tensor:
        r"""Pixels of latents `(1, latent_channels, T', h, w)`.

        Args:
            latents: As the encoder gives them.
            keep_mask: For `FrameSelectVAE`: frames to decode from their latents, bool `(1, T)`; by default all.

        Raises:
            ValueError: The decoder was not exported, or not for this size.
        """
        arguments = [latents]
        if "keep_mask" in self.description["parts"].get("decoder", {}).get("inputs", ()):
            everything = torch.ones(latents.shape[0], latents.shape[2], dtype=torch.bool)
            arguments.append(everything if keep_mask is None else keep_mask)
        elif keep_mask is not None:
            raise ValueError(f"{self.folder}: {self.description['class']} keeps all frames, got a `keep_mask`.")
        return self._run("decoder", tuple(size.latents() for size in self.sizes), *arguments)[0]

    def _run(self, part: str, sizes: tuple[SizeRange, ...], *arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        if part not in self._graphs:
            raise ValueError(f"{self.folder}: holds no {part}, only {', '.join(self._graphs)}.")
        shape = arguments[0].shape
        if len(shape) != 5 or shape[0] != 1:
            raise ValueError(f"{self.folder}: takes (1, channels, frames, height, width), got {tuple(shape)}.")
        for size, given in zip(sizes, shape[2:], strict=True):
            if given not in size:
                raise ValueError(f"{self.folder}: was exported for {size}, got {given}.")
        return self._graphs[part](*arguments)


def _check_arguments(vae: Any, format: str, parts: Sequence[str]) -> None:
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {tuple(FORMATS)}, got {format!r}.")
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"`parts` must be among {PARTS}, got {tuple(parts)}.")
    if format == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
    if vae.dtype != torch.float32:
        raise ValueError(f"The autoencoder must be float32 to be exported, got {vae.dtype}.")


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install 'diffusers-vidvae[export]' brings them.")


def _reason_to_keep(folder: Path) -> str | None:
    return None if (folder / DESCRIPTION).is_file() else "it is no folder of exported graphs"


@contextmanager
def _whole_frames(vae: Any) -> Iterator[None]:
    """Turns tiling off, which graphs do not have."""
    tiled, vae.use_tiling = vae.use_tiling, False
    try:
        yield
    finally:
        vae.use_tiling = tiled


def _export_part(
    vae: Any, part: str, sizes: tuple[SizeRange, SizeRange, SizeRange], format: str, folder: Path
) -> dict[str, Any]:
    """Writes a part and compares it with the model; returns its description."""
    graph = make_graph(vae, part, sizes)
    file = folder / (part + FORMATS[format])
    try:
        _write_graph(vae, graph, random_arguments(vae, part, sizes, 1), sizes[0].high, file)
    # Exporters have errors of every class, and say at length what stands in the way.
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"The {part} of this {type(vae).__name__} cannot be exported to {format}: {reason.rstrip('.')}."
        ) from error
    return {
        "file": file.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "num_bytes": file.stat().st_size,
        "difference": _largest_difference(vae, part, sizes, file),
    }


def _write_graph(vae: Any, graph: Graph, arguments: tuple[torch.Tensor, ...], most_frames: int, file: Path) -> None:
    if file.suffix == FORMATS["torch"]:
        torch.export.save(graph.export(arguments), file)
        return
    # The exporter names packages that it could have used, which are none of ours.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with solving_by_elimination(vae, most_frames):
            exported = graph.export(arguments)
        program: Any = torch.onnx.export(
            exported,
            arguments,
            dynamo=True,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
        )
    finally:
        logger.setLevel(level)
    program.save(str(file))


def _largest_difference(vae: Any, part: str, sizes: tuple[SizeRange, ...], file: Path) -> float:
    """Largest difference of a graph to its model at two sizes."""
    run = _open_torch(file) if file.suffix == FORMATS["torch"] else _open_onnx(file)
    largest = 0.0
    for index in (0, 1):
        arguments = random_arguments(vae, part, sizes, index)
        for found, expected in zip(run(*arguments), expected_outputs(vae, part, arguments), strict=True):
            difference = float((found - expected).abs().max())
            largest = max(largest, difference)
            if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
                raise ValueError(f"The exported {part} differs from the model by {difference:.2g}.")
    return largest


def _open_torch(file: Path) -> Run:
    module = torch.export.load(file).module()

    def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return module(*arguments)

    return run


def _open_onnx(file: Path) -> Run:
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        values = {name: value.cpu().numpy() for name, value in zip(names, arguments, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, values)]

    return run
