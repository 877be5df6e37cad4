"""Typed training configurations, read from YAML."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from .procedural import COLOURS


ConfigType = TypeVar("ConfigType")


@dataclass
class DataConfig:
    """What a training clip is made of.

    Args:
        folders: Folders of videos and images, files, lists of files (`.txt`, `.csv`, `.tsv`, `.jsonl`), WebDataset
            shards (`.tar`, also URLs), data sets (`datasets://owner/name?column=video`) or indexes that `vidvae index`
            wrote; empty for procedural clips only.
        index: File that keeps what was found out about the files of `folders`; None keeps it in each folder.
        columns: Columns of lists, shards and data sets that are carried along with every clip.
        caption_column: Their column of captions.
        holdout: File names in those folders that training never reads.
        validation_folders: Folders (or files) whose clips validate the model, in the place of procedural ones. Files
            with fewer than `num_frames` frames, images too, are left out.
        procedural_share: Probability that a clip is procedural, in [0, 1].
        num_procedural_clips: Size of the procedural set.
        procedural_seed: Seed of the procedural set.
        procedural_max_shapes: Most shapes in a procedural clip.
        procedural_contrast: Contrast of procedural backgrounds, in [0, 1]; 0 makes them plain.
        procedural_motions: Kinds of motion of procedural clips, in turn; without "cuts", no clip changes its scene.
        procedural_palette: Draws procedural colours near named ones, shapes in other ones than their background.
        procedural_radii: Smallest and largest radius of a procedural shape, in pixels at 32x32.
        procedural_speeds: Lowest and highest speed of fast procedural motion, in pixels a frame at 32x32.
        procedural_colours: Names of the colours of a procedural palette.
        procedural_upright: Leaves procedural shapes unturned.
        procedural_inside: Keeps whole procedural shapes in the frame, not their centres alone.
        captions: Gives every clip its caption: procedural ones their own, files what a list or a text file beside
            them says, and nothing where that says nothing. Mirrored, reversed or recoloured clips would not be what
            their captions say, so those options must be off.
        num_frames: Frames of a clip.
        sample_size: Height and width of a clip, in pixels.
        fps: Frame rate that videos are resampled to; None keeps their own.
        min_crop: Side of the smallest random crop, as a fraction of a frame's shorter side, in (0, 1].
        horizontal_flip: Mirrors half of the clips.
        time_reversal: Plays half of the clips backwards.
        channel_shuffle: Permutes the colour channels of every clip.
        cached_side: Keeps every video decoded in memory, with this many pixels on its shorter side; None decodes
            from the file each time.
        num_workers: Data-loading processes of each training process; 0 loads in the training process itself.
    """

    folders: list[str] = field(default_factory=list)
    index: str | None = None
    columns: list[str] = field(default_factory=list)
    caption_column: str = "caption"
    holdout: list[str] = field(default_factory=list)
    validation_folders: list[str] = field(default_factory=list)
    procedural_share: float = 1.0
    num_procedural_clips: int = 12_000
    procedural_seed: int = 0
    procedural_max_shapes: int = 3
    procedural_contrast: float = 0.3
    procedural_motions: list[str] = field(default_factory=lambda: ["static", "slow", "fast", "bursts", "cuts"])
    procedural_palette: bool = False
    procedural_radii: list[float] = field(default_factory=lambda: [3.5, 8.0])
    procedural_speeds: list[float] = field(default_factory=lambda: [2.0, 4.0])
    procedural_colours: list[str] = field(default_factory=lambda: list(COLOURS))
    procedural_upright: bool = False
    procedural_inside: bool = False
    captions: bool = False
    num_frames: int = 16
    sample_size: int = 64
    fps: float | None = None
    min_crop: float = 0.5
    horizontal_flip: bool = True
    time_reversal: bool = True
    channel_shuffle: bool = False
    cached_side: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_range("data.procedural_share", self.procedural_share, 0, 1)
        check_range("data.min_crop", self.min_crop, 1e-3, 1)
        check_range("data.num_frames", self.num_frames, 1)
        wrong = [name for name in ("horizontal_flip", "time_reversal", "channel_shuffle") if getattr(self, name)]
        if self.captions and wrong:
            raise ValueError(f"`data.captions` needs `data.{wrong[0]}` to be false, or captions would not be true.")

    def check_folders(self) -> None:
        """Refuses a share of files without files."""
        if self.procedural_share < 1 and not self.folders:
            raise ValueError(
                f"`data.procedural_share` is {self.procedural_share}, so `data.folders` must name at least one folder."
            )


@dataclass
class RunConfig:
    """How a model is optimised, logged and saved.

    Args:
        output_dir: Folder of checkpoints, logs, contact sheets and the final model.
        pretrained_model: Folder or Hub id of a model to start from, or of a pipeline that holds it; "demo" for the
            embedded one. Its config replaces the `model` section.
        trained_parts: Modules of the model to train, such as "decoder" or "encoder.keep_head"; empty for all. The
            other weights stay as they are: with the encoder's, so do the latents that other models were trained on.
        init: Weights of a new model: "random", or "pca" for those with which it computes what the linear codec of
            principal components does.
        init_clips: Training clips that the principal components are of.
        baseline_clips: Training clips whose principal components make the linear codec that validations measure beside
            the model, as `psnr_linear_...`; 0 for none.
        resume: Whether to continue from the newest checkpoint in `output_dir` if there is one. Without it, a folder
            that holds checkpoints is refused.
        seed: Seed of every random number: weights, data, noise, masks.
        max_steps: Optimiser steps of the whole training; the end of the learning-rate schedule. With 0 the model is
            what `init` makes it.
        max_minutes: Minutes of the whole training over all its runs, in the place of `max_steps`. Progress, and with
            it the learning rate and the phases of a recipe, then follows the clock.
        batch_size: Clips of one process in one forward pass.
        gradient_accumulation_steps: Forward passes of one optimiser step.
        mixed_precision: "fp32", "bf16" or "fp16"; None leaves it to `accelerate config`.
        gradient_checkpointing: Recomputes activations in the backward pass to save memory.
        compile_blocks: Compiles the repeated blocks of the model. Costs about a minute once.
        cpu: Trains on the CPU even where there is an accelerator.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the end of the cosine, as a fraction of the peak.
        warmup_steps: Steps of linear warm-up.
        adam_betas: Decay rates of AdamW's two moments.
        weight_decay: AdamW's weight decay; not applied to norms, biases and other vectors.
        part_rates: Learning rates of parts of the model, such as {encoder.patch_embed: 0.1}, as factors of
            `learning_rate`; of nested parts the innermost counts.
        part_warmup: Share of the training over which the rates of those parts rise from 0, so that what is new beside
            them settles first; in [0, 1].
        discriminator_rate: Learning rate of a discriminator, as a factor.
        max_grad_norm: Largest norm of the gradient; larger ones are scaled down. A discriminator has its own norm.
        ema_decay: Decay of the exponential moving average of the model's weights, which is what gets validated and
            saved; 0 for none.
        log_every: Steps between two lines of the metrics log.
        validate_every: Steps between two validations; 0 for none but the last.
        validation_clips: Clips of a validation.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Minutes after which a checkpoint is due even before its step; None for steps alone.
        keep_checkpoints: Newest checkpoints to keep.
        trackers: accelerate trackers, such as "tensorboard".
    """

    output_dir: str = "runs/model"
    pretrained_model: str | None = None
    trained_parts: list[str] = field(default_factory=list)
    init: str = "random"
    init_clips: int = 256
    baseline_clips: int = 64
    resume: bool = True
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    compile_blocks: bool = False
    cpu: bool = False
    learning_rate: float = 6e-5
    final_learning_rate: float = 0.1
    warmup_steps: int = 100
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 0.01
    part_rates: dict[str, float] = field(default_factory=dict)
    part_warmup: float = 0.0
    discriminator_rate: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    log_every: int = 10
    validate_every: int = 500
    validation_clips: int = 32
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ValueError(
                "Give either `run.max_steps` or `run.max_minutes`, got"
                f" {self.max_steps} steps and {self.max_minutes} minutes."
            )
        if self.mixed_precision not in (None, "fp32", "bf16", "fp16"):
            raise ValueError(f"`run.mixed_precision` must be fp32, bf16 or fp16, got {self.mixed_precision!r}.")
        if self.init not in ("random", "pca"):
            raise ValueError(f"`run.init` must be one of ('random', 'pca'), got {self.init!r}.")
        if self.init == "pca" and self.pretrained_model:
            raise ValueError(
                f"`run.init` 'pca' is for new models, but `run.pretrained_model` is {self.pretrained_model}."
            )
        check_range("run.ema_decay", self.ema_decay, 0, 1)
        check_range("run.part_warmup", self.part_warmup, 0, 1)
        for part, factor in self.part_rates.items():
            check_range(f"run.part_rates.{part}", factor, 0)
        counts = ("batch_size", "gradient_accumulation_steps", "log_every", "checkpoint_every", "keep_checkpoints")
        check_range("run.baseline_clips", self.baseline_clips, 0)
        for name in (*counts, "init_clips"):
            check_range(f"run.{name}", getattr(self, name), 1)


@dataclass
class TrainConfig:
    """Sections that the configuration files of all models have; `model` holds arguments of its constructor."""

    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(max_steps=1_000_000))

    def __post_init__(self) -> None:
        self.data.check_folders()


# What may change between the runs of one training.
OPERATIONAL_FIELDS = frozenset(
    f"run.{name}"
    for name in (
        "output_dir",
        "resume",
        "max_steps",
        "max_minutes",
        "log_every",
        "validate_every",
        "validation_clips",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "baseline_clips",
        "trackers",
        "pretrained_model",
        "compile_blocks",
        # Their product with the number of processes may not; see `Trainer`.
        "batch_size",
        "gradient_accumulation_steps",
    )
) | {"data.num_workers", "data.cached_side", "data.validation_folders", "data.index"}


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Refuses a value outside of its range."""
    if value < low or high is not None and value > high:
        allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"`{name}` must be {allowed}, got {value}.")


