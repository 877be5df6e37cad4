from __future__ import annotations

import numpy as np
import pytest
import torch
from gap_dit_components import SCHEDULERS, make_pipeline, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusers_vidvae import FlowMatchGapScheduler
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.pipelines.frame_conditioning import allot_slots, consecutive_runs


@pytest.fixture(scope="module", params=["regression", "flow"])
def shared_pipe(request):
    return make_pipeline(request.param)


@pytest.fixture
def pipe(shared_pipe):
    shared_pipe.scheduler = FlowMatchGapScheduler()
    return shared_pipe


def random_clip(num_frames: int, seed: int = 0, batch_size: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, 3, num_frames, 16, 16, generator=generator) * 2 - 1


def generate(pipe, **arguments):
    return pipe(**{"num_inference_steps": 4, "generator": seeded(0), "output_type": "latent", **arguments})


@torch.no_grad()
def encoded(pipe, frames: torch.Tensor) -> torch.Tensor:
    return pipe.vae.normalize_latents(pipe.vae.encode(frames).latent_dist.mode())


def latents_at(output, indices: list[int], clip: int = 0) -> torch.Tensor:
    slots = [output.positions[clip].tolist().index(index) for index in indices]
    return output.frames[clip, :, slots]


# Where given frames go


@st.composite
def requests(draw):
    indices = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=8)))
    num_slots = len(indices) + draw(st.integers(0, 10))
    if draw(st.booleans()):
        return indices, num_slots, None
    return indices, num_slots, max(indices[-1] + 1, num_slots) + draw(st.integers(0, 20))


@settings(deadline=None)
@given(requests(), st.data())
def test_allotted_slots_can_always_be_planned(request_, data):
    indices, num_slots, num_frames = request_
    slots = allot_slots(indices, num_slots, num_frames)
    assert sorted(set(slots)) == slots and 0 <= slots[0] and slots[-1] < num_slots
    fixed = torch.full((1, num_slots), -1)
    fixed[0, slots] = torch.tensor(indices)
    gaps = torch.tensor([data.draw(st.lists(st.floats(0, 9, width=32), min_size=num_slots, max_size=num_slots))])
    plan = FlowMatchGapScheduler.gaps_to_positions(gaps, None, num_frames, fixed_positions=fixed)
    assert plan.positions[0, slots].tolist() == indices


def test_free_slots_go_where_there_is_room():
    assert allot_slots([0], 8, 30) == [0]
    assert allot_slots([0, 29], 8, 30) == [0, 7]
    assert allot_slots([10], 7, 31) == [2]
    assert allot_slots([0, 10, 40], 8) == [0, 2, 7]
    assert allot_slots([0, 1, 2], 8) == [0, 1, 2]
    assert allot_slots([0, 2], 8) == [0, 2]


def test_neighbours_are_encoded_as_one_clip():
    assert consecutive_runs([0, 1, 2, 7, 9, 10]) == [slice(0, 3), slice(3, 4), slice(4, 6)]


# The promise


@pytest.mark.parametrize("name", SCHEDULERS)
def test_given_frames_are_kept_exactly_and_land_where_they_were_asked(pipe, name):
    pipe.scheduler = SCHEDULERS[name]()
    frames = random_clip(2)
    output = generate(pipe, num_latent_frames=6, num_frames=20, video=frames, frame_indices=[3, 16])
    expected = torch.cat([encoded(pipe, frames[:, :, :1]), encoded(pipe, frames[:, :, 1:])], dim=2)
    assert torch.equal(latents_at(output, [3, 16]), expected[0])
    assert output.num_frames.tolist() == [20]


def test_a_picture_is_the_first_frame(pipe):
    frame = random_clip(1)
    output = generate(pipe, num_latent_frames=4, num_frames=12, image=frame[0, :, 0])
    assert output.positions[0, 0] == 0
    assert torch.equal(latents_at(output, [0]), encoded(pipe, frame)[0])


def test_a_clip_is_continued(pipe):
    frames = random_clip(3)
    output = generate(pipe, num_latent_frames=6, video=frames)
    assert output.positions[0, :3].tolist() == [0, 1, 2]
    assert torch.equal(output.frames[:, :, :3], encoded(pipe, frames))
    assert output.num_frames.item() > 5


def test_two_pictures_are_filled_between(pipe):
    frames = random_clip(2)
    pictures = [frames[0, :, 0], frames[0, :, 1]]
    output = generate(pipe, num_latent_frames=5, image=pictures, frame_indices=[0, 15])
    assert output.positions[0, [0, 4]].tolist() == [0, 15]
    assert output.num_frames.item() >= 16
    swapped = generate(pipe, num_latent_frames=5, image=pictures[::-1], frame_indices=[15, 0])
    assert torch.equal(output.frames, swapped.frames)


