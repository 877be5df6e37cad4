"""What every model, scheduler and pipeline of diffusers promises, asked of each class of this package."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin

from diffusers_vidvae import (
    AutoencoderKL3D,
    FlowMatchGapScheduler,
    FrameSelectVAE,
    GapDiT,
    GapDiTPipeline,
    VideoCompressionPipeline,
    VideoReconstructionPipeline,
)
from diffusers_vidvae.models.autoencoder_kl_3d import DERIVED_ENTRIES


MODELS = {
    AutoencoderKL3D: ("reconstruction", "vae"),
    FrameSelectVAE: ("generation", "vae"),
    GapDiT: ("generation", "transformer"),
}
PIPELINES = {
    GapDiTPipeline: "generation",
    VideoCompressionPipeline: "compression",
    VideoReconstructionPipeline: "reconstruction",
}

every_model = pytest.mark.parametrize("model_class", MODELS, ids=lambda item: item.__name__)
every_pipeline = pytest.mark.parametrize("pipeline_class", PIPELINES, ids=lambda item: item.__name__)
every_layout = pytest.mark.parametrize(
    "options",
    [{}, {"variant": "fp16"}, {"max_shard_size": "4KB"}, {"variant": "fp16", "max_shard_size": "4KB"}],
    ids=["plain", "variant", "shards", "shards of a variant"],
)


def load_model(saved: Path, model_class, **options) -> ModelMixin:
    folder, subfolder = MODELS[model_class]
    return model_class.from_pretrained(saved / folder, subfolder=subfolder, **options)


def load_pipeline(saved: Path, pipeline_class, **options) -> DiffusionPipeline:
    pipe = pipeline_class.from_pretrained(saved / PIPELINES[pipeline_class], **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_inputs(model: ModelMixin) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, GapDiT):
        latents = torch.randn(1, 4, 3, 4, 4, generator=generator)
        return {"hidden_states": latents.to(model.dtype), "timestep": torch.tensor([500.0])}
    return {"sample": (torch.rand(1, 3, 5, 16, 16, generator=generator) * 2 - 1).to(model.dtype)}


@torch.no_grad()
def run_model(model: ModelMixin) -> torch.Tensor:
    return model(**model_inputs(model)).sample


def run_pipeline(pipe: DiffusionPipeline, seed: int = 0, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "output_type": "pt", **options}
    if isinstance(pipe, GapDiTPipeline):
        return pipe(num_latent_frames=2, num_frames=3, num_inference_steps=2, **options).frames
    clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return pipe(video=clip, **options).frames


# Models


@every_model
def test_config_survives_json(saved, model_class):
    model = load_model(saved, model_class)
    config = json.loads(model.to_json_string())
    again = model_class.from_config(config)
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    derived = DERIVED_ENTRIES if model_class is AutoencoderKL3D else ()
    assert set(settings) == {*inspect.signature(model_class.__init__).parameters, *derived} - {"self"}
    assert settings == {name: value for name, value in json.loads(again.to_json_string()).items() if name in settings}
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@every_model
@every_layout
def test_saved_models_load_with_the_same_output(saved, model_class, options, tmp_path):
    model = load_model(saved, model_class)
    expected = run_model(model)
    model.save_pretrained(tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    for loader in (model_class, AutoModel):
        loaded = loader.from_pretrained(str(tmp_path), **variant)  # AutoModel takes no Path
        assert type(loaded) is model_class and not loaded.training
        assert torch.equal(run_model(loaded), expected)


@every_model
def test_models_say_what_their_checkpoint_lacks(saved, model_class, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, subfolder = MODELS[model_class]
    shutil.copytree(saved / folder / subfolder, tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lacking = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lacking} | {"stray": torch.ones(1)}, file)
    _, found = model_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert found["missing_keys"] == [lacking] and found["unexpected_keys"] == ["stray"]

    save_file(weights | {lacking: torch.ones(3, 2, 1)}, file)
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)3, 2, 1"):
        model_class.from_pretrained(tmp_path / "model")


@every_model
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_models_load_in_another_dtype(saved, model_class, name):
    model = load_model(saved, model_class, **{name: torch.bfloat16})
    kept = tuple(model._keep_in_fp32_modules or ())
    for parameter, value in model.named_parameters():
        wanted = torch.float32 if any(part in parameter.split(".") for part in kept) else torch.bfloat16
        assert value.dtype == wanted, parameter
    assert model.dtype == torch.bfloat16
    difference = run_model(model).float() - run_model(load_model(saved, model_class))
    assert difference.isfinite().all() and difference.abs().max() < 0.2


@every_model
def test_models_are_deterministic_and_leave_their_input_alone(saved, model_class):
    model = load_model(saved, model_class)
    inputs = model_inputs(model)
    before = {name: value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        torch.manual_seed(1)
        first = model(**inputs).sample
        torch.manual_seed(2)
        assert torch.equal(model(**inputs).sample, first)
        assert torch.equal(model(**inputs, return_dict=False)[0], first)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@every_model
def test_missing_variants_and_folders_are_named(saved, model_class):
    folder, subfolder = MODELS[model_class]
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.none"):
        load_model(saved, model_class, variant="none")
    with pytest.raises(OSError, match=r"config\.json"):
        model_class.from_pretrained(saved / folder, subfolder="absent")


# Scheduler


def test_scheduler_config_survives_saving(tmp_path):
    scheduler = FlowMatchGapScheduler(shift=3.0, use_karras_sigmas=True)
    scheduler.save_pretrained(tmp_path)
    again = FlowMatchGapScheduler.from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(scheduler.to_json_string())
    scheduler.set_timesteps(5)
    again.set_timesteps(5)
    assert torch.equal(scheduler.sigmas, again.sigmas)
    assert FlowMatchEulerDiscreteScheduler.from_config(again.config).config.shift == 3.0


# Pipelines


@every_pipeline
def test_saved_pipelines_name_this_package(saved, pipeline_class):
    index = json.loads((saved / PIPELINES[pipeline_class] / "model_index.json").read_text())
    assert index.pop("_class_name") == pipeline_class.__name__
    components = {name: value for name, value in index.items() if not name.startswith("_")}
    assert components and all(library in ("diffusers_vidvae", None) for library, _ in components.values())
    assert all(class_name is None for library, class_name in components.values() if library is None)
    assert set(components) == set(inspect.signature(pipeline_class.__init__).parameters) - {"self"}


@every_pipeline
@every_layout
def test_saved_pipelines_load_with_the_same_output(saved, pipeline_class, options, tmp_path):
    pipe = load_pipeline(saved, pipeline_class)
    expected = run_pipeline(pipe)
    pipe.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    for loader in (pipeline_class, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path, **variant)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is pipeline_class
        assert torch.equal(run_pipeline(loaded), expected)


@every_pipeline
def test_pipelines_are_their_components(saved, pipeline_class, capfd):
    pipe = load_pipeline(saved, pipeline_class)
    again = pipeline_class(**pipe.components)
    again.set_progress_bar_config(disable=True)
    capfd.readouterr()
    assert torch.equal(run_pipeline(again), run_pipeline(pipe))
    assert "it/s" not in capfd.readouterr().err


@every_pipeline
def test_pipelines_are_deterministic(saved, pipeline_class):
    pipe = load_pipeline(saved, pipeline_class)
    torch.manual_seed(1)
    first = run_pipeline(pipe)
    torch.manual_seed(2)
    assert torch.equal(run_pipeline(pipe), first)
    if pipeline_class is GapDiTPipeline:
        assert not torch.equal(run_pipeline(pipe, seed=1), first)


@every_pipeline
def test_component_types_are_classes(saved, pipeline_class):
    """`from_pipe` and the check of passed components compare them with the annotations."""
    pipe = load_pipeline(saved, pipeline_class)
    types = pipeline_class._get_signature_types()
    for name, component in pipe.components.items():
        assert all(isinstance(item, type) for item in types[name])
        assert isinstance(component, types[name])


@every_pipeline
def test_offloading_moves_every_model(saved, pipeline_class):
    pipe = load_pipeline(saved, pipeline_class)
    models = {name for name, value in pipe.components.items() if isinstance(value, torch.nn.Module)}
    optional = {name for name in pipe._optional_components if getattr(pipe, name) is None}
    assert set(pipe.model_cpu_offload_seq.split("->")) - optional == models


@every_pipeline
def test_pipelines_load_in_another_dtype(saved, pipeline_class):
    pipe = load_pipeline(saved, pipeline_class, torch_dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert run_pipeline(pipe).isfinite().all()
    mixed = load_pipeline(saved, pipeline_class, torch_dtype={"vae": torch.bfloat16, "default": torch.float32})
    assert mixed.vae.dtype == torch.bfloat16
    if pipeline_class is GapDiTPipeline:
        assert mixed.transformer.dtype == torch.float32
    assert run_pipeline(mixed).isfinite().all()


@every_pipeline
def test_pipelines_load_by_device_map(saved, pipeline_class):
    pipe = load_pipeline(saved, pipeline_class, device_map="cpu")
    assert torch.equal(run_pipeline(pipe), run_pipeline(load_pipeline(saved, pipeline_class)))


def test_passed_components_are_not_loaded(saved, tmp_path):
    vae = load_model(saved, FrameSelectVAE)
    shutil.copytree(saved / "generation", tmp_path / "generation")
    shutil.rmtree(tmp_path / "generation" / "vae")
    pipe = GapDiTPipeline.from_pretrained(tmp_path / "generation", vae=vae)
    assert pipe.vae is vae


@pytest.mark.parametrize(
    ("source", "target"), itertools.permutations(PIPELINES, 2), ids=lambda item: item.__name__.removesuffix("Pipeline")
)
def test_pipelines_are_made_from_each_other(saved, source, target):
    """They share models; what the other pipeline lacks is passed."""
    vae = load_model(saved, FrameSelectVAE)
    generation = load_pipeline(saved, GapDiTPipeline, vae=vae)
    pipe = generation if source is GapDiTPipeline else source(vae=vae)
    lacking = {"transformer": generation.transformer, "scheduler": generation.scheduler}
    made = target.from_pipe(pipe, **(lacking if target is GapDiTPipeline and source is not target else {}))
    made.set_progress_bar_config(disable=True)
    assert type(made) is target and made.vae is vae
    assert run_pipeline(made).isfinite().all()


def test_callbacks_have_the_last_word(saved):
    """Latents that the last callback sets to zero come out as zeros."""
    pipe = load_pipeline(saved, GapDiTPipeline)
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    names = list(pipe._callback_tensor_inputs)
    latents = run_pipeline(
        pipe, output_type="latent", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names
    )
    assert seen == [(0, set(names)), (1, set(names))]
    assert not latents.any()


@every_pipeline
def test_callbacks_get_only_what_is_declared(saved, pipeline_class):
    pipe = load_pipeline(saved, pipeline_class)
    with pytest.raises(ValueError, match="vae"):
        run_pipeline(
            pipe,
            callback_on_step_end=lambda *arguments: {},
            callback_on_step_end_tensor_inputs=["latents", "vae"],
        )


@every_pipeline
def test_unknown_output_types_are_refused(saved, pipeline_class):
    with pytest.raises(ValueError, match="'gif'"):
        run_pipeline(load_pipeline(saved, pipeline_class), output_type="gif")