def load_config(config_class: type[ConfigType], path: str | Path, overrides: Sequence[str] = ()) -> ConfigType:
    r"""Reads a YAML file into a configuration.

    Args:
        config_class: A dataclass whose fields are dataclasses (sections), dictionaries or plain values.
        path: The YAML file.
        overrides: Values that replace those of the file, such as `"run.max_steps=100"`.

    Raises:
        ValueError: There is no such file, or it is not YAML; a key or section does not exist; a value has the wrong
            type or is out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration file.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold sections, got a {type(values).__name__}.")
    for override in overrides:
        _apply_override(values, override)
    try:
        return build_config(config_class, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build_config(config_class: type[ConfigType], values: Mapping[str, Any], prefix: str = "") -> ConfigType:
    """Builds a (nested) dataclass from dictionaries; unknown keys are errors."""
    hints = get_type_hints(config_class)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown key `{prefix}{unknown[0]}`; the keys here are {', '.join(sorted(hints))}.")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"`{prefix}{name}` must be a section, got {value!r}.")
            arguments[name] = build_config(hint, value, f"{prefix}{name}.")
        else:
            arguments[name] = _checked_value(f"{prefix}{name}", value, hint)
    return config_class(**arguments)


def _checked_value(name: str, value: Any, hint: Any) -> Any:
    """The value, with integers made floats where floats are meant (and YAML's `1e-4`, which it reads as text)."""
    allowed = getattr(hint, "__args__", (hint,)) if "|" in str(hint) else (hint,)
    plain = tuple(getattr(kind, "__origin__", kind) for kind in allowed)
    if float in plain and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, plain) or isinstance(value, bool) and bool not in plain:
        kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in plain)
        raise ValueError(f"`{name}` must be {kinds}, got {value!r}.")
    return value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"An override must look like section.key=value, got {override!r}.")
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"`{section}` of the override {override!r} is no section.")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the override {override!r} is not YAML.") from error


def check_model_arguments(model_class: type, arguments: Mapping[str, Any]) -> None:
    """Refuses entries of a `model` section that the model's constructor does not take."""
    allowed = list(inspect.signature(model_class).parameters)
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(f"unknown key `model.{unknown[0]}`; the keys here are {', '.join(sorted(allowed))}.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the fields in which two flattened configurations differ, operational ones aside."""
    names = sorted((set(before) | set(now)) - OPERATIONAL_FIELDS)
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names if before.get(name) != now.get(name)
    ]
