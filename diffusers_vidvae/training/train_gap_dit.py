r"""Trains a GapDiT on the latents of a frozen FrameSelectVAE.

    accelerate launch -m diffusers_vidvae.training.train_gap_dit --config FILE [section.key=value ...]

Two minutes on a CPU, on the latents of the embedded demo autoencoder:

    accelerate launch --cpu -m diffusers_vidvae.training.train_gap_dit --config gap_dit_cpu.yaml

A name without a folder is looked up in `diffusers_vidvae/training/configs`. Latents are encoded first, once, into
`latents.folder`; with `latents.num_clips=null`, a folder that `vidvae encode-dataset` filled is used as it is.

Every visit of a clip draws new latents from its posterior and new frames to keep. The kept latents, normalised per
channel, are packed to the front; noise is added along a straight line to a level that is logit-normal
(https://arxiv.org/abs/2403.03206), and the model predicts the direction, noise - data. In a model with
`gap_mode="flow"` the gaps are two more channels of that line; in one with `"regression"` they have a loss of their
own. With `text.encoder`, captions condition the model, see `text`; a model with `condition_on_gaps` is told the gaps
of a share of the clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F

from diffusers_vidvae.assets import demo_model
from diffusers_vidvae.media import clip_sheet, save_image
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.models.frame_selection import PackedFrames
from diffusers_vidvae.models.gap_dit import GapDiT, share_noise
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline
from diffusers_vidvae.schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler

from .config import RunConfig, TrainConfig, check_range, load_config
from .data import ClipDataset
from .draws import draw_latents, normal_noise, numpy_generator, torch_generators, uniform_noise
from .encoding import encode_dataset
from .latent_shards import LatentDataset
from .launch import config_path, run_from_command_line
from .losses import flow_matching_loss, gap_regression_loss
from .pretrained import load_pretrained, starting_model
from .text import (
    NEW_ENCODER,
    CaptionedLatents,
    CaptionEmbeddings,
    TextConfig,
    captions_of,
    load_text_encoder,
    new_text_encoder,
    word_tokenizer,
)
from .trainer import Batch, Objective, Trainer, make_accelerator


SELECTIONS = ("systematic", "bernoulli")


@dataclass
class LatentsConfig:
    """Where latents come from.

    Args:
        vae: Folder or Hub id of the FrameSelectVAE (or of a pipeline that holds one as `vae`); "demo" for the
            embedded one.
        folder: Folder of encoded latents; is filled from the `data` section if it does not exist, and must have been
            filled from the same data if it does.
        num_clips: Clips to encode; None takes `folder` as it is, whatever the `data` section says.
        shard_size: Clips of a shard.
        selection: How frames are chosen at every visit, "systematic" with a random offset or "bernoulli".
        max_kept: Most latent frames of a training clip; clips that ask for more keep as many as that.
        num_kept: Numbers of latent frames of which every batch draws one, in the place of as many as clips ask for;
            repeated ones come more often. Batches then have no padding.
        single_frame_phase: Share of the training, from its start, in which seven of eight batches have one latent
            frame a clip instead: what things look like is learned several times faster there than how they move.
        frame_step: Only every so many-th frame can be kept: with `cycle_length` of the autoencoder, channels that take
            turns always mean the same.
        pixel_metric: Whether a new model scales channels by what they do to pixels, which then show noise equally
            strong in all of them: colours and places are decided first, details last, and weigh as much as they show.
        precondition: Whether a new model knows the variance of each channel, its `latents_variance`.
        sorted_batches: Batches that are sorted together by the number of kept frames and then padded only up to the
            longest of their clips; 1 takes clips in any order and pads all to `max_kept`.
    """

    vae: str = "demo"
    folder: str = "runs/latents"
    num_clips: int | None = 10_000
    shard_size: int = 500
    selection: str = "systematic"
    max_kept: int = 16
    num_kept: list[int] = field(default_factory=list)
    single_frame_phase: float = 0.0
    frame_step: int = 1
    pixel_metric: bool = False
    precondition: bool = False
    sorted_batches: int = 1

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f"`latents.selection` must be one of {SELECTIONS}, got {self.selection!r}.")
        check_range("latents.max_kept", self.max_kept, 1)
        check_range("latents.sorted_batches", self.sorted_batches, 1)
        check_range("latents.frame_step", self.frame_step, 1)
        check_range("latents.single_frame_phase", self.single_frame_phase, 0, 1)
        if self.single_frame_phase and not self.num_kept:
            raise ValueError(
                "`latents.single_frame_phase` needs `latents.num_kept`, the counts of the phase after it."
            )
        for count in self.num_kept:
            check_range("latents.num_kept", count, 1, self.max_kept)


@dataclass
class LossConfig:
    """Weights of the loss.

    Args:
        gap_weight: Of the gaps: of their channels' velocity (`gap_mode="flow"`, about 1) or of the squared error in
            frames (`"regression"`, about 0.01); the latents' velocity has weight 1.
        known_gaps_share: Share of the clips whose gaps a model with `condition_on_gaps` is told.
        shared_noise: Part of the noise's variance that the latent frames of a clip have in common, which the model's
            config then says; None for what it says already.
        time_mean: Mean of the logit of the noise level.
        time_std: Standard deviation of the logit of the noise level.
    """

    gap_weight: float = 1.0
    known_gaps_share: float = 0.5
    shared_noise: float | None = None
    time_mean: float = 0.0
    time_std: float = 1.0


@dataclass
class TrainGapDiTConfig(TrainConfig):
    """Sections of the configuration file; `model` holds arguments of `GapDiT`.

    `in_channels`, `text_dim` and the gap statistics of the model follow from latents and text when they are not given.
    """

    latents: LatentsConfig = field(default_factory=LatentsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(max_steps=1_500_000))

    def __post_init__(self) -> None:
        if self.latents.num_clips is not None:
            super().__post_init__()


class GapDiTObjective(Objective):
    """GapDiT with its loss, and a text encoder if one is trained with it. The autoencoder is not trained.

    Args:
        model: The model.
        vae: The autoencoder of the latents.
        config: How to train.
        text: Text encoder and tokenizer of a model with text, and captions to validate with.
    """

    def __init__(self, model: GapDiT, vae: FrameSelectVAE, config: TrainGapDiTConfig, text: Text | None = None):
        super().__init__()
        self.model = model
        self.config = config
        model.register_to_config(frame_step=config.latents.frame_step)
        if config.loss.shared_noise is not None:
            model.register_to_config(shared_noise=config.loss.shared_noise)
        self.frozen = [vae]
        self.tokenizer = None if text is None else text.tokenizer
        self.prompts = [] if text is None else text.prompts
        if text is not None and config.text.is_trained:
            self.text_encoder = text.encoder
            self.saved_beside = ["text_encoder"]
        elif text is not None:
            self.frozen.append(text.encoder)

    @property
    def vae(self) -> FrameSelectVAE:
        """The autoencoder of the latents."""
        return cast(FrameSelectVAE, self.frozen[0])

    def forward(self, batch: Batch, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        packed = draw_packed_frames(self.vae, batch, self.config, progress, batch_number(batch["draw"]))
        channels, mask = packed.latents.shape[1], packed.mask
        data = self.clean_state(packed)  # (B, C, K, h, w)
        noise, sigma = self.noise(data, batch["draw"], channels)
        level = sigma[:, None, None, None, None]
        noisy = level * noise + (1 - level) * data
        output = self.model(noisy, 1000 * sigma, mask, **self._text(batch), **self._known_gaps(packed, batch["draw"]))

        latent_loss = flow_matching_loss(output.sample[:, :channels], noise[:, :channels], data[:, :channels], mask)
        if self.model.num_gap_channels:
            gap_loss = flow_matching_loss(output.sample[:, channels:], noise[:, channels:], data[:, channels:], mask)
        else:
            gap_loss = gap_regression_loss(output.gaps, packed.gaps, mask)
        loss = latent_loss + self.config.loss.gap_weight * gap_loss
        metrics = {"velocity": latent_loss.mean(), "gap": gap_loss.mean(), "kept": mask.float().sum(dim=1).mean()}
        metrics |= {"padding": (~mask).float().mean(), **losses_by_level(latent_loss, sigma)}
        return loss.mean(), {name: value.detach() for name, value in metrics.items()}

    def _text(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Text embeddings of a batch and their mask, for a model with text."""
        if "text_mask" not in batch:
            return {}
        mask = batch["text_mask"]
        embeds = (
            self.text_encoder(batch["token_ids"], attention_mask=mask)[0] if "token_ids" in batch else batch["text"]
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def _known_gaps(self, packed: PackedFrames, draws: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gaps of a share of the clips, for a model that can be told them."""
        if not self.model.config.condition_on_gaps:
            return {}
        gaps = self.model.encode_gaps(packed.gaps, packed.num_frames, packed.mask)  # (B, 2, K)
        chance = uniform_noise((), torch_generators(self.config.run.seed, draws, stream=4), gaps)
        told = (chance < self.config.loss.known_gaps_share)[:, None, None] & packed.mask[:, None]
        return {"known_gaps": gaps, "known_gaps_mask": told.expand_as(gaps)}

    def clean_state(self, packed: PackedFrames) -> torch.Tensor:
        """What noise is added to: normalised latents, and behind them the gap channels of models that have some."""
        latents = self.model.normalize_latents(self.vae.normalize_latents(packed.latents))
        if not self.model.num_gap_channels:
            return latents
        gap_channels = self.model.encode_gaps(packed.gaps, packed.num_frames, packed.mask)  # (B, 2, K)
        gap_channels = gap_channels[..., None, None].expand(-1, -1, -1, *latents.shape[3:])
        return torch.cat([latents, gap_channels], dim=1)

    def noise(self, data: torch.Tensor, draws: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise of the data's shape, gap channels one number a frame, and the noise level of each clip, `(B,)`."""
        generators = torch_generators(self.config.run.seed, draws, stream=3)
        logit = normal_noise((), generators, data) * self.config.loss.time_std + self.config.loss.time_mean
        kept, height, width = data.shape[2:]
        noise = normal_noise((channels, kept, height, width), generators, data)
        if self.model.config.shared_noise:
            shared = normal_noise((channels, 1, height, width), generators, data)
            noise = share_noise(noise, shared, self.model.config.shared_noise)
        if data.shape[1] > channels:
            gap_noise = normal_noise((data.shape[1] - channels, kept), generators, data)
            gap_noise = gap_noise[..., None, None].expand(-1, -1, -1, height, width)
            noise = torch.cat([noise, gap_noise], dim=1)
        return noise, logit.sigmoid()

    def validate(self, contact_sheet: Path) -> dict[str, float]:
        text_encoder: Any = getattr(self, "text_encoder", self.frozen[1] if len(self.frozen) > 1 else None)
        pipeline = GapDiTPipeline(self.model, self.vae, FlowMatchGapScheduler(), text_encoder, self.tokenizer)
        pipeline.set_progress_bar_config(disable=True)
        count, num_frames = min(self.config.run.validation_clips, 12), self.config.data.num_frames
        prompt = {"prompt": [self.prompts[i % len(self.prompts)] for i in range(count)]} if self.prompts else {}
        kept = [min(1 + 2 * (i % 4), self.config.latents.max_kept) for i in range(count)]
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        free = pipeline(kept, num_inference_steps=25, generator=generators, output_type="latent", **prompt)
        fixed = pipeline(kept, num_frames, num_inference_steps=25, generator=generators, output_type="pt", **prompt)
        save_image(clip_sheet([fixed.frames.transpose(1, 2) * 2 - 1]), contact_sheet, overwrite=True)
        return {"length": float(free.num_frames.float().mean())}


def losses_by_level(losses: torch.Tensor, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean loss `velocity_q1` to `velocity_q4` of the clips in each quarter of the noise levels; NaN without clips."""
    quarters = (sigma * 4).long().clamp(max=3)
    return {f"velocity_q{quarter + 1}": losses[quarters == quarter].mean() for quarter in range(4)}


def draw_packed_frames(
    vae: FrameSelectVAE, batch: Batch, config: TrainGapDiTConfig, progress: float = 1.0, number: int | None = None
) -> PackedFrames:
    """Latents drawn from the posteriors of a batch, of frames drawn to be kept, as `PackedFrames`.

    Batches of one number, by default that of their first draw, keep as many frames as each other.
    """
    options, frame_mask = config.latents, batch["frame_mask"]
    generators = torch_generators(config.run.seed, batch["draw"], stream=2)
    latents = draw_latents(batch["mean"], batch["std"], generators)
    every = slice(None, None, options.frame_step)
    probs, candidates = batch["keep_probs"][:, every], frame_mask[:, every]
    keep_mask = torch.zeros_like(frame_mask)
    if options.num_kept:
        number = int(batch["draw"][0]) if number is None else number
        rng = numpy_generator(config.run.seed, number, 8)
        is_single = rng.random() < 7 / 8 and progress < options.single_frame_phase
        count = 1 if is_single else min(int(rng.choice(options.num_kept)), int(candidates.sum(dim=1).min()))
        keep_mask[:, every] = vae.select_frames(probs, candidates, num_frames=count, generator=generators)
    else:
        keep_mask[:, every] = select_up_to(vae, probs, candidates, options, generators)
    packed = vae.pack_frames(latents, keep_mask, frame_mask)
    is_even = options.sorted_batches > 1 or options.num_kept
    return packed if is_even else pad_packed(packed, options.max_kept)


def batch_number(draws: torch.Tensor) -> int:
    """Which batch draws are of, the same for all processes that share it: none then waits for another's frames."""
    num_processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return int(draws[0]) // (len(draws) * num_processes)


def select_up_to(
    vae: FrameSelectVAE,
    probs: torch.Tensor,
    frame_mask: torch.Tensor,
    options: LatentsConfig,
    generators: list[torch.Generator],
) -> torch.Tensor:
    """Keep mask `(B, T)` of as many frames as clips ask for, and `max_kept` of those that ask for more."""
    keep_mask = vae.select_frames(probs, frame_mask, mode=options.selection, generator=generators)
    too_many = keep_mask.sum(dim=1) > options.max_kept
    for clip in too_many.nonzero()[:, 0].tolist():
        row = slice(clip, clip + 1)
        keep_mask[row] = vae.select_frames(
            probs[row], frame_mask[row], num_frames=options.max_kept, generator=generators[row]
        )
    return keep_mask


def pad_packed(packed: PackedFrames, num_kept: int) -> PackedFrames:
    """Pads to a fixed number of latent frames: compiled blocks then meet one shape only."""
    missing = num_kept - packed.mask.shape[1]
    return PackedFrames(
        latents=F.pad(packed.latents, (0, 0, 0, 0, 0, missing)),
        gaps=F.pad(packed.gaps, (0, missing)),
        mask=F.pad(packed.mask, (0, missing)),
        num_frames=packed.num_frames,
    )


def some_packed_frames(
    vae: FrameSelectVAE, dataset: LatentDataset, config: TrainGapDiTConfig
) -> Iterator[PackedFrames]:
    """The kept frames of up to 1000 clips, one by one, to take statistics of."""
    for draw in range(min(len(dataset), 1000)):
        yield draw_packed_frames(vae, {name: value[None] for name, value in dataset[draw].items()}, config)


def gap_statistics(vae: FrameSelectVAE, dataset: LatentDataset, config: TrainGapDiTConfig) -> tuple[float, float]:
    """Mean and standard deviation of log(1 + distance) between kept frames."""
    channels = []
    for packed in some_packed_frames(vae, dataset, config):
        gaps = packed.gaps[packed.mask]
        tail = packed.num_frames - 1 - gaps.sum()
        channels.append(torch.cat([gaps, gaps[1:], tail]).float().log1p())
    values = torch.cat(channels)
    return float(values.mean()), max(float(values.std()), 1e-3)


@torch.no_grad()
def pixel_statistics(
    vae: FrameSelectVAE, dataset: LatentDataset, config: TrainGapDiTConfig, probed_clips: int = 16
) -> tuple[list[float], list[float]]:
    """Mean of each channel of kept latents that the autoencoder has normalised, and what to divide it by.

    Divided so, equal changes of channels change pixels equally, and the mean square of all channels is 1.
    """
    packed = list(some_packed_frames(vae, dataset, config))
    values = kept_values(vae, packed)
    squares = torch.stack([squared_gains(vae, clip) for clip in packed[:probed_clips]]).mean(dim=0)
    gains = squares.sqrt().clamp(min=1e-6)
    scale = (gains * values.std(dim=1)).square().mean().sqrt()
    return values.mean(dim=1).tolist(), (scale / gains).tolist()


def squared_gains(vae: FrameSelectVAE, packed: PackedFrames, step: float = 0.1) -> torch.Tensor:
    """Mean squared change of the pixels for a change of each normalised channel, `(latent_channels,)`."""
    base = vae.decode(*vae.unpack_frames(packed)).sample
    gains = []
    for channel in range(packed.latents.shape[1]):
        latents = vae.normalize_latents(packed.latents)
        latents[:, channel] += step
        changed = dataclasses.replace(packed, latents=vae.denormalize_latents(latents))
        gains.append((vae.decode(*vae.unpack_frames(changed)).sample - base).square().mean() / step**2)
    return torch.stack(gains)


def model_arguments(
    vae: FrameSelectVAE, dataset: LatentDataset, config: TrainGapDiTConfig, text: Text | None = None
) -> dict[str, Any]:
    """The `model` section, completed by what follows from latents and text."""
    arguments = {"in_channels": vae.config.latent_channels, **config.model}
    if text is not None:
        arguments.setdefault("text_dim", text.encoder.config.hidden_size)
    if arguments.get("gap_mode") == "flow" and "gap_log_mean" not in arguments:
        arguments["gap_log_mean"], arguments["gap_log_std"] = gap_statistics(vae, dataset, config)
    if config.latents.pixel_metric and "latents_mean" not in arguments:
        arguments["latents_mean"], arguments["latents_std"] = pixel_statistics(vae, dataset, config)
    if config.latents.precondition and "latents_variance" not in arguments:
        arguments["latents_variance"] = channel_variances(vae, dataset, config, arguments.get("latents_std"))
    return arguments


def channel_variances(
    vae: FrameSelectVAE, dataset: LatentDataset, config: TrainGapDiTConfig, latents_std: list[float] | None = None
) -> list[float]:
    """Variance of each channel of kept latents that the autoencoder and then a model have normalised."""
    values = kept_values(vae, some_packed_frames(vae, dataset, config))
    deviations = values.std(dim=1) / torch.tensor(latents_std or [1.0])
    return deviations.square().clamp(min=1e-6).tolist()


def kept_values(vae: FrameSelectVAE, clips: Iterable[PackedFrames]) -> torch.Tensor:
    """Latents of kept frames that the autoencoder has normalised, `(latent_channels, values)`."""
    return torch.cat(
        [vae.normalize_latents(clip.latents).transpose(0, 1)[:, clip.mask].flatten(1) for clip in clips], dim=1
    )


def prepare_latents(config: TrainGapDiTConfig, vae: FrameSelectVAE) -> LatentDataset:
    """The encoded data set, encoded or finished where it is not. Gives the autoencoder its latents' statistics.

    Raises:
        ValueError: The folder holds latents of other data or of another autoencoder.
    """
    folder = Path(config.latents.folder)
    if config.latents.num_clips is not None:
        accelerator = make_accelerator(config.run)
        with accelerator.local_main_process_first():
            clips = ClipDataset(config.data, config.run.seed)
        num_clips, shard_size = config.latents.num_clips, config.latents.shard_size
        encode_dataset(vae, clips, folder, num_clips, shard_size, accelerator=accelerator)
    dataset = LatentDataset(folder, config.run.seed, vae, config.latents.sorted_batches)
    if vae.config.latents_mean is None:
        vae.register_to_config(latents_mean=dataset.latents_mean, latents_std=dataset.latents_std)
    return dataset


class Text(NamedTuple):
    """A text encoder with its tokenizer, and captions to look at samples of."""

    encoder: Any
    tokenizer: Any
    prompts: list[str]


def prepare_text(config: TrainGapDiTConfig, latents: LatentDataset) -> tuple[Text, CaptionedLatents]:
    """The text encoder of a training, and the latents with captions."""
    captions = captions_of(latents)
    encoder: Any
    tokenizer: Any
    if config.text.encoder == NEW_ENCODER:
        tokenizer = word_tokenizer(captions, config.text.max_tokens)
        torch.manual_seed(config.run.seed)
        encoder, embeddings = new_text_encoder(tokenizer, config.text), None
    else:
        encoder, tokenizer = load_text_encoder(config.text)
        encoder.requires_grad_(config.text.is_trained)
        embeddings = (
            None
            if config.text.is_trained
            else CaptionEmbeddings(
                latents.folder, captions, encoder, tokenizer, config.text.max_tokens, make_accelerator(config.run)
            )
        )
    prompts = [caption for caption in map(latents.caption, range(min(len(latents), 24))) if caption]
    dataset = CaptionedLatents(latents, tokenizer, config.text, config.run.seed, embeddings)
    return Text(encoder, tokenizer, prompts or captions[1:13]), dataset


def main(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains by a configuration file and returns the folder of the pipeline."""
    config = load_config(TrainGapDiTConfig, config_path(path), overrides)
    name = demo_model() if config.latents.vae == "demo" else config.latents.vae
    vae = load_pretrained(FrameSelectVAE, name).eval().requires_grad_(False)
    latents = prepare_latents(config, vae)
    text, dataset = (None, latents) if config.text.encoder is None else prepare_text(config, latents)
    arguments = {} if config.run.pretrained_model else model_arguments(vae, latents, config, text)
    model = starting_model(GapDiT, config.run, arguments)
    trainer = Trainer(GapDiTObjective(model, vae, config, text), dataset, config)
    folder = trainer.train()

    encoder = None if text is None else text.encoder
    if text is not None and config.text.is_trained:
        encoder = type(text.encoder).from_pretrained(folder.parent / "text_encoder")
    pipeline = GapDiTPipeline(
        GapDiT.from_pretrained(folder),
        vae,
        FlowMatchGapScheduler(),
        encoder,
        None if text is None else text.tokenizer,
    )
    pipeline.save_pretrained(Path(config.run.output_dir) / "pipeline")
    return Path(config.run.output_dir) / "pipeline"


if __name__ == "__main__":
    run_from_command_line(main, __doc__)
