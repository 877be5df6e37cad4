r"""Generation of video from noise: latent frames and the gaps between them, decoded to every frame."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import is_torch_xla_available, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from diffusers_vidvae.autoencoders import require_frame_select
from diffusers_vidvae.media.clips import ClipInput, open_clips, open_images
from diffusers_vidvae.media.layouts import Layout, ValueRange
from diffusers_vidvae.models.clip_windows import clip_windows
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.models.gap_dit import GapDiT, share_noise
from diffusers_vidvae.schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler, GapPlan, check_sigmas

from .callbacks import check_callback_inputs
from .compilation import CompileMixin
from .flow_schedulers import FLOW_SCHEDULERS, dynamic_shift, is_flow_matching, takes_generator
from .frame_conditioning import (
    GivenFrames,
    consecutive_runs,
    fill_frame,
    known_gaps,
    place_at,
    place_given_frames,
)
from .lora_loading import GapDiTLoraLoaderMixin, lora_weight
from .output_videos import join_windows, stack_videos
from .pipeline_output import GapDiTPipelineOutput
from .text_prompts import TextEmbeddings, count_prompts, embed_texts
from .video_lengths import plan_positions, position_rows, resolve_frame_indices, resolve_lengths


if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

    XLA_AVAILABLE = True
else:
    XLA_AVAILABLE = False

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers_vidvae import GapDiTPipeline, demo_model
        >>> from diffusers_vidvae.media import VideoWriter

        >>> pipe = GapDiTPipeline.from_pretrained(demo_model())
        >>> generator = torch.Generator().manual_seed(0)
        >>> output = pipe(prompt="a large red disc moves fast to the left on a blue background", generator=generator)
        >>> with VideoWriter("generated.mp4", fps=8) as writer:
        ...     writer.write(output.frames[0])
        >>> print(output.positions[0])

        >>> # A photo as the first frame, another as the last one.
        >>> output = pipe(num_latent_frames=4, num_frames=16, image=["a.png", "b.png"], frame_indices=[0, 15])
        ```
"""


