"""`vidvae generate`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, models, sources
from .console import CommandError
from .options import Compile, Device, Force, Json, Model, ModelDType, Seed


if TYPE_CHECKING:
    import numpy as np
    from diffusers import SchedulerMixin

    from diffusers_vidvae import GapDiTPipeline
    from diffusers_vidvae.pipelines.pipeline_output import GapDiTPipelineOutput


DEFAULT_FPS = Fraction(24)


class Scheduler(str, Enum):
    model = "model"
    gap = "gap"
    euler = "euler"
    heun = "heun"
    unipc = "unipc"
    dpm = "dpm"


def add_commands(app: typer.Typer) -> None:
    app.command()(generate)


Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Video or animation; `.png` for a contact sheet; no ending for a folder of PNG images.",
    ),
]
Vae = Annotated[
    str | None, typer.Option(help="Autoencoder, where --model is an original checkpoint or a GapDiT alone.")
]
NumLatentFrames = Annotated[
    int | None, typer.Option(help="Latent frames to generate. Default: 8, or as many as the model takes.")
]
NumFrames = Annotated[int | None, typer.Option(help="Exact length. Default: what the generated gaps add up to.")]
SchedulerOption = Annotated[
    Scheduler, typer.Option(help="`model`: the one that the model comes with; dpm: DPM-Solver++ (multistep).")
]
Prompt = Annotated[
    str | None, typer.Option(help="What the video is to show, for a model that was trained with captions.")
]
GuidanceScale = Annotated[
    float | None, typer.Option(help="How closely to follow --prompt; 1 for no guidance. Default: 4.")
]
Image = Annotated[list[Path] | None, typer.Option(help="Picture to keep as a frame; may be given several times.")]
FrameIndex = Annotated[
    list[int] | None,
    typer.Option(help="Frame of the result where a kept frame goes; given once for each, or never."),
]


def generate(
    output: Output,
    model: Model = None,
    vae: Vae = None,
    num_latent_frames: NumLatentFrames = None,
    num_frames: NumFrames = None,
    steps: Annotated[int, typer.Option(help="Steps of the scheduler.")] = 50,
    seed: Seed = None,
    scheduler: SchedulerOption = Scheduler.model,
    shift: Annotated[float | None, typer.Option(help="Shift of the noise levels, above 1 for more noise.")] = None,
    prompt: Prompt = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it is not to show.")] = None,
    guidance_scale: GuidanceScale = None,
    image: Image = None,
    video: Annotated[Path | None, typer.Option(help="Clip whose frames to keep, to continue it.")] = None,
    last: Annotated[int | None, typer.Option(help="Keep the last frames of --video only, so many.")] = None,
    frame_index: FrameIndex = None,
    fps: Annotated[str | None, typer.Option(help="Frame rate. Default: that of --video, or 24.")] = None,
    sheet: Annotated[Path | None, typer.Option("--contact-sheet", help="PNG of all frames to write, too.")] = None,
    device: Device = None,
    dtype: ModelDType = None,
    compile: Compile = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate a video from noise, around given pictures or behind a given clip."""
    console.check_output(output, force)
    if sheet is not None:
        console.check_output(sheet, force, [".png"])
    given, clip_fps = read_given_frames(image, video, last)
    given |= read_prompt(prompt, negative_prompt, guidance_scale)
    rate = models.parse_fps(fps) or clip_fps or DEFAULT_FPS
    seed = secrets.randbelow(2**31) if seed is None else seed
    with open_output(output, rate, force) as write:
        pipeline = load_generation_pipeline(model, vae, models.Device.choose(device, dtype))
        pipeline.scheduler = make_scheduler(pipeline.scheduler, scheduler, shift)
        if compile:
            pipeline.enable_compile()
        result = pipeline(
            num_latent_frames=num_latent_frames,
            num_frames=num_frames,
            num_inference_steps=steps,
            frame_indices=frame_index or None,
            generator=models.make_generator(seed),
            output_type="np",
            **given,
        )
        frames = (result.frames[0] * 255).round().astype("uint8")
        write(frames)
    if sheet is not None:
        write_contact_sheet(frames, sheet)
    report = {
        "output": output,
        "model": models.model_name(model),
        "seed": seed,
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": steps,
        **describe_video(result, frames, rate),
    }
    fields = {"model": report["model"], "seed": seed, "clip": console.clip_text(report)}
    fields["latent frames at"] = " ".join(map(str, report["positions"]))
    console.print_result(report, json, str(output), fields)


def describe_video(result: GapDiTPipelineOutput, frames: np.ndarray, fps: Fraction) -> dict[str, Any]:
    """What was generated, as plain values."""
    return {
        "num_frames": len(frames),
        "width": frames.shape[2],
        "height": frames.shape[1],
        "fps": fps,
        "gaps": result.gaps[0].tolist(),
        "positions": result.positions[0].tolist(),
    }


