r"""Encoding a data set on a Ray cluster, which may grow, shrink and lose machines meanwhile.

Ray Data hands shards to actors, each of which holds the model and decodes ahead with loading processes of its own. An
actor writes what it encodes into a folder that all machines share; a shard whose machine is lost goes to another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from .encoding import EncodingJob, EncodingReport, only_encoder
from .latent_shards import ClipSource
from .shard_encoder import ShardEncoder, ShardSettings, check_damaged


# Tasks that Ray Data plans for; a task has several shards where there are more of these.
_MOST_TASKS = 10_000


def encode_with_ray(
    vae: ModelMixin,
    dataset: ClipSource,
    output_dir: str | Path,
    num_clips: int,
    shard_size: int = 512,
    num_actors: int | None = None,
    **settings: Any,
) -> EncodingReport:
    r"""Encodes a data set as `encode_dataset` does, to the same bytes, with actors of a Ray cluster.

    Args:
        vae, dataset, num_clips, shard_size: See `encode_dataset`.
        output_dir: Folder of the shards, which all machines share.
        num_actors: Most actors at once; by default as many as the cluster has GPUs, or processors without these. There
            is one at least, and Ray adds and removes the others.
        settings: The other arguments of `encode_dataset`, but for the accelerator.

    Raises:
        ValueError: Ray is missing; otherwise as `encode_dataset`.
    """
    ray = _ray()
    settings = settings | {"output_dir": Path(output_dir)}
    job = EncodingJob(vae, dataset, num_clips, shard_size, ShardSettings(**settings))
    if job.is_finished():
        return job.report()
    job.begin()
    started, waited, damaged = time.monotonic(), 0.0, []
    with only_encoder(job.settings.output_dir, Accelerator(cpu=True)):
        missing = job.missing()
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        for done in _run_actors(ray, vae, dataset, job.settings, missing, num_actors):
            waited += done["waited"]
            damaged += done["damaged"]
            check_damaged(damaged, num_clips, job.settings.max_damaged)
        job.finish()
    seconds = time.monotonic() - started
    return job.report(waited / seconds if missing else None, seconds)


def _run_actors(
    ray: Any,
    vae: ModelMixin,
    dataset: ClipSource,
    settings: ShardSettings,
    shards: dict[str, range],
    num_actors: int | None,
) -> Iterator[dict[str, Any]]:
    """What the actors say of each shard, as they finish them."""
    uses_gpu = ray.cluster_resources().get("GPU", 0) > 0
    most = num_actors or max(int(ray.cluster_resources()["GPU" if uses_gpu else "CPU"]), 1)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = [{"name": name, "start": numbers.start, "stop": numbers.stop} for name, numbers in shards.items()]
    if not items:
        return
    encoded = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_TASKS)).map(
        _EncodingActor,
        fn_constructor_args=(ray.put(vae.cpu()), ray.put(dataset), settings),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        num_gpus=1 if uses_gpu else 0,
    )
    try:
        for row in encoded.iter_rows():
            if row["refusal"]:
                raise ValueError(row["refusal"])
            yield row
    except ray.exceptions.RayError as error:
        raise ValueError(f"Ray: {type(error).__name__} ({str(error).splitlines()[0]}).") from error


class _EncodingActor:
    """Holds the model, and encodes the shards that it is given."""

    def __init__(self, vae: Any, dataset: Any, settings: ShardSettings):
        import ray

        device = "cuda" if torch.cuda.is_available() else "cpu"
        # The share of damaged clips is one of all shards.
        self.encoder = ShardEncoder(ray.get(vae).to(device).eval(), replace(settings, max_damaged=1.0))
        self.dataset: ClipSource = ray.get(dataset)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            work = self.encoder.encode_shards(self.dataset, {row["name"]: range(row["start"], row["stop"])})
        except ValueError as error:
            # Ray hands on its own errors, without what they came from.
            return {"name": row["name"], "damaged": [], "waited": 0.0, "refusal": str(error)}
        return {"name": row["name"], "damaged": work.damaged, "waited": work.waited, "refusal": ""}


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("The engine ray needs Ray: pip install 'diffusers-vidvae[ray]' brings it.") from error
    return ray