def test_generated_frames_follow_the_given_ones(pipe):
    arguments = {"num_latent_frames": 5, "num_frames": 14, "frame_indices": [0]}
    outputs = [generate(pipe, **arguments, video=random_clip(1, seed)) for seed in (0, 1)]
    free = [output.frames[:, :, 1:] for output in outputs]
    assert not torch.allclose(*free, atol=1e-3)


def test_moving_a_given_frame_moves_the_result(pipe):
    arguments = {"num_latent_frames": 5, "num_frames": 14, "video": random_clip(1), "output_type": "pt"}
    early = generate(pipe, **arguments, frame_indices=[2])
    late = generate(pipe, **arguments, frame_indices=[11])
    assert 2 in early.positions and 11 in late.positions
    assert not torch.allclose(early.frames, late.frames, atol=1e-3)


def test_given_frames_stay_on_the_path_at_every_step(pipe):
    frames, noise = random_clip(1), torch.randn(1, 6 + pipe.transformer.num_gap_channels, 4, 4, 4)
    clean = encoded(pipe, frames)[:, :, 0]

    def check(pipeline, i, timestep, tensors):
        sigma = pipeline.scheduler.sigmas[i + 1]
        expected = sigma * noise[:, :6, 0] + (1 - sigma) * clean
        torch.testing.assert_close(tensors["latents"][:, :6, 0], expected)
        return {}

    generate(pipe, num_frames=9, video=frames, latents=noise, callback_on_step_end=check)


def test_known_gaps_are_given_to_a_model_that_denoises_them():
    pipe = make_pipeline("flow")
    seen = []
    generate(
        pipe,
        num_latent_frames=5,
        num_frames=12,
        video=random_clip(3),
        frame_indices=[0, 1, 11],
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"]) or {},
    )
    to_previous, to_next = seen[-1][0, 6:, :, 0, 0] * 0.6 + 0.9
    # Latent frames 0 and 1 are frames 0 and 1, latent frame 4 is the last frame; what lies between is free.
    torch.testing.assert_close(to_previous[:2].expm1(), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(to_next[[0, 4]].expm1(), torch.tensor([1.0, 0.0]))


# Batches


def test_videos_of_different_length_get_their_own_places(pipe):
    output = generate(
        pipe,
        num_latent_frames=[3, 6],
        num_frames=[13, 13],
        video=random_clip(1),
        frame_indices=6,
        generator=seeded(0, 1),
    )
    expected = encoded(pipe, random_clip(1))[0]
    for clip in range(2):
        torch.testing.assert_close(latents_at(output, [6], clip), expected)


def test_every_video_may_have_its_own_frames(pipe):
    frames = random_clip(2, batch_size=3)
    output = generate(pipe, num_latent_frames=4, video=frames, generator=seeded(0, 1, 2))
    torch.testing.assert_close(output.frames[:, :, :2], encoded(pipe, frames))


# Forms of input


def test_given_frames_may_have_any_form(pipe, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "picture.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    arguments = {"num_latent_frames": 3, "num_frames": 6}
    expected = generate(pipe, **arguments, image=picture).frames
    for form in (pixels, pixels.astype(np.float32) / 255, tensor, [picture], str(tmp_path / "picture.png")):
        torch.testing.assert_close(generate(pipe, **arguments, image=form).frames, expected)
    for form in ([picture], pixels[None], tensor[None, :, None]):
        torch.testing.assert_close(generate(pipe, **arguments, video=form).frames, expected)


def test_a_video_is_no_picture(pipe, tmp_path):
    with VideoWriter(tmp_path / "clip.mkv", 24, lossless=True) as writer:
        writer.write(np.zeros((2, 16, 16, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="clip.mkv: not an image that can be read"):
        generate(pipe, num_latent_frames=3, image=str(tmp_path / "clip.mkv"))


def test_given_frames_fill_the_size_and_keep_their_proportions(pipe):
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1  # the middle is square
    ((frame,),) = pipe.prepare_frames(None, wide, 16, 16)
    assert frame.shape == (1, 3, 16, 16)
    assert (frame[..., 2:-2] > 0.9).all()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_indices": [0, 9], "num_frames": 9}, "from 0 to 8 in a video of 9 frames, got 9"),
        ({"frame_indices": [-1, 2]}, "`frame_indices` must be from 0 to .*, got -1"),
        ({"frame_indices": [0, 64]}, "from 0 to 63 in a video of 64 frames, got 64"),
        ({"frame_indices": [3, 3]}, r"`frame_indices` must differ from each other, got \[3, 3\]"),
        ({"frame_indices": [0]}, "an index for each given frame, got 1 for 2 frames"),
        ({"num_latent_frames": 1}, "2 given frames do not fit in 1 latent frames"),
        ({"image": torch.zeros(3, 16, 16)}, "`video` or `image`, not both"),
        ({"video": None, "frame_indices": [0]}, "`frame_indices` needs the frames"),
        ({"video": random_clip(2, batch_size=2), "batch_size": 3}, "'batch_size': 3, 'video': 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_requests_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe, **{"num_latent_frames": 4, "video": random_clip(2), **arguments})