def load_generation_pipeline(model: str | None, vae: str | None, device: models.Device) -> GapDiTPipeline:
    from diffusers.utils.logging import disable_progress_bar

    from diffusers_vidvae import FlowMatchGapScheduler, GapDiTPipeline

    source = sources.current.get()
    models.check_source(model, source)
    folder = models.demo_folder() if model is None else Path(model)
    if vae is None and (model is None or not models.is_checkpoint(folder)):
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            raise CommandError(f"{folder}: is no pipeline (model_index.json); for a GapDiT alone give --vae, too.")
        if not folder.exists():
            models.check_hub_id(str(model))
        if not console.stderr.is_terminal:
            disable_progress_bar()
        pipeline = GapDiTPipeline.from_pretrained(str(folder), torch_dtype=device.dtype, **source.given())
        return models.quiet_pipeline(pipeline.to(device.device))
    transformer = models.load_model(model, device, "transformer", "transformer")
    models.require_class(transformer, "GapDiT", model)
    if vae is None:
        raise CommandError(f"{model}: is a GapDiT alone; give its autoencoder with --vae.")
    autoencoder = models.load_model(vae, device, source=sources.DEFAULT)
    models.require_class(autoencoder, "FrameSelectVAE", vae)
    return models.quiet_pipeline(GapDiTPipeline(transformer, autoencoder, FlowMatchGapScheduler()))


def make_scheduler(current: SchedulerMixin, kind: Scheduler, shift: float | None) -> SchedulerMixin:
    """The scheduler that was asked for, with the settings of the model's own."""
    import diffusers

    from diffusers_vidvae import FlowMatchGapScheduler

    options: dict[str, Any] = {} if shift is None else {"shift": shift}
    if kind in (Scheduler.unipc, Scheduler.dpm):
        options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        options |= {} if shift is None else {"flow_shift": shift}
    classes = {
        Scheduler.model: type(current),
        Scheduler.gap: FlowMatchGapScheduler,
        Scheduler.euler: diffusers.FlowMatchEulerDiscreteScheduler,
        Scheduler.heun: diffusers.FlowMatchHeunDiscreteScheduler,
        Scheduler.unipc: diffusers.UniPCMultistepScheduler,
        Scheduler.dpm: diffusers.DPMSolverMultistepScheduler,
    }
    if shift is not None and not shift > 0:
        raise CommandError(f"--shift must be positive, got {shift}.")
    return classes[kind].from_config(current.config, **options)


def read_given_frames(
    images: list[Path] | None, video: Path | None, last: int | None
) -> tuple[dict[str, Any], Fraction | None]:
    """Arguments of the pipeline for the frames to keep, and the frame rate of the clip they come from."""
    if images and video is not None:
        raise CommandError("give --image or --video, not both.")
    if last is not None and (video is None or last < 1):
        raise CommandError(f"--last {last}: takes the last frames of a --video, at least 1.")
    if images:
        return {"image": [str(path) for path in images]}, None
    if video is None:
        return {}, None

    from collections import deque

    from diffusers_vidvae.media import VideoReader

    with VideoReader(video) as reader:
        frames = deque((frame.data for frame in reader), maxlen=last)
        return {"video": list(frames)}, reader.info.fps


def read_prompt(prompt: str | None, negative_prompt: str | None, guidance_scale: float | None) -> dict[str, Any]:
    """Arguments of the pipeline for what the video is to show; none without a prompt."""
    options = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
    given = {name: value for name, value in options.items() if value is not None}
    if prompt is None and given:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(f"{names}: there is no --prompt.")
    return {} if prompt is None else {"prompt": prompt, **given}


@contextmanager
def open_output(output: Path, fps: Fraction, overwrite: bool) -> Iterator[Callable[[np.ndarray], None]]:
    """The function that writes frames `(T, H, W, 3)` of uint8 as the output's name says.

    Raises:
        MediaError: The output cannot be written; that is known here, before frames are generated for it.
    """
    from diffusers_vidvae.media import VideoWriter

    if output.suffix.lower() == ".png":
        yield lambda frames: write_contact_sheet(frames, output)
        return
    with VideoWriter(output, fps, overwrite=overwrite) as writer:
        yield writer.write


def write_contact_sheet(frames: np.ndarray, path: Path) -> None:
    """Writes frames `(T, H, W, 3)` of uint8 side by side into one image."""
    from diffusers_vidvae.media import contact_sheet, save_image

    labels = [str(index) for index in range(len(frames))]
    save_image(contact_sheet(frames, labels=labels), path, overwrite=True)
