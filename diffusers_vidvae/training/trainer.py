"""The training loop shared by the three models: optimiser, schedule, averages, logs, checkpoints.

A model and its losses form an `Objective`, one module whose forward pass is one training loss, so that whatever
accelerate wraps around it (DDP, FSDP, autocast) sees a single forward and a single backward pass.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .checkpoint import CheckpointError, checkpoint_folders, read_state, write_checkpoint
from .config import RunConfig, TrainConfig, flatten
from .draws import DrawSampler
from .metrics_log import Averages, MetricsLog
from .optimization import averaged_parameters, clip_separately, learning_rate, parameter_groups, set_learning_rates


METRICS_FILE = "metrics.jsonl"
EMA_FILE = "ema.safetensors"

# Tensors with a row for every clip, and captions.
Batch = dict[str, Any]


class Objective(nn.Module):
    """A model together with the loss that trains it.

    `forward(batch, progress)` takes a batch and the progress of the training in [0, 1] and returns the loss and
    metrics, all of them scalars; a metric that a batch says nothing about is NaN. State that a loss carries from step
    to step lives in buffers.

    Attributes:
        model: What is trained, averaged and saved.
        discriminator: What is trained against it, with its own learning rate and clipped by its own norm.
        saved_beside: Names of other modules, models of transformers, that are trained, averaged and saved with it.
        frozen: Models that losses or validation use as they are. They are moved to the device of the training, and
            neither trained nor saved; kept out of `named_modules` by the list.
    """

    model: ModelMixin
    discriminator: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = None
        self.saved_beside: list[str] = []
        self.frozen: list[nn.Module] = []

    def forward(self, batch: Batch, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        raise NotImplementedError

    def after_step(self, metrics: dict[str, float]) -> None:
        """Adapts the loss to the metrics of an optimiser step, which are the same in all processes."""

    def validate(self, contact_sheet: Path) -> dict[str, float]:
        """Metrics on held-out clips, of which it draws a contact sheet, a PNG file."""
        return {}


class Trainer:
    r"""Trains an objective.

    Args:
        objective: Model and loss.
        dataset: Maps a draw to a dictionary of tensors with the draw itself under `"draw"`. Its `sampler`, if it has
            one, says in which order draws come, as `DrawSampler` does otherwise.
        config: How to train; all of it goes to the logs and must be the same when a training is resumed, but for
            `OPERATIONAL_FIELDS`.
    """

    def __init__(self, objective: Objective, dataset: Dataset, config: TrainConfig):
        self.run = run = config.run
        self.accelerator = make_accelerator(run)
        self.output_dir = Path(run.output_dir)
        self.config = flatten(dataclasses.asdict(config))
        self.default_config = flatten(dataclasses.asdict(type(config)()))
        self.step = 0
        self.elapsed_seconds = 0.0
        self.dataset = dataset

        self.objective = objective
        if run.gradient_checkpointing:
            objective.model.enable_gradient_checkpointing()
        if run.compile_blocks:
            compile_blocks(objective.model)
        for module in objective.frozen:
            module.to(self.accelerator.device)
        groups = parameter_groups(objective, run)
        first_beta, second_beta = run.adam_betas
        # On a CPU the usual loop over parameters takes a tenth of a step. A loss scaler cannot skip fused steps.
        fused = self.accelerator.device.type == "cpu" and self.accelerator.scaler is None
        optimizer = torch.optim.AdamW(
            groups, lr=run.learning_rate, betas=(first_beta, second_beta), fused=fused or None
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.ema = self._make_ema()
        self.averages = Averages()
        self.log = MetricsLog(self.output_dir / METRICS_FILE)
        self.saved_step: int | None = None
        self.validated_step: int | None = None

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        if self.run.max_minutes is not None:
            return min(self.elapsed_seconds / (60 * self.run.max_minutes), 1.0)
        assert self.run.max_steps is not None
        return 1.0 if self.step >= self.run.max_steps else self.step / self.run.max_steps

    def train(self) -> Path:
        """Trains to the end and returns the folder of the final model.

        Raises:
            CheckpointError: The newest checkpoint is of another configuration or is not to be resumed, or one cannot
                be written.
            ValueError: The loss is not finite.
        """
        self._resume_or_start()
        self.wrapped.train()
        batches = self._batches()
        bar = tqdm(
            total=self.run.max_steps,
            initial=self.step,
            desc=type(self.objective.model).__name__,
            disable=not self.accelerator.is_main_process,
        )
        last_checkpoint, last_time = time.monotonic(), time.monotonic()
        while self.progress < 1:
            metrics = self._optimize(batches)
            self.step += 1
            now = time.monotonic()
            self.elapsed_seconds, last_time = self._shared_clock(self.elapsed_seconds + now - last_time), now
            self.averages.add(metrics)
            if self.step % self.run.log_every == 0:
                self._log(self.averages.take())
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss']:.4g}", refresh=False)

            # First what can be lost, then what can fail.
            if self._checkpoint_due(last_checkpoint):
                self._save_checkpoint()
                last_checkpoint = time.monotonic()
            if self.run.validate_every and self.step % self.run.validate_every == 0:
                self._validate()
        bar.close()
        self._save_checkpoint()
        self._validate()
        return self._save_final()

    def _batches(self) -> Iterator[Batch]:
        """Batches of this process from the current step on."""
        make_sampler = getattr(self.dataset, "sampler", DrawSampler)
        sampler = make_sampler(
            self.run.batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            first_batch=self.step * self.run.gradient_accumulation_steps,
        )
        num_workers = self.config["data.num_workers"]
        loader = DataLoader(
            self.dataset,
            batch_size=self.run.batch_size,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        for batch in loader:
            yield {
                name: values.to(self.accelerator.device) if isinstance(values, torch.Tensor) else values
                for name, values in batch.items()
            }

    @property
    def _objective(self) -> Objective:
        return self.accelerator.unwrap_model(self.wrapped)

    def _optimize(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; returns the metrics, averaged over accumulated batches and processes."""
        accumulated = self.run.gradient_accumulation_steps
        rate = learning_rate(self.run, self.step, self.progress)
        set_learning_rates(self.optimizer, rate, self.run, self.progress)
        values: dict[str, list[torch.Tensor]] = {}
        for index in range(accumulated):
            synchronize = index == accumulated - 1
            with nullcontext() if synchronize else self.accelerator.no_sync(self.wrapped), attention_kernel(self.run):
                loss, metrics = self.wrapped(next(batches), self.progress)
                if not torch.isfinite(loss):
                    raise ValueError(f"The loss is {loss.item()} at step {self.step}; lower the learning rate.")
                self.accelerator.backward(loss / accumulated)
            for name, value in {"loss": loss, **metrics}.items():
                values.setdefault(name, []).append(value.detach().float())

        norms = self._clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        skipped = self.accelerator.optimizer_step_was_skipped
        if self.ema is not None and not skipped:
            self.ema.step(averaged_parameters(self._objective))
        averages = self._average(values)
        self._objective.after_step(averages)
        return averages | norms | {"learning_rate": rate} | ({"skipped": 1.0} if skipped else {})

    def _clip_gradients(self) -> dict[str, float]:
        """Scales down large gradients; returns their norms before.

        Raises:
            ValueError: A gradient is not finite, and no loss scaler will skip the step.
        """
        limit = self.run.max_grad_norm
        if self.objective.discriminator is None:
            norms = {"gradient_norm": self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)}
        else:
            self.accelerator.unscale_gradients()
            model, discriminator = clip_separately(self.optimizer, limit)
            norms = {"gradient_norm": model, "discriminator_gradient_norm": discriminator}
        for name, norm in norms.items():
            if self.accelerator.scaler is None and not math.isfinite(norm):
                raise ValueError(f"The {name.replace('_', ' ')} is {float(norm)} at step {self.step}.")
        return {name: float(norm) for name, norm in norms.items()}

    def _average(self, values: dict[str, list[torch.Tensor]]) -> dict[str, float]:
        """Means over batches and processes. Metrics that a batch says nothing about are NaN there and left out."""
        stacked = torch.stack([torch.stack(batches) for batches in values.values()])  # (metrics, batches)
        told = ~stacked.isnan()
        sums = torch.stack([torch.where(told, stacked, 0).sum(dim=1), told.sum(dim=1).float()])
        total, count = self.accelerator.reduce(sums, reduction="sum")
        return dict(zip(values, (total / count).tolist(), strict=True))

    def _shared_clock(self, seconds: float) -> float:
        """Seconds as the first process counts them: all processes must stop at the same step."""
        if self.run.max_minutes is None or self.accelerator.num_processes == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(clock)[0])

    # Averaged weights

    def _make_ema(self) -> EMAModel | None:
        if not self.run.ema_decay:
            return None
        # A warm-up of the decay lets the average forget the initial weights.
        parameters = averaged_parameters(self._objective)
        return EMAModel(parameters, decay=self.run.ema_decay, use_ema_warmup=True, power=3 / 4)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Puts the averaged weights into the model for a while."""
        if self.ema is None:
            yield
            return
        parameters = list(averaged_parameters(self._objective))
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)

    # Logs

    def _log(self, metrics: dict[str, float], prefix: str = "train") -> None:
        self.accelerator.log({f"{prefix}/{name}": value for name, value in metrics.items()}, step=self.step)
        if self.accelerator.is_main_process:
            self.log.write(self.step, self.elapsed_seconds / 60, prefix, metrics)

    def _validate(self) -> None:
        if self.validated_step == self.step:
            return
        self.wrapped.eval()
        # Validation has shapes of its own, which are not worth compiling for.
        eager = torch.compiler.set_stance("force_eager")
        with eager, self._averaged_weights(), torch.no_grad(), self.accelerator.autocast(), attention_kernel(self.run):
            if self.accelerator.is_main_process or sharded(self.accelerator):
                samples = self.output_dir / "samples"
                samples.mkdir(parents=True, exist_ok=True)
                metrics = self._objective.validate(samples / f"step-{self.step:08d}.png")
        self.wrapped.train()
        if self.accelerator.is_main_process and metrics:
            self._log(metrics, prefix="validation")
        self.validated_step = self.step
        self.accelerator.wait_for_everyone()

    # Checkpoints

    def _checkpoint_due(self, last_checkpoint: float) -> bool:
        if self.step % self.run.checkpoint_every == 0:
            return True
        if self.run.checkpoint_minutes is None:
            return False
        due = torch.tensor([time.monotonic() - last_checkpoint > 60 * self.run.checkpoint_minutes], dtype=torch.uint8)
        return bool(broadcast(due.to(self.accelerator.device))[0])

    def _save_checkpoint(self) -> None:
        if self.saved_step == self.step:
            return
        state = {"step": self.step, "elapsed_seconds": self.elapsed_seconds, "config": self.config}
        state["averages"] = self.averages.sums
        state |= {"clips": self._clips()}
        if self.ema is not None:
            state["ema_step"] = self.ema.optimization_step
        write_checkpoint(
            self.output_dir,
            self.step,
            self._write_checkpoint_files,
            state,
            self.run.keep_checkpoints,
            self.accelerator.is_main_process,
            self.accelerator.wait_for_everyone,
        )
        self.saved_step = self.step

    def _write_checkpoint_files(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder / "state"))
        if self.ema is not None:
            shadow = {str(i): whole_tensor(values) for i, values in enumerate(self.ema.shadow_params)}
            if self.accelerator.is_main_process:
                save_file(shadow, folder / EMA_FILE)
        self._save_model(folder / "model")

    def _clips(self) -> dict[str, int]:
        """Clips of a step, and of one forward pass of all processes."""
        forward = self.run.batch_size * self.accelerator.num_processes
        return {"step": forward * self.run.gradient_accumulation_steps, "forward": forward}

    def _save_model(self, folder: Path) -> None:
        """Saves the averaged model as a diffusers folder, and beside it what is saved with it."""
        with self._averaged_weights():
            weights = self.accelerator.get_state_dict(self.wrapped)
            if not self.accelerator.is_main_process:
                return
            objective = self._objective
            objective.model.save_config(folder)
            _save_weights(weights, "model.", folder / "diffusion_pytorch_model.safetensors")
            for name in objective.saved_beside:
                getattr(objective, name).config.save_pretrained(folder.parent / name)
                _save_weights(weights, f"{name}.", folder.parent / name / "model.safetensors")

    def _save_final(self) -> Path:
        folder = self.output_dir / "model"
        self._save_model(folder)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder

    def _resume_or_start(self) -> None:
        checkpoints = checkpoint_folders(self.output_dir)
        if checkpoints and not self.run.resume:
            raise CheckpointError(
                f"{self.output_dir}: holds {checkpoints[-1].name}, but `run.resume` is false. Resume, or give another"
                " `run.output_dir`."
            )
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.run.trackers:
            self.accelerator.init_trackers("diffusers-vidvae", config=_tracker_values(self.config))
        if checkpoints:
            self._resume(checkpoints[-1])
        self._trim_metrics()

    def _resume(self, folder: Path) -> None:
        state = read_state(folder, self.config, self.default_config)
        self._check_clips(folder, state)
        self.accelerator.load_state(str(folder / "state"))
        self.step, self.elapsed_seconds = state["step"], state["elapsed_seconds"]
        self.averages = Averages(state.get("averages"))
        self.saved_step = self.step
        if self.ema is not None:
            shadow = load_file(folder / EMA_FILE)
            for i, values in enumerate(self.ema.shadow_params):
                copy_whole(values, shadow[str(i)])
            self.ema.optimization_step = state["ema_step"]
        self.accelerator.print(f"Resumed from {folder} at step {self.step}.")

    def _check_clips(self, folder: Path, state: dict[str, Any]) -> None:
        """Refuses steps of more or fewer clips, after which draws would be left out or come twice."""
        here, counted = self._clips(), "step" if getattr(self.dataset, "sorted_batches", 1) == 1 else "forward"
        before = state.get("clips", here)[counted]
        if before != here[counted]:
            what = "an optimiser step" if counted == "step" else "a forward pass, which is sorted,"
            raise CheckpointError(
                f"{folder}: {what} had {before} clips over all processes, not {here[counted]}; choose"
                " `run.batch_size` and `run.gradient_accumulation_steps` for this number of processes."
            )

    def _trim_metrics(self) -> None:
        """Forgets what was logged after the checkpoint that this run continues from; makes up for its validation."""
        validated = torch.zeros(1, dtype=torch.uint8, device=self.accelerator.device)
        if self.accelerator.is_main_process:
            validated += self.log.trim(self.step)
        if bool(broadcast(validated)[0]):
            self.validated_step = self.step
        elif self.step and self.run.validate_every and self.step % self.run.validate_every == 0:
            self._validate()


def _save_weights(weights: dict[str, torch.Tensor], prefix: str, path: Path) -> None:
    """Writes the weights of one module of an objective, under the names they have in it."""
    own = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    own = {name.replace("_orig_mod.", ""): value.contiguous().cpu() for name, value in own.items()}
    save_file(own, path, metadata={"format": "pt"})


def make_accelerator(run: RunConfig) -> Accelerator:
    """An accelerator for a run, with the seed set in every process."""
    mixed_precision = "no" if run.mixed_precision == "fp32" else run.mixed_precision
    accelerator = Accelerator(
        # torchrun splits a training on processors alone only if it is told of these.
        mixed_precision=mixed_precision,
        cpu=run.cpu or not torch.accelerator.is_available(),
        log_with=run.trackers or None,
        project_dir=run.output_dir,
    )
    set_seed(run.seed)
    return accelerator


def compile_blocks(model: ModelMixin) -> None:
    """Compiles, each on its own, the modules that the model declares as units."""
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            module.compile(dynamic=False)


def attention_kernel(run: RunConfig) -> AbstractContextManager:
    """Plain attention on the CPU, where the fused backward pass is many times slower for short sequences in bf16."""
    if run.cpu or not torch.cuda.is_available():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds only a part of the parameters."""
    return accelerator.distributed_type == "FSDP"


def whole_tensor(values: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered from all processes if each has a part of it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def copy_whole(values: torch.Tensor, whole: torch.Tensor) -> None:
    """Fills a tensor, of which each process may have a part, with a whole one."""
    if isinstance(values, DTensor):
        whole = distribute_tensor(whole.to(values.device), values.device_mesh, values.placements)
    values.copy_(whole)


def _tracker_values(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in config.items()
    }
