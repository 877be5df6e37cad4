r"""Model cards: what a repository holds, where it comes from and how to run it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open


CONFIG_FILES = ("model_index.json", "config.json", "scheduler_config.json")


class _Kind(NamedTuple):
    summary: str
    source: str
    tags: list[str]
    pipeline_tag: str | None


_FRAME_COMPRESSION = (
    "[floatingtrees/dynamic-frame-compression](https://github.com/floatingtrees/dynamic-frame-compression)"
)
_IMAGE_VIDEO_VAE = "[Linum's image-video-vae](https://huggingface.co/Linum-AI/image-video-vae)"

_KINDS = {
    "FrameSelectVAE": _Kind(
        "A video autoencoder that gives every frame a latent and a probability of being worth keeping, and decodes"
        " whole clips from the kept frames.",
        _FRAME_COMPRESSION,
        ["video", "autoencoder", "frame-selection"],
        "video-to-video",
    ),
    "AutoencoderKL3D": _Kind(
        "A causal 3D convolutional KL autoencoder for images and video, exact in chunks and streams.",
        _IMAGE_VIDEO_VAE,
        ["video", "image", "autoencoder"],
        "video-to-video",
    ),
    "GapDiT": _Kind(
        "A flow-matching transformer that generates latent frames and the gaps between them.",
        _FRAME_COMPRESSION,
        ["video", "video-generation"],
        "image-to-video",
    ),
    "FlowMatchGapScheduler": _Kind(
        "A flow-matching Euler scheduler that carries the gaps between latent frames.",
        _FRAME_COMPRESSION,
        ["video", "scheduler"],
        None,
    ),
    "VideoReconstructionPipeline": _Kind(
        "Runs images and video of any size and length through a video autoencoder and back.",
        f"{_FRAME_COMPRESSION} and {_IMAGE_VIDEO_VAE}",
        ["video", "reconstruction"],
        "video-to-video",
    ),
    "VideoCompressionPipeline": _Kind(
        "Turns video into the latents of the frames worth keeping, and back.",
        _FRAME_COMPRESSION,
        ["video", "compression", "frame-selection"],
        "video-to-video",
    ),
    "GapDiTPipeline": _Kind(
        "Generates video as kept latent frames with the gaps between them.",
        _FRAME_COMPRESSION,
        ["video", "video-generation"],
        "image-to-video",
    ),
}

# With noise for a clip they run as printed; a pipeline takes a path in its place.
_SNIPPETS = {
    "VideoReconstructionPipeline": """\
pipe = VideoReconstructionPipeline.from_pretrained("{repo}"{remote})
size = pipe.vae.config.get("sample_size", 64)
clip = torch.rand(1, 3, 9, size, size) * 2 - 1  # {clip}
frames = pipe(video=clip).frames[0]""",
    "VideoCompressionPipeline": """\
pipe = VideoCompressionPipeline.from_pretrained("{repo}"{remote})
size = pipe.vae.config.sample_size
clip = torch.rand(1, 3, 9, size, size) * 2 - 1  # {clip}
compressed = pipe.compress(clip)
compressed.save("clip.fsv")
frames = pipe.decompress(compressed).frames[0]""",
    "GapDiTPipeline": """\
pipe = GapDiTPipeline.from_pretrained("{repo}"{remote})
output = pipe(num_latent_frames=4, num_inference_steps=50, generator=torch.Generator().manual_seed(0))
output.frames[0][0].save("generated.gif", save_all=True, append_images=output.frames[0][1:])""",
    "FrameSelectVAE": """\
vae = FrameSelectVAE.from_pretrained("{repo}"{remote})
size = vae.config.sample_size
clip = torch.rand(1, 3, 8, size, size) * 2 - 1  # (batch, channels, frames, height, width) in [-1, 1]
reconstruction = vae(clip).sample""",
    "AutoencoderKL3D": """\
vae = AutoencoderKL3D.from_pretrained("{repo}"{remote})
clip = torch.rand(1, 3, 9, 64, 64) * 2 - 1  # (batch, channels, frames, height, width) in [-1, 1]
reconstruction = vae(clip).sample""",
    "GapDiT": """\
transformer = GapDiT.from_pretrained("{repo}"{remote})
size, channels = transformer.config.sample_size, transformer.config.in_channels + transformer.num_gap_channels
output = transformer(torch.randn(1, channels, 4, size, size), timestep=500.0)""",
    "FlowMatchGapScheduler": """\
scheduler = FlowMatchGapScheduler.from_pretrained("{repo}")
scheduler.set_timesteps(50)""",
}

# No Auto class of diffusers loads a scheduler, so its own source is asked for the class.
_STANDALONE_SCHEDULER = """\
from diffusers.utils import get_class_from_dynamic_module


