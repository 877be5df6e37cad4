from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from gap_dit_components import SCHEDULERS, make_pipeline, seeded
from PIL import Image
from safetensors.torch import load_file

from diffusers_vidvae import (
    AutoencoderKL3D,
    FlowMatchGapScheduler,
    GapDiT,
    GapDiTPipeline,
    demo_model,
)
from diffusers_vidvae.schedulers.scheduling_flow_match_gap import GapPlan


@pytest.fixture(scope="module", params=["regression", "flow"])
def shared_pipe(request):
    return make_pipeline(request.param)


@pytest.fixture
def pipe(shared_pipe):
    shared_pipe.scheduler = FlowMatchGapScheduler()
    return shared_pipe


@pytest.fixture(scope="module")
def flow_pipe():
    return make_pipeline("flow")


# Latents now, frames later


@pytest.mark.parametrize("num_frames", [None, [9, 21]])
def test_latents_are_decoded_later_to_the_same_frames(pipe, num_frames):
    options = {"num_latent_frames": [3, 5], "num_frames": num_frames, "num_inference_steps": 2}
    expected = pipe(**options, generator=seeded(0, 1), output_type="pt")
    bare = GapDiTPipeline(pipe.transformer, None, FlowMatchGapScheduler())
    bare.set_progress_bar_config(disable=True)
    saved = bare(**options, generator=seeded(0, 1), output_type="latent")
    frames = pipe.decode(saved.frames, saved.gaps, saved.num_frames, output_type="pt")
    torch.testing.assert_close(frames, expected.frames)


def test_what_needs_an_autoencoder_says_so(pipe):
    bare = GapDiTPipeline(pipe.transformer, None, FlowMatchGapScheduler())
    with pytest.raises(ValueError, match="Without a `vae` .* must be 'latent', got 'pil' and 0 frames"):
        bare(num_inference_steps=1)
    with pytest.raises(ValueError, match="got 'latent' and 1 frames"):
        bare(image=Image.new("RGB", (16, 16)), num_inference_steps=1, output_type="latent")
    with pytest.raises(ValueError, match="Decoding needs a `vae`"):
        bare.decode(torch.zeros(1, 6, 2, 4, 4), torch.tensor([[0, 3]]), 8)
    with pytest.raises(ValueError, match="lead to frame 9 of a video of 8 frames"):
        pipe.decode(torch.zeros(1, 6, 2, 4, 4), torch.tensor([[0, 9]]), 8)
    with pytest.raises(ValueError, match=r"do not fit each other: got \(1, 6, 2, 4, 4\) and \(1, 3\)"):
        pipe.decode(torch.zeros(1, 6, 2, 4, 4), torch.tensor([[0, 1, 2]]), 8)


@pytest.mark.parametrize("pipeline", [DiffusionPipeline, GapDiTPipeline])
def test_another_autoencoder_is_named(pipeline):
    with torch.device("meta"):
        vae = AutoencoderKL3D(block_out_channels=(8,) * 4)
    with pytest.raises(ValueError, match=r"Pipeline needs a FrameSelectVAE as `vae`, got AutoencoderKL3D\."):
        pipeline.from_pretrained(demo_model(), vae=vae)


# Parity