class GapDiTPipeline(DiffusionPipeline, GapDiTLoraLoaderMixin, CompileMixin):
    r"""Generates video: a `GapDiT` makes latent frames and gaps, a `FrameSelectVAE` all frames.

    A transformer that was trained with captions follows a prompt; others take none. Frames that are given (a photo to
    start from, a clip to continue, two photos to fill between) are kept exactly.

    Args:
        transformer: The model of latent frames and gaps.
        vae: The autoencoder whose latents it generates; None for `output_type="latent"` alone.
        scheduler: Any flow-matching scheduler of diffusers. Multistep solvers need `use_flow_sigmas=True` and
            `prediction_type="flow_prediction"`.
        text_encoder: The text encoder that the transformer was trained with, of the CLIP or T5 family; None for a
            transformer without text, or for `prompt_embeds` alone.
        tokenizer: Its tokenizer.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "gaps"]

    def __init__(
        self,
        transformer: GapDiT,
        vae: FrameSelectVAE | None,
        scheduler: FlowMatchGapScheduler
        | FlowMatchEulerDiscreteScheduler
        | FlowMatchHeunDiscreteScheduler
        | FlowMatchLCMScheduler
        | UniPCMultistepScheduler
        | DPMSolverMultistepScheduler,
        text_encoder: CLIPTextModel | T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__()
        require_frame_select(vae, type(self).__name__)
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.vae_scale_factor = self.vae.config.patch_size if getattr(self, "vae", None) else 16
        self.sample_size = self.transformer.config.sample_size if getattr(self, "transformer", None) else 16
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        device: torch.device | None = None,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        r"""Text embeddings of prompts, in the type of the transformer.

        Args:
            prompt: What the video is to show, or what each video is; an empty one without any.
            negative_prompt: What it is not to show; empty by default.
            do_classifier_free_guidance: Whether embeddings of the negative prompt are needed.
            num_videos_per_prompt: Videos of every prompt.
            prompt_embeds: Embeddings instead of `prompt`, `(prompts, text_tokens, text_dim)`.
            negative_prompt_embeds: Embeddings instead of `negative_prompt`.
            prompt_attention_mask: Bool `(prompts, text_tokens)` of `prompt_embeds`, False for padding.
            negative_prompt_attention_mask: That of `negative_prompt_embeds`.
            max_sequence_length: Tokens of a prompt; by default as many as the tokenizer has.
            device: Where to put the embeddings.
            lora_scale: Weight of the text encoder's active LoRAs.

        Returns:
            Embeddings and mask of the prompts, and of the negative ones or None.

        Raises:
            ValueError: A text is given twice, or as words to a pipeline without text encoder.
        """
        device = device or self._execution_device
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise ValueError(f"Give `{name}` or `{name}_embeds`, not both.")

        options = max_sequence_length, device, lora_scale
        prompts = self._embed_prompt("prompt", prompt, prompt_embeds, prompt_attention_mask, *options)
        embeds, mask = prompts.repeated(num_videos_per_prompt)
        if not do_classifier_free_guidance:
            return embeds, mask, None, None
        negatives = self._embed_prompt(
            "negative_prompt", negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask, *options
        )
        return embeds, mask, *negatives.for_batch(len(prompts.embeds)).repeated(num_videos_per_prompt)

    def _embed_prompt(
        self,
        name: str,
        texts: str | list[str] | None,
        embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        max_sequence_length: int | None,
        device: torch.device,
        lora_scale: float | None,
    ) -> TextEmbeddings:
        """Embeddings of texts, or those that are given, on a device."""
        if embeds is not None:
            found = TextEmbeddings(embeds.to(device), None if mask is None else mask.bool().to(device))
        elif self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                f"This pipeline has no text encoder and tokenizer; give `{name}_embeds` instead of `{name}`."
            )
        else:
            texts = [texts or ""] if isinstance(texts, str) or texts is None else list(texts)
            with lora_weight(self.text_encoder, lora_scale):
                found = embed_texts(self.text_encoder, self.tokenizer, texts, max_sequence_length, device)
        return TextEmbeddings(found.embeds.to(self.transformer.dtype), found.mask)

    def check_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        num_videos_per_prompt: int,
    ) -> None:
        r"""Refuses prompts of the wrong type, and any for a transformer without text."""
        if num_videos_per_prompt < 1:
            raise ValueError(f"`num_videos_per_prompt` must be at least 1, got {num_videos_per_prompt}.")
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            is_texts = isinstance(text, list) and all(isinstance(one, str) for one in text) and bool(text)
            if text is not None and not isinstance(text, str) and not is_texts:
                raise ValueError(f"`{name}` must be a text or a list of texts, got {text!r}.")
        asked = [prompt, negative_prompt, prompt_embeds]
        if self.transformer.config.text_dim is None and any(text is not None for text in asked):
            raise ValueError("This transformer was trained without text, so it takes no prompt.")

    def prepare_conditions(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        num_videos_per_prompt: int,
        batch_size: int,
        **embeddings: Any,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        r"""Arguments of the transformer that tell it the prompts, and those for the negative ones if it is guided."""
        if self.transformer.config.text_dim is None:
            return {}, None
        embeds, mask, negative, negative_mask = self.encode_prompt(
            prompt,
            negative_prompt,
            self.do_classifier_free_guidance,
            num_videos_per_prompt,
            lora_scale=(self._attention_kwargs or {}).get("scale"),
            **embeddings,
        )
        conditions = TextEmbeddings(embeds, mask).for_batch(batch_size).arguments()
        if negative is None:
            return conditions, None
        return conditions, TextEmbeddings(negative, negative_mask).for_batch(batch_size).arguments()

    def predict(
        self,
        latents: torch.Tensor,
        sigma: float,
        frame_mask: torch.Tensor | None,
        conditions: dict[str, torch.Tensor],
        negative_conditions: dict[str, torch.Tensor] | None,
        **cache_context: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        r"""Velocity, gaps and tail of a state, guided away from a negative prompt (arXiv:2207.12598).

        In a model that denoises gaps, they are those that the guided velocity points to.
        """
        # Schedulers that round their timesteps keep exact noise levels.
        timestep = torch.full((len(latents),), 1000 * sigma, device=latents.device)

        def run(name: str, arguments: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            with self.transformer.cache_context(name, sigma=sigma, **cache_context):
                return self.transformer(
                    hidden_states=latents.to(self.transformer.dtype),
                    timestep=timestep,
                    frame_mask=frame_mask,
                    attention_kwargs=self._attention_kwargs,
                    return_dict=False,
                    **arguments,
                )

        velocity, gaps, *tails = run("cond", conditions)
        velocity = velocity.float()
        if negative_conditions is not None:
            negative = run("uncond", negative_conditions)[0].float()
            velocity = negative + self.guidance_scale * (velocity - negative)
            if tails:
                gaps, *tails = self.transformer.estimate_gaps(latents, velocity, timestep, frame_mask)
        return velocity, gaps, tails[0] if tails else None

    def check_inputs(
        self,
        batch_size: int,
        num_latent_frames: list[int],
        num_frames: list[int | None],
        height: int,
        width: int,
        num_inference_steps: int,
        sigmas: list[float] | None,
        frame_indices: list[int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        if not is_flow_matching(self.scheduler):
            raise ValueError(
                f"The scheduler must be one of {[cls.__name__ for cls in FLOW_SCHEDULERS]}, or a multistep solver with"
                ' `use_flow_sigmas=True` and `prediction_type="flow_prediction"`, got'
                f" {type(self.scheduler).__name__}."
            )
        if self.vae is None and (output_type != "latent" or frame_indices):
            raise ValueError(
                f"Without a `vae` there are latents only, and no frames can be given: `output_type` must be 'latent',"
                f" got {output_type!r} and {len(frame_indices)} frames."
            )
        if self.vae is not None and self.transformer.config.in_channels != self.vae.config.latent_channels:
            raise ValueError(
                f"The transformer generates {self.transformer.config.in_channels} latent channels, the autoencoder has"
                f" {self.vae.config.latent_channels}."
            )
        if height % self.vae_scale_factor or width % self.vae_scale_factor or min(height, width) < 1:
            raise ValueError(
                f"`height` and `width` must be multiples of {self.vae_scale_factor}, got {height} and {width}."
            )
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
        if sigmas is not None:
            check_sigmas(sigmas)
        self._check_lengths(num_latent_frames, num_frames, frame_indices)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` must be one or a list of {batch_size}, got a list of {len(generator)}.")
        shape = self._latent_shape(batch_size, max(num_latent_frames), height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def _check_lengths(
        self, num_latent_frames: list[int], num_frames: list[int | None], frame_indices: list[int]
    ) -> None:
        max_latent_frames = self.transformer.config.max_num_frames
        for count, length in zip(num_latent_frames, num_frames, strict=True):
            if not 1 <= count <= max_latent_frames:
                raise ValueError(f"`num_latent_frames` must be from 1 to {max_latent_frames}, got {count}.")
            if length is not None and length < count:
                raise ValueError(
                    f"`num_frames` must be at least the latent frames, got {length} frames for {count} latent frames."
                )
            if len(frame_indices) > count:
                raise ValueError(f"{len(frame_indices)} given frames do not fit in {count} latent frames.")
            for index in frame_indices:
                longest = self._longest_video(count) if length is None else length
                if not 0 <= index < longest:
                    raise ValueError(
                        f"`frame_indices` must be from 0 to {longest - 1} in a video of {longest} frames, got {index}."
                    )
        if len(set(frame_indices)) != len(frame_indices):
            raise ValueError(f"`frame_indices` must differ from each other, got {frame_indices}.")

    def _longest_video(self, num_latent_frames: int) -> int:
        """The autoencoder has never seen two kept frames farther apart than its longest clip."""
        assert self.vae is not None
        return num_latent_frames * self.vae.config.max_num_frames

    def _latent_shape(self, batch_size: int, num_latent_frames: int, height: int, width: int) -> tuple[int, ...]:
        channels = self.transformer.config.in_channels + self.transformer.num_gap_channels
        return (
            batch_size,
            channels,
            num_latent_frames,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )

    def prepare_frames(
        self,
        video: ClipInput | None,
        image: Any,
        height: int,
        width: int,
        layout: Layout | None = None,
        value_range: ValueRange | None = None,
    ) -> list[list[torch.Tensor]]:
        r"""Reads given frames and brings them to one size, filling it and cutting off what sticks out.

        Args:
            video: Clips, see `open_clips`.
            image: A picture or a list of pictures, see `open_images`.
            height: Height of the frames.
            width: Width of the frames.
            layout, value_range: See `open_clips`.

        Returns:
            The frames of every clip, `(1, C, height, width)` in [-1, 1].

        Raises:
            ValueError: Both `video` and `image` are given, or what is given is none.
        """
        if video is not None and image is not None:
            raise ValueError("Give `video` or `image`, not both.")
        if video is not None:
            clips = [list(clip) for clip in open_clips(video, layout=layout, value_range=value_range)]
        elif image is not None:
            clips = [[frame for clip in open_images(image, value_range=value_range) for frame in clip]]
        else:
            return []
        return [[fill_frame(frame.to_pixels()[None], height, width) for frame in clip] for clip in clips]

    def encode_frames(self, frames: torch.Tensor, frame_indices: list[int]) -> torch.Tensor:
        r"""Normalised latents of given frames; neighbours are encoded as one clip, others alone.

        Args:
            frames: Pixels in [-1, 1], `(batch, channels, given, height, width)`.
            frame_indices: Their frame indices, rising.

        Returns:
            float32 `(batch, latent_channels, given, latent_height, latent_width)`.
        """
        runs = [
            self.vae.encode(frames[:, :, run], return_dict=False)[0].mode() for run in consecutive_runs(frame_indices)
        ]
        return self.transformer.normalize_latents(self.vae.normalize_latents(torch.cat(runs, dim=2).float()))

    def prepare_latents(
        self,
        num_latent_frames: list[int],
        height: int,
        width: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""Noise of the shape of the transformer's input, drawn clip by clip, gap channels one number a frame.

        Args:
            num_latent_frames: Number of latent frames of each video.
            height: Height of the frames, in pixels.
            width: Width of the frames, in pixels.
            device: Where to put the noise.
            generator: Source of noise; a list gives every video its own.
            latents: Noise to take instead.
        """
        batch_size, channels = len(num_latent_frames), self.transformer.config.in_channels
        shape = self._latent_shape(batch_size, max(num_latent_frames), height, width)
        if latents is None:
            latents = torch.zeros(shape, device=device)
            for clip, count in enumerate(num_latent_frames):
                source = generator[clip] if isinstance(generator, list) else generator
                size = (1, channels, count, *shape[3:])
                noise = randn_tensor(size, generator=source, device=device)
                if self.transformer.config.shared_noise:
                    shared = randn_tensor((1, channels, 1, *shape[3:]), generator=source, device=device)
                    noise = share_noise(noise, shared, self.transformer.config.shared_noise)
                latents[clip, :channels, :count] = noise[0]
                if self.transformer.num_gap_channels:
                    size = (1, self.transformer.num_gap_channels, count, 1, 1)
                    latents[clip, channels:, :count] = randn_tensor(size, generator=source, device=device)[0]
        return self._level_gap_channels(latents.to(device, torch.float32))

    def _level_gap_channels(self, latents: torch.Tensor) -> torch.Tensor:
        """Makes gap channels constant over height and width; noise of a stochastic scheduler is not."""
        if not self.transformer.num_gap_channels:
            return latents
        latents, gap_channels = latents.tensor_split([self.transformer.config.in_channels], dim=1)
        return torch.cat([latents, gap_channels[..., :1, :1].expand_as(gap_channels)], dim=1)

    def prepare_given_frames(
        self,
        clips: list[list[torch.Tensor]],
        frame_indices: list[int],
        frame_mask: torch.Tensor,
        num_frames: list[int | None],
        device: torch.device,
    ) -> GivenFrames | None:
        r"""Encodes given frames and finds them places among the latent frames; None without frames.

        Args:
            clips: Frames of every video, or of one for all videos.
            frame_indices: Where they go in the video.
            frame_mask: Bool `(batch, kept)`; False for padding.
            num_frames: Length of each video, where it is asked for.
            device: Where to put the latents.
        """
        if not clips:
            return None
        order = sorted(range(len(frame_indices)), key=frame_indices.__getitem__)
        frame_indices = [frame_indices[i] for i in order]
        frames = torch.cat([torch.stack([clip[i] for i in order], dim=2) for clip in clips])  # (B, C, M, H, W)
        latents = self.encode_frames(frames.to(device), frame_indices)
        latents = latents.expand(len(frame_mask), -1, -1, -1, -1)
        return place_given_frames(latents, frame_indices, frame_mask, num_frames, self.transformer)

    def _prepare_known(
        self,
        clips: list[list[torch.Tensor]],
        frame_indices: list[int],
        positions: list[int] | list[list[int]] | None,
        frame_mask: torch.Tensor,
        num_frames: list[int | None],
        height: int,
        width: int,
    ) -> GivenFrames | None:
        """What is known of the latent frames: those of given frames, or only their places, or nothing."""
        if positions is None:
            return self.prepare_given_frames(clips, frame_indices, frame_mask, num_frames, frame_mask.device)
        rows = position_rows(positions, frame_mask, num_frames)
        size = self._latent_shape(len(frame_mask), 1, height, width)[3:]
        return place_at(rows, frame_mask, num_frames, self.transformer, size)

    def set_timesteps(
        self, num_inference_steps: int, sigmas: list[float] | None, num_tokens: int, device: torch.device
    ) -> tuple[torch.Tensor, list[float]]:
        r"""Sets the scheduler's steps; returns its timesteps and the noise level of each, and the last one."""
        parameters = inspect.signature(self.scheduler.set_timesteps).parameters
        options: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if sigmas is not None:
            if "sigmas" not in parameters:
                raise ValueError(f"{type(self.scheduler).__name__} takes no `sigmas`; give `num_inference_steps`.")
            options = {"sigmas": sigmas, "num_inference_steps": len(sigmas)}
        if self.scheduler.config.get("use_dynamic_shifting"):
            options["mu"] = dynamic_shift(self.scheduler.config, num_tokens)
        self.scheduler.set_timesteps(device=device, **options)
        self.scheduler.set_begin_index(0)
        return self.scheduler.timesteps, self.scheduler.sigmas.tolist()

    @torch.no_grad()
    def decode(
        self,
        latents: torch.Tensor,
        gaps: torch.Tensor,
        num_frames: int | list[int] | torch.Tensor,
        output_type: str = "pil",
    ) -> list[Any] | np.ndarray | torch.Tensor:
        r"""Decodes what `output_type="latent"` gave, now or after it was saved.

        Args:
            latents: Latent frames, `(batch, latent_channels, kept, height, width)`: the output's `frames`.
            gaps: The output's `gaps`, int64 `(batch, kept)`.
            num_frames: The output's `num_frames`: length of every video.
            output_type: `"pil"`, `"np"` or `"pt"`.

        Returns:
            The videos, as `__call__` returns them in `frames`.

        Raises:
            ValueError: There is no `vae`, shapes do not fit each other or the autoencoder, or gaps lead beyond a
                video's end.
        """
        if self.vae is None:
            raise ValueError("Decoding needs a `vae`, which this pipeline was made without.")
        if output_type not in OUTPUT_TYPES[:-1]:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES[:-1]}, got {output_type!r}.")
        if latents.ndim != 5 or gaps.shape != (latents.shape[0], latents.shape[2]):
            raise ValueError(
                f"`latents` (batch, channels, kept, height, width) and `gaps` (batch, kept) do not fit each other: got"
                f" {tuple(latents.shape)} and {tuple(gaps.shape)}."
            )
        device = self._execution_device
        latents, gaps = latents.to(device), gaps.to(device)
        lengths = torch.as_tensor(num_frames, device=device).expand(len(gaps))
        # Padding, and nothing else but a first frame, is 0 frames away from the one before it.
        frame_mask = (gaps > 0) | (torch.arange(gaps.shape[1], device=device) == 0)
        positions = gaps.cumsum(dim=1)
        for last, length in zip(positions[:, -1].tolist(), lengths.tolist(), strict=True):
            if last >= length:
                raise ValueError(f"`gaps` lead to frame {last} of a video of {length} frames.")
        plan = GapPlan(gaps=gaps, positions=positions, num_frames=lengths)
        videos = stack_videos(self.decode_latents(latents, plan, frame_mask, output_type))
        self.maybe_free_model_hooks()
        return videos

    def decode_latents(
        self, latents: torch.Tensor, plan: GapPlan, frame_mask: torch.Tensor, output_type: str = "pil"
    ) -> list[Any]:
        r"""Decodes every video in windows of the autoencoder's clip length, so that memory does not grow with it.

        A window without any latent frame repeats the one before it, or after it at the beginning of the video.

        Args:
            latents: Normalised latent frames, `(batch, latent_channels, kept, height, width)`.
            plan: Where they go.
            frame_mask: Bool `(batch, kept)`; False for padding.
            output_type: `"pil"`, `"np"` or `"pt"`.

        Returns:
            For every video a list of PIL images, an array `(frames, height, width, channels)` or a tensor
            `(frames, channels, height, width)`, in [0, 1].
        """
        latents = self.vae.denormalize_latents(self.transformer.denormalize_latents(latents))
        videos = []
        for clip, mask in enumerate(frame_mask):
            pieces = self._place_latents(
                latents[clip : clip + 1, :, mask], plan.positions[clip, mask], int(plan.num_frames[clip])
            )
            windows = [
                self.video_processor.postprocess_video(frames.float(), output_type)
                for frames in self.vae.decode_stream(pieces)
            ]
            videos.append(join_windows(windows, output_type))
        return videos

    def _place_latents(
        self, latents: torch.Tensor, positions: torch.Tensor, num_frames: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Latents and keep mask of every window's new frames, from a video's latent frames `(1, C, kept, h, w)`."""
        for window in clip_windows(num_frames, self.vae.config.clip_num_frames):
            inside = (positions >= window.first_new) & (positions < window.stop)
            places = positions[inside] - window.first_new
            if not ((positions >= window.start) & (positions < window.stop)).any():
                before = int((positions < window.start).sum())
                inside = torch.arange(len(positions), device=positions.device) == max(before - 1, 0)
                places = positions.new_tensor([0 if before else window.stop - window.first_new - 1])
            num_new = window.stop - window.first_new
            placed = latents.new_zeros(*latents.shape[:2], num_new, *latents.shape[3:])
            placed[:, :, places] = latents[:, :, inside]
            keep_mask = torch.zeros(1, num_new, dtype=torch.bool, device=latents.device)
            keep_mask[:, places] = True
            yield placed, keep_mask

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        num_latent_frames: int | list[int] | None = None,
        num_frames: int | list[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        batch_size: int | None = None,
        video: ClipInput | None = None,
        image: Any = None,
        frame_indices: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        positions: list[int] | list[list[int]] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float = 4.0,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        layout: Layout | None = None,
        value_range: ValueRange | None = None,
    ) -> GapDiTPipelineOutput | tuple:
        r"""
        Generates videos.

        Args:
            num_latent_frames: Number of latent frames, or of each video; by default 8, or as many as the transformer
                takes. More of them show more that cannot be filled in between.
            num_frames: Exact number of frames, or of each video; by default what the generated gaps sum to.
            height: Height in pixels, by default the size the transformer was trained at.
            width: Width in pixels, likewise.
            num_inference_steps: Number of steps of the scheduler.
            sigmas: Noise levels to step through instead, falling, in (0, 1].
            batch_size: Number of videos; by default that of whichever list or tensor has one, or 1.
            video: Frames to keep as they are, in any of the forms that `diffusers_vidvae.media.open_clips` takes; one
                clip for all videos or a clip for each.
            image: A picture to keep, or a list of pictures: paths, URLs, PIL images, arrays or `(C, H, W)` tensors.
            frame_indices: Frame index in the video of every given frame. By default a clip's frames, or one picture,
                come first. Without `num_frames`, latent frames that are free go before and between them as far as
                there is room, the rest after.
            generator: Source of noise; a list gives every video its own.
            latents: Noise to start from, `(batch, in_channels + num_gap_channels, kept, height / patch, width /
                patch)`.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"latent"` for latent frames as they leave the last step,
                which `decode` takes later.
            return_dict: Whether to return a `GapDiTPipelineOutput` instead of a tuple.
            attention_kwargs: `{"scale": weight}` sets the weight of active LoRAs.
            callback_on_step_end: Called after every step with the pipeline, the step's number and timestep, and a
                dictionary of `callback_on_step_end_tensor_inputs`; what it returns there is taken over.
            callback_on_step_end_tensor_inputs: Any of `"latents"` and `"gaps"`.
            positions: Frame index of every latent frame, rising, or a list of them for each video, in the place of
                generated ones; not together with `video` or `image`.
            prompt: What the video is to show, for a transformer that was trained with captions; a list for a video
                each.
            negative_prompt: What it is not to show.
            guidance_scale: How far velocities go beyond the negative prompt's; 1 or less for no guidance.
            num_videos_per_prompt: Videos of every prompt.
            prompt_embeds: Text embeddings `(prompts, text_tokens, text_dim)` instead of `prompt`.
            negative_prompt_embeds: The same instead of `negative_prompt`.
            prompt_attention_mask: Bool `(prompts, text_tokens)` of `prompt_embeds`, False for padding.
            negative_prompt_attention_mask: That of `negative_prompt_embeds`.
            max_sequence_length: Tokens of a prompt, by default as many as the tokenizer has; longer ones are cut with
                a warning.
            layout: Order of the dimensions of an array or tensor where its shape fits two, such as `"BTCHW"`.
            value_range: What black and white are in an array or tensor of floats, if not what `open_clips` says.

        Examples:

        Returns:
            `GapDiTPipelineOutput`, or a tuple of its fields in the same order.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. What is asked for
        height = height or self.sample_size * self.vae_scale_factor
        width = width or self.sample_size * self.vae_scale_factor
        self.check_prompt(prompt, negative_prompt, prompt_embeds, num_videos_per_prompt)
        clips = self.prepare_frames(video, image, height, width, layout, value_range)
        frame_indices = resolve_frame_indices(frame_indices, clips)
        num_prompts = count_prompts(prompt, prompt_embeds, num_videos_per_prompt)
        latent_counts, lengths = resolve_lengths(
            batch_size,
            num_latent_frames,
            num_frames,
            positions,
            clips,
            latents,
            num_prompts,
            self.transformer.config.max_num_frames,
        )
        batch_size = len(latent_counts)
        self.check_inputs(
            batch_size,
            latent_counts,
            lengths,
            height,
            width,
            num_inference_steps,
            sigmas,
            frame_indices,
            generator,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._attention_kwargs = attention_kwargs
        self._guidance_scale = guidance_scale
        self._current_timestep = None
        self._interrupt = False
        device = self._execution_device

        # 2. Prompts, given frames, noise and steps
        conditions, negative_conditions = self.prepare_conditions(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            batch_size,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            max_sequence_length=max_sequence_length,
            device=device,
        )
        counts = torch.tensor(latent_counts, device=device)
        frame_mask = torch.arange(max(latent_counts), device=device) < counts[:, None]
        given = self._prepare_known(clips, frame_indices, positions, frame_mask, lengths, height, width)
        gap_conditions = known_gaps(given, self.transformer)
        conditions |= gap_conditions
        if negative_conditions is not None:
            negative_conditions |= gap_conditions
        latents = self.prepare_latents(latent_counts, height, width, device, generator, latents)
        num_tokens = latents.shape[2] * latents.shape[3] * latents.shape[4]
        timesteps, noise_levels = self.set_timesteps(num_inference_steps, sigmas, num_tokens, device)
        self._num_timesteps = len(timesteps)
        step_options = {"generator": generator} if takes_generator(self.scheduler) else {}

        # 3. From noise to latent frames and gaps
        noise = latents
        gaps, tail = torch.zeros(frame_mask.shape, device=device), None
        attention_frame_mask = None if frame_mask.all() else frame_mask
        if given is not None:
            latents = given.put_on_path(latents, noise, noise_levels[0])
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                sigma = noise_levels[i]
                velocity, gaps, tail = self.predict(
                    latents,
                    sigma,
                    attention_frame_mask,
                    conditions,
                    negative_conditions,
                    step_index=i,
                    num_inference_steps=len(timesteps),
                    timestep=timestep,
                )
                latents = self.scheduler.step(velocity, timestep, latents, **step_options, return_dict=False)[0]
                latents = self._level_gap_channels(latents)
                if given is not None:
                    latents = given.put_on_path(latents, noise, noise_levels[i + 1])

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, timestep, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    gaps = callback_outputs.pop("gaps", gaps)
                progress_bar.update()
                if XLA_AVAILABLE:
                    xm.mark_step()
        self._current_timestep = None

        # 4. Latent frames to their places, and from there to frames
        fixed_positions = None if given is None else given.positions
        step = self.transformer.config.frame_step
        plan = plan_positions(step, gaps, frame_mask, lengths, tail, fixed_positions)
        latents = latents[:, : self.transformer.config.in_channels]
        if output_type == "latent":
            frames = latents
        else:
            self._check_plan(plan, latent_counts, lengths)
            frames = stack_videos(self.decode_latents(latents, plan, frame_mask, output_type))

        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, plan.gaps, plan.positions, plan.num_frames
        return GapDiTPipelineOutput(
            frames=frames, gaps=plan.gaps, positions=plan.positions, num_frames=plan.num_frames
        )

    def _check_plan(self, plan: GapPlan, num_latent_frames: list[int], num_frames: list[int | None]) -> None:
        for length, count, asked in zip(plan.num_frames.tolist(), num_latent_frames, num_frames, strict=True):
            if asked is None and length > self._longest_video(count):
                raise ValueError(
                    f"The generated gaps make a video of {length} frames from {count} latent frames, more than the"
                    f" {self._longest_video(count)} that are plausible; give `num_frames`."
                )
