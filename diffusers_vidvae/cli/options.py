"""Options that several commands have."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Mode(str, Enum):
    systematic = "systematic"
    threshold = "threshold"
    bernoulli = "bernoulli"
    top_k = "top_k"
    uniform = "uniform"


class Quantize(str, Enum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    int8 = "int8"
    int4 = "int4"


class SizeMode(str, Enum):
    auto = "auto"
    pad = "pad"
    tile = "tile"
    resize = "resize"


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder, Hub id, or original checkpoint (here, or `hf://owner/name/file`)."
        " Default: the demo model in the package.",
        show_default=False,
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Folder, Hub id, or original checkpoint (here, or `hf://owner/name/file`)."
        " Default: the demo model in the package.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder, Hub id, or original checkpoint; a report takes several. Default: the demo model in the package.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device of torch, such as `cuda:1`. Default: CUDA if there is one, else the CPU.")
]
ModelDType = Annotated[
    DType | None, typer.Option("--dtype", help="Type of the weights. Default: bfloat16 on CUDA, else float32.")
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the model (torch.compile), which takes minutes at the start; for GPUs."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of what is random.")]
Fps = Annotated[
    str | None, typer.Option(help="Frame rate, such as `24` or `30000/1001`; the input is resampled to it by time.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing outputs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