@torch.no_grad()
def test_ten_steps_match_the_original(shared_parity):
    from diffusers_vidvae.conversion import convert_frame_select_vae, convert_gap_dit
    from diffusers_vidvae.conversion.checkpoints import Checkpoint

    transformer = convert_gap_dit.convert(Checkpoint.open(shared_parity / "dit_pytorch_tiny.pt"))
    vae = convert_frame_select_vae.convert(Checkpoint.open(shared_parity / "vae_pytorch_tiny.pt"))
    pipe = GapDiTPipeline(transformer, vae, FlowMatchGapScheduler())
    tensors = load_file(shared_parity / "tensors.safetensors")
    frame_mask = tensors["dit.frame_mask"].bool()
    noise = tensors["dit.noise"].permute(0, 3, 1, 2).unflatten(3, (4, 4))

    output = pipe(num_latent_frames=[6, 4], num_inference_steps=10, latents=noise, output_type="latent")
    latents = output.frames.flatten(3).permute(0, 2, 3, 1)[frame_mask]
    expected = tensors["dit.sample10.latents"][frame_mask]
    assert (latents - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(output.positions, tensors["dit.sample10.positions"])
    assert torch.equal(output.num_frames, tensors["dit.sample10.total_frames"])


# What comes out


def test_output_types_hold_the_same_videos(pipe):
    arguments = {"num_latent_frames": [3, 5], "num_frames": [11, 7], "num_inference_steps": 3}
    images = pipe(**arguments, generator=seeded(0, 1)).frames
    array = pipe(**arguments, generator=seeded(0, 1), output_type="np").frames
    tensor = pipe(**arguments, generator=seeded(0, 1), output_type="pt").frames
    latents = pipe(**arguments, generator=seeded(0, 1), output_type="latent").frames
    assert [len(video) for video in images] == [11, 7]
    assert isinstance(images[0][0], Image.Image) and images[0][0].size == (16, 16)
    assert array.shape == (2, 11, 16, 16, 3) and array.dtype == np.float32
    assert tensor.shape == (2, 11, 3, 16, 16)
    assert latents.shape == (2, 6, 5, 4, 4)
    np.testing.assert_array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert 0 <= array.min() and array.max() <= 1 and array[0].std() > 0
    assert not array[1, 7:].any()
    np.testing.assert_array_equal(np.stack(images[1]), (array[1, :7] * 255).round().astype(np.uint8))


def test_output_says_where_latent_frames_went(pipe):
    output = pipe(num_latent_frames=[3, 5], num_frames=[11, 7], num_inference_steps=2, output_type="latent")
    assert output.num_frames.tolist() == [11, 7]
    assert torch.equal(output.positions, output.gaps.cumsum(dim=1))
    assert (output.gaps[1, 1:] >= 1).all() and not output.gaps[0, 3:].any()
    frames, gaps, positions, num_frames = pipe(num_inference_steps=1, output_type="latent", return_dict=False)
    assert frames.shape[2] == gaps.shape[1] == positions.shape[1] == 8
    assert num_frames.shape == (1,)


def test_lengths_come_from_the_gaps_unless_asked_for(pipe):
    natural = pipe(num_latent_frames=4, num_inference_steps=3, generator=seeded(0), output_type="pt")
    assert natural.frames.shape[1] == natural.num_frames.item() > natural.positions.max().item()
    asked = pipe(num_latent_frames=4, num_frames=23, num_inference_steps=3, generator=seeded(0), output_type="pt")
    assert asked.frames.shape[1] == 23


def test_a_video_depends_on_its_generator_alone(pipe):
    together = pipe(
        num_latent_frames=[3, 6], num_frames=[12, 9], num_inference_steps=3, generator=seeded(5, 7), output_type="pt"
    )
    alone = pipe(num_latent_frames=3, num_frames=12, num_inference_steps=3, generator=seeded(5), output_type="pt")
    torch.testing.assert_close(together.frames[0], alone.frames[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(together.positions[0, :3], alone.positions[0])
    again = pipe(num_latent_frames=3, num_frames=12, num_inference_steps=3, generator=seeded(5), output_type="pt")
    other = pipe(num_latent_frames=3, num_frames=12, num_inference_steps=3, generator=seeded(6), output_type="pt")
    assert torch.equal(again.frames, alone.frames)
    assert not torch.equal(other.frames, alone.frames)


def test_saving_and_loading_changes_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = GapDiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    arguments = {"num_latent_frames": 3, "num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(**arguments, generator=seeded(0)).frames
    torch.testing.assert_close(loaded(**arguments, generator=seeded(0)).frames, expected)


def test_steps_of_a_half_precision_model_are_kept_in_float32():
    pipe = make_pipeline("flow").to(torch.bfloat16)
    output = pipe(num_latent_frames=3, num_inference_steps=2, output_type="latent")
    assert output.frames.dtype == torch.float32
    assert not torch.equal(output.frames, output.frames.bfloat16().float())
    assert pipe(num_latent_frames=3, num_inference_steps=2, output_type="np").frames.dtype == np.float32


def test_a_flow_model_generates_other_sizes():
    pipe = make_pipeline("flow")
    with pytest.raises(ValueError, match="takes 16x16 frames"):
        pipe(num_latent_frames=3, height=24, width=20, num_inference_steps=1)
    pipe.vae.enable_tiling()
    output = pipe(num_latent_frames=3, num_frames=5, height=24, width=20, num_inference_steps=1, output_type="np")
    assert output.frames.shape == (1, 5, 24, 20, 3)


# Long videos


def test_long_videos_are_decoded_in_windows(pipe):
    lengths = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[2]))
    output = pipe(num_latent_frames=8, num_frames=101, num_inference_steps=1, output_type="np")
    hook.remove()
    assert output.frames.shape[1] == 101 > pipe.vae.config["max_num_frames"]
    assert max(lengths) == pipe.vae.config["clip_num_frames"] == 8


@torch.no_grad()
def test_windows_decode_what_the_autoencoder_decodes(flow_pipe):
    vae = flow_pipe.vae
    gaps = torch.tensor([[2, 4, 5, 1, 6, 5]])
    plan = GapPlan(gaps=gaps, positions=gaps.cumsum(dim=1), num_frames=torch.tensor([27]))
    latents = torch.randn(1, 6, 6, 4, 4)
    (frames,) = flow_pipe.decode_latents(latents, plan, torch.ones(1, 6, dtype=torch.bool), "pt")
    dense, keep_mask = torch.zeros(1, 6, 27, 4, 4), torch.zeros(1, 27, dtype=torch.bool)
    dense[:, :, plan.positions[0]] = vae.denormalize_latents(latents)
    keep_mask[:, plan.positions[0]] = True
    expected = (vae.decode(dense, keep_mask).sample[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(frames, expected)


@torch.no_grad()
def test_statistics_of_the_transformer_go_on_top_of_the_autoencoders():
    pipe = make_pipeline("flow")
    frames = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    plain = pipe.encode_frames(frames, [0])
    mean, std = [0.5] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    pipe.transformer.register_to_config(latents_mean=mean, latents_std=std)
    latents = pipe.encode_frames(frames, [0])
    torch.testing.assert_close(latents, (plain - 0.5) / torch.tensor(std)[:, None, None, None])
    decoded = pipe.decode(latents, torch.tensor([[0]]), 1, "pt")[0]
    expected = pipe.vae(frames, keep_mask=torch.ones(1, 1, dtype=torch.bool)).sample[0].transpose(0, 1)
    torch.testing.assert_close(decoded, (expected / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match="`latents_std` must have a number for each of the 2 channels"):
        GapDiT(in_channels=2, hidden_size=8, num_layers=1, latents_std=[1.0])


def test_noise_has_unit_variance_and_what_the_transformer_wants_in_common():
    pipe = make_pipeline("flow")
    pipe.transformer.register_to_config(shared_noise=0.75)
    noise = pipe.prepare_latents([3, 2], 256, 256, torch.device("cpu"), seeded(0, 1))
    frames = noise[0, :6].transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(frames), 0.25 * torch.eye(3) + 0.75, atol=0.05, rtol=0)
    assert not noise[1, :, 2].any() and not torch.equal(noise[0, 6:, 0], noise[0, 6:, 1])
    with pytest.raises(ValueError, match=r"`shared_noise` must be in \[0, 1\), got 1."):
        GapDiT(in_channels=2, hidden_size=8, num_layers=1, shared_noise=1.0)


def test_latent_frames_lie_on_the_transformers_step_where_there_is_room():
    pipe = make_pipeline("flow")
    pipe.transformer.register_to_config(frame_step=3)
    options = {"num_inference_steps": 1, "output_type": "latent", "generator": seeded(0)[0]}
    assert pipe(4, 11, **options).positions.tolist() == [[0, 3, 6, 9]]
    free = pipe(4, **options)
    assert (free.positions % 3 == 0).all() and free.num_frames.item() % 3 == 1
    crowded = pipe(4, 6, **options)
    assert crowded.positions[0, -1] <= 5 and crowded.num_frames.tolist() == [6]
    assert pipe(4, 11, positions=[0, 1, 4, 5], **options).positions.tolist() == [[0, 1, 4, 5]]


def test_as_many_latent_frames_as_the_transformer_takes_by_default():
    pipe = make_pipeline("flow")
    pipe.transformer.register_to_config(max_num_frames=3)
    output = pipe(num_frames=9, num_inference_steps=1, output_type="latent")
    assert output.frames.shape[2] == 3


@torch.no_grad()
def test_windows_without_a_latent_frame_repeat_their_neighbour(flow_pipe):
    gaps = torch.tensor([[20, 20]])
    plan = GapPlan(gaps=gaps, positions=gaps.cumsum(dim=1), num_frames=torch.tensor([64]))
    latents, mask = torch.randn(1, 6, 2, 4, 4), torch.ones(1, 2, dtype=torch.bool)
    (frames,) = flow_pipe.decode_latents(latents, plan, mask, "pt")
    latents[:, :, 0] += 1
    (changed,) = flow_pipe.decode_latents(latents, plan, mask, "pt")
    differs = (frames - changed).abs().flatten(1).amax(dim=1) > 0
    # Windows of 8: the first latent frame shows up to the window of the second, which begins at frame 40.
    assert differs[:40].all() and not differs[40:].any()


def test_implausible_lengths_are_refused(flow_pipe):
    flow_pipe.transformer.register_to_config(gap_log_mean=8.0)
    try:
        with pytest.raises(ValueError, match=r"from 2 latent frames, more than the 32 that are plausible"):
            flow_pipe(num_latent_frames=2, num_inference_steps=1)
        assert len(flow_pipe(num_latent_frames=2, num_frames=40, num_inference_steps=1).frames[0]) == 40
    finally:
        flow_pipe.transformer.register_to_config(gap_log_mean=0.9)


# Schedulers


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_flow_scheduler_runs(pipe, name):
    pipe.scheduler = SCHEDULERS[name]()
    output = pipe(
        num_latent_frames=[3, 4], num_frames=9, num_inference_steps=4, generator=seeded(0, 1), output_type="pt"
    )
    assert output.frames.shape == (2, 9, 3, 16, 16)
    assert output.frames.isfinite().all()


@pytest.fixture(scope="module")
def many_euler_steps(flow_pipe):
    return flow_pipe(4, num_inference_steps=300, generator=seeded(0), output_type="latent").frames


@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpm++"])
def test_every_solver_goes_where_many_euler_steps_go(flow_pipe, many_euler_steps, name):
    flow_pipe.scheduler = SCHEDULERS[name]()
    latents = flow_pipe(4, num_inference_steps=30, generator=seeded(0), output_type="latent").frames
    flow_pipe.scheduler = FlowMatchGapScheduler()
    one_step = flow_pipe(4, num_inference_steps=1, generator=seeded(0), output_type="latent").frames
    assert (latents - many_euler_steps).norm() < 0.1 * (one_step - many_euler_steps).norm()


def test_our_scheduler_gives_what_its_parent_gives(pipe):
    sigmas = [1.0, 0.7, 0.4, 0.1]
    arguments = {"num_latent_frames": 4, "sigmas": sigmas, "output_type": "latent"}
    ours = pipe(**arguments, generator=seeded(0))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    theirs = pipe(**arguments, generator=seeded(0))
    assert torch.equal(ours.frames, theirs.frames)
    assert torch.equal(ours.gaps, theirs.gaps)


def test_gap_channels_of_a_stochastic_scheduler_stay_constant_over_a_frame(flow_pipe):
    flow_pipe.scheduler = SCHEDULERS["gap, stochastic"]()

    def check(pipe, i, timestep, tensors):
        gap_channels = tensors["latents"][:, 6:]
        assert torch.equal(gap_channels, gap_channels[..., :1, :1].expand_as(gap_channels))
        return {}

    flow_pipe(num_latent_frames=3, num_inference_steps=4, callback_on_step_end=check, output_type="latent")
    flow_pipe.scheduler = FlowMatchGapScheduler()


# Callbacks


def test_callbacks_see_and_replace_what_is_stepped(pipe):
    steps = []

    def callback(pipeline, i, timestep, tensors):
        assert pipeline is pipe and pipeline.current_timestep == timestep
        steps.append(i)
        last = i == pipeline.num_timesteps - 1
        gaps = torch.tensor([[1.0, 2.0, 3.0]])
        return {"latents": torch.zeros_like(tensors["latents"]), "gaps": gaps} if last else {}

    output = pipe(
        num_latent_frames=3,
        num_inference_steps=4,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "gaps"],
    )
    assert steps == [0, 1, 2, 3]
    assert not output.frames.any()
    assert output.gaps.tolist() == [[1, 2, 3]]


def test_interrupting_ends_the_steps(pipe):
    steps = []

    def callback(pipeline, i, timestep, tensors):
        steps.append(i)
        pipeline._interrupt = i == 1
        return {}

    output = pipe(num_latent_frames=3, num_frames=6, num_inference_steps=9, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert len(output.frames[0]) == 6


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_latent_frames": 0}, "`num_latent_frames` must be from 1 to 8, got 0"),
        ({"num_latent_frames": 9}, "`num_latent_frames` must be from 1 to 8, got 9"),
        ({"num_latent_frames": [3, 9]}, "`num_latent_frames` must be from 1 to 8, got 9"),
        (
            {"num_latent_frames": 5, "num_frames": 4},
            "`num_frames` must be .* got 4 frames for 5 latent frames",
        ),
        ({"num_latent_frames": [2, 5], "num_frames": [9, 4]}, "got 4 frames for 5 latent frames"),
        ({"sigmas": [1.0, -0.5]}, r"`sigmas` must be one or more numbers in \(0, 1\], got \[1.0, -0.5\]"),
        ({"sigmas": [0.5, 0.9]}, "`sigmas` must fall, but number 1 is 0.9 after 0.5"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1, got 0"),
        (
            {"latents": torch.zeros(1, 8, 3, 4, 5)},
            r"must have shape \(1, \d, 3, 4, 4\), got",
        ),
        ({"latents": torch.zeros(2, 8, 3, 4, 4), "batch_size": 3}, "disagree about the number of videos"),
        ({"num_latent_frames": [3, 3], "batch_size": 3}, "disagree .*'batch_size': 3, 'num_latent_frames': 2"),
        ({"num_latent_frames": [3, 3], "num_frames": [9, 9, 9]}, "'num_latent_frames': 2, 'num_frames': 3"),
        ({"batch_size": 3, "generator": seeded(0, 1)}, "`generator` must be one or a list of 3, got a list of 2"),
        ({"height": 17}, "must be multiples of 4, got 17 and 16"),
        ({"output_type": "mp4"}, r"must be one of \('pil', 'np', 'pt', 'latent'\), got 'mp4'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"must be among \['latents', 'gaps'\], got \['noise'\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"num_inference_steps": 1, **arguments})


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm++", "inverted"])
def test_schedulers_that_do_not_match_flows_are_refused(pipe, name):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    pipe.scheduler = {
        "ddim": lambda: DDIMScheduler(),
        "unipc": lambda: UniPCMultistepScheduler(),
        "dpm++": lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True),
        "inverted": lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }[name]()
    with pytest.raises(ValueError, match=f"The scheduler must .*, got {type(pipe.scheduler).__name__}"):
        pipe(num_inference_steps=1)


def test_noise_levels_need_a_scheduler_that_takes_them(pipe):
    pipe.scheduler = SCHEDULERS["heun"]()
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no `sigmas`"):
        pipe(sigmas=[1.0, 0.5])


def test_models_that_do_not_fit_each_other_are_refused(pipe):
    other = make_pipeline("regression").vae
    other.register_to_config(latent_channels=7)
    with pytest.raises(ValueError, match="6 latent channels, the autoencoder has 7"):
        GapDiTPipeline(pipe.transformer, other, pipe.scheduler)(num_inference_steps=1)
