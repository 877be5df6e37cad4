"""The model that a command runs: the embedded demo, a folder, a Hub id or an original checkpoint."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console, sources
from .console import CommandError
from .options import DType
from .sources import Source


if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin


DEMO_NAME = "the embedded demo model"
HUB_FILE = "hf://"
# Parameters of glibc's mallopt, and what they are set to.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT_BYTES, _LARGEST_KEPT_BLOCK = 2**28, 2**26

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass
class Device:
    """Where a model runs and what its weights are."""

    device: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str | None, dtype: DType | None) -> Device:
        import torch

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            raise CommandError(f"--device {device}: {_first_line(error)}") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise CommandError(f"--device {device}: there is no CUDA device here; --device cpu runs everywhere.")
        if dtype is None:
            return cls(device, torch.bfloat16 if kind == "cuda" else torch.float32)
        return cls(device, getattr(torch, dtype.value))


def keep_freed_memory() -> None:
    """Lets the C library of Linux keep freed memory, up to 256 MB, for what is needed next.

    Given back and asked for anew, memory arrives in pages that are cleared one by one, which takes a sixth of the time
    of a small model on a CPU. Other systems keep their ways.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc, or Windows
    set_option(_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES)
    set_option(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK)


def demo_folder(purpose: str = "compression") -> Path:
    """Folder of the embedded demo models."""
    from diffusers_vidvae import demo_model

    return Path(demo_model(purpose))


def model_name(model: str | None) -> str:
    """How to call the model in what a command prints."""
    return DEMO_NAME if model is None else model


def load_model(
    model: str | None,
    device: Device,
    component: str = "vae",
    demo_component: str = "vae",
    source: Source | None = None,
) -> ModelMixin:
    """Loads a model and puts it on its device.

    Args:
        model: A folder of a model or of a pipeline, the folder or file of an original checkpoint, a Hub id,
            `hf://owner/name/file` for an original checkpoint there, or None for the demo model.
        device: Where it runs and its type.
        component: Which model of a pipeline.
        demo_component: Which model of the demo.
        source: Revision and variant; by default those that the command was given for its `--model`.

    Raises:
        CommandError: There is no such model.
        CheckpointError: An original checkpoint cannot be read, or is of no known model.
    """
    import torch

    source = sources.current.get() if source is None else source
    check_source(model, source)
    if torch.device(device.device).type == "cpu":
        keep_freed_memory()
    path = demo_folder() if model is None else Path(model)
    if is_checkpoint(path):
        loaded = load_checkpoint(path, device.dtype)
    elif path.exists():
        component = demo_component if model is None else component
        loaded = load_folder(path, device.dtype, component, source)
    else:
        loaded = load_from_hub(str(model), device.dtype, component, source)
    return loaded.to(device.device).eval()


def check_source(model: str | None, source: Source) -> None:
    """Refuses options that a model has no use for.

    Raises:
        CommandError: Names the option and the model.
    """
    path = Path(model or "")
    if source.revision is not None and (model is None or path.exists()):
        raise CommandError(f"--revision {source.revision}: is for models on the Hub, not for {model_name(model)}.")
    if source.variant is not None and (model is None or is_checkpoint(path) or model.startswith(HUB_FILE)):
        raise CommandError(f"--variant {source.variant}: {model_name(model)} has no variants.")


def is_checkpoint(path: Path) -> bool:
    """Whether a path is an original checkpoint: a file of weights, or the folder of an Orbax checkpoint."""
    from diffusers_vidvae.conversion.orbax import is_orbax

    return path.is_file() or (path.is_dir() and is_orbax(path))


def load_checkpoint(path: Path, dtype: torch.dtype | None) -> ModelMixin:
    """Converts an original checkpoint in memory."""
    from diffusers_vidvae.conversion import detect_source, open_checkpoint

    checkpoint = open_checkpoint(path)
    return detect_source(checkpoint).convert(checkpoint, dtype)


def load_folder(folder: Path, dtype: torch.dtype, component: str, source: Source = sources.DEFAULT) -> ModelMixin:
    from diffusers import AutoModel

    subfolder = _component_folder(folder, component)
    return AutoModel.from_pretrained(str(folder), subfolder=subfolder, torch_dtype=dtype, **source.given())


def _component_folder(folder: Path, component: str) -> str | None:
    """Where in a folder a model lies; None if the folder is the model's own."""
    if (folder / component / "config.json").is_file():
        return component
    if (folder / "config.json").is_file():
        return None
    raise CommandError(
        f"{folder}: holds neither a model (config.json) nor a pipeline with a {component} ({component}/config.json)."
    )


def load_from_hub(model: str, dtype: torch.dtype, component: str, source: Source = sources.DEFAULT) -> ModelMixin:
    from diffusers import AutoModel

    if model.startswith(HUB_FILE):
        return load_checkpoint(_download_file(model, source.revision), dtype)
    check_hub_id(model)
    subfolder = component if _is_hub_pipeline(model, source.revision) else None
    try:
        return AutoModel.from_pretrained(model, subfolder=subfolder, torch_dtype=dtype, **source.given())
    except OSError as error:
        raise CommandError(
            f"{model}: no such folder here, and not loaded from the Hub: {_first_line(error)}"
        ) from error


def check_hub_id(model: str) -> None:
    """Refuses the name of a file or folder that does not exist, rather than asking the Hub for it."""
    if model.count("/") != 1 or model.startswith((".", "~", "/")) or model.endswith(CHECKPOINT_SUFFIXES):
        raise CommandError(f"{model}: no such file or folder, and not the id of a Hub repository (owner/name).")


def _is_hub_pipeline(model: str, revision: str | None) -> bool:
    from diffusers import DiffusionPipeline

    try:
        DiffusionPipeline.load_config(model, revision=revision)
    except OSError:
        return False
    return True


def _download_file(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    parts = name.removeprefix(HUB_FILE).split("/", 2)
    if len(parts) < 3:
        raise CommandError(f"{name}: a file on the Hub is called {HUB_FILE}owner/name/file.")
    owner, repository, file = parts
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, revision=revision))
    # Every way to fail, from a missing network to a missing file, has an error class of its own.
    except Exception as error:
        raise CommandError(f"{name}: not downloaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error says first, as a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def require_class(model: Any, class_name: str, name: str | None) -> None:
    """Refuses a model of another class than a command runs."""
    if type(model).__name__ != class_name:
        raise CommandError(f"{model_name(name)}: is a {type(model).__name__}, this needs a {class_name}.")


def quiet_pipeline(pipeline: Any) -> Any:
    """A pipeline whose progress bars go away when they are done, and never appear where nobody would see them."""
    pipeline.set_progress_bar_config(leave=False, disable=not console.stderr.is_terminal)
    return pipeline


def parse_fps(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise CommandError(f"--fps {text}: must be a positive number or ratio, such as 24, 29.97 or 30000/1001.")
    return fps


def make_generator(seed: int | None) -> torch.Generator | None:
    import torch

    return None if seed is None else torch.Generator().manual_seed(seed)