FlowMatchGapScheduler = get_class_from_dynamic_module(
    "{repo}", "{module}.py", class_name="FlowMatchGapScheduler", trust_remote_code=True
)
scheduler = FlowMatchGapScheduler.from_pretrained("{repo}")
scheduler.set_timesteps(50)"""


def describe_folder(folder: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    r"""Class name and configuration of a saved pipeline, model or scheduler.

    Raises:
        ValueError: The folder holds nothing of this package.
    """
    for name in CONFIG_FILES:
        file = Path(folder) / name
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            class_name = config.get("_class_name")
            class_name = class_name[1] if isinstance(class_name, list) else class_name
            if class_name in _KINDS:
                return class_name, config
            raise ValueError(f"{file} is of class {class_name!r}; this package publishes {sorted(_KINDS)}.")
    raise ValueError(
        f"{folder} holds none of {', '.join(CONFIG_FILES)}: save a pipeline, model or scheduler there first."
    )


def build_model_card(
    folder: str | os.PathLike[str],
    repo_id: str | None = None,
    standalone: bool = False,
    license: str = "apache-2.0",
    metrics: dict[str, float] | None = None,
) -> ModelCard:
    r"""Writes the card of a saved pipeline, model or scheduler.

    Args:
        folder: Where it was saved.
        repo_id: Repository that the snippet loads; by default the folder.
        standalone: Whether the folder carries its own source.
        license: Licence of the weights.
        metrics: Measured figures to show, by name; by default those of a `metrics.json` in the folder.
    """
    folder = Path(folder)
    class_name, config = describe_folder(folder)
    kind = _KINDS[class_name]
    metrics_file = folder / "metrics.json"
    if metrics is None and metrics_file.is_file():
        measured = json.loads(metrics_file.read_text(encoding="utf-8"))
        metrics = {name: value for name, value in measured.items() if isinstance(value, (int, float))}

    module = next((file.stem for file in folder.glob("vidvae_*.py")), None)
    sections = [
        f"# {repo_id.split('/')[-1] if repo_id else class_name}",
        f"{kind.summary} A `{class_name}` of [diffusers-vidvae](https://pypi.org/project/diffusers-vidvae), after"
        f" {kind.source}.",
        "## Use\n\n" + _usage(class_name, repo_id or folder.name, standalone, module),
        "## Contents\n\n" + _contents(folder, config),
    ]
    if metrics:
        rows = "\n".join(f"| {name} | {value:g} |" for name, value in metrics.items())
        sections.append("## Measured\n\n| metric | value |\n|---|---|\n" + rows)
    data = ModelCardData(
        library_name="diffusers",
        license=license,
        tags=["diffusers", "diffusers-vidvae", class_name, *kind.tags],
        pipeline_tag="text-to-video" if _takes_prompts(class_name, config) else kind.pipeline_tag,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _takes_prompts(class_name: str, config: dict[str, Any]) -> bool:
    """Whether a generator is told by text what to make; without, it goes on from pictures, or from nothing."""
    values = [value for key, value in config.items() if key.startswith(("text", "caption", "cross_attention_dim"))]
    return class_name.startswith("GapDiT") and any(value not in (None, 0, False, [None, None]) for value in values)


def _usage(class_name: str, repo: str, standalone: bool, module: str | None) -> str:
    if not standalone:
        snippet = f"from diffusers_vidvae import {class_name}\n\n\n" + _SNIPPETS[class_name]
        install = "```bash\npip install diffusers-vidvae\n```"
        clip = '(batch, channels, frames, height, width) in [-1, 1], or a path such as "clip.mp4"'
    else:
        loader = "DiffusionPipeline" if class_name.endswith("Pipeline") else "AutoModel"
        snippet = _SNIPPETS[class_name].replace(f"{class_name}.from_pretrained", f"{loader}.from_pretrained")
        snippet = f"from diffusers import {loader}\n\n\n{snippet}"
        install = "The source travels with the weights; it runs on diffusers alone:"
        clip = "(batch, channels, frames, height, width) in [-1, 1], or PIL images"
        if class_name.endswith("Scheduler"):
            snippet = _STANDALONE_SCHEDULER
    imports = "import torch\n" if "torch." in snippet else ""
    remote = ", trust_remote_code=True" if standalone else ""
    code = snippet.format(repo=repo, remote=remote, clip=clip, module=module)
    return f"{install}\n\n```python\n{imports}{code}\n```"


def _contents(folder: Path, config: dict[str, Any]) -> str:
    parts = []
    components = {key: value for key, value in config.items() if isinstance(value, list) and not key.startswith("_")}
    if (folder / "model_index.json").is_file():
        rows = []
        for name, (_, component_class) in components.items():
            count = count_parameters(folder / name)
            rows.append(f"| `{name}` | {component_class or '-'} | {f'{count:,}' if count else '-'} |")
        parts.append("| component | class | parameters |\n|---|---|---|\n" + "\n".join(rows))
        for name in components:
            file = folder / name / "config.json"
            if file.is_file():
                parts.append(f"### `{name}`\n\n" + _config_table(json.loads(file.read_text(encoding="utf-8"))))
    else:
        count = count_parameters(folder)
        if count:
            parts.append(f"{count:,} parameters.")
        parts.append(_config_table(config))
    return "\n\n".join(parts)


def _config_table(config: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | `{json.dumps(value)}` |" for key, value in config.items() if not key.startswith(("_", "auto"))
    ]
    return "| setting | value |\n|---|---|\n" + "\n".join(rows)


def count_parameters(folder: str | os.PathLike[str]) -> int:
    r"""Number of values in the safetensors files of a model's folder, one variant of them; 0 without any."""
    total = 0
    files = sorted(Path(folder).glob("*.safetensors"))
    plain = [file for file in files if file.name.startswith("diffusion_pytorch_model") and file.name.count(".") == 1]
    for file in plain or files:
        with safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return total
