from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_vidvae.schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler


plan_gaps = FlowMatchGapScheduler.gaps_to_positions


@st.composite
def gap_batches(draw):
    batch_size, num_slots = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    values = st.floats(-3, 50, width=32) | st.sampled_from([0.0, 0.5, 1.0, 1e6, -1e6])
    gaps = torch.tensor([[draw(values) for _ in range(num_slots)] for _ in range(batch_size)])
    counts = torch.tensor([draw(st.integers(1, num_slots)) for _ in range(batch_size)])
    tail = torch.tensor([draw(values) for _ in range(batch_size)]) if draw(st.booleans()) else None
    return gaps, torch.arange(num_slots) < counts[:, None], tail


def assert_valid(plan, frame_mask):
    assert plan.gaps.dtype == plan.positions.dtype == plan.num_frames.dtype == torch.int64
    assert (plan.gaps[:, 0] >= 0).all()
    assert (plan.gaps[:, 1:][frame_mask[:, 1:]] >= 1).all()
    assert (plan.gaps[~frame_mask] == 0).all()
    assert torch.equal(plan.positions, plan.gaps.cumsum(dim=1))
    assert (plan.positions[:, -1] < plan.num_frames).all()


@settings(deadline=None)
@given(gap_batches())
def test_natural_plans_are_ordered_and_padded_with_zero(batch):
    gaps, frame_mask, tail = batch
    plan = plan_gaps(gaps, frame_mask, tail=tail)
    assert_valid(plan, frame_mask)
    minimums = torch.tensor([0] + [1] * (gaps.shape[1] - 1))
    assert torch.equal(plan.gaps, torch.maximum(gaps.double().round().long(), minimums) * frame_mask)
    tails = torch.zeros(len(gaps)) if tail is None else tail.double().round().clamp(min=0)
    assert torch.equal(plan.num_frames, plan.positions[:, -1] + 1 + tails.long())


@settings(deadline=None)
@given(gap_batches(), st.data())
def test_requested_lengths_are_met_exactly(batch, data):
    gaps, frame_mask, tail = batch
    lengths = [data.draw(st.integers(count, count + 200)) for count in frame_mask.sum(dim=1).tolist()]
    plan = plan_gaps(gaps, frame_mask, lengths, tail)
    assert_valid(plan, frame_mask)
    assert plan.num_frames.tolist() == lengths
    if tail is None:
        assert torch.equal(plan.positions[:, -1], plan.num_frames - 1)


@settings(deadline=None)
@given(gap_batches(), st.data())
def test_fixed_positions_are_met_exactly(batch, data):
    gaps, frame_mask, tail = batch
    fixed = torch.full_like(gaps, -1, dtype=torch.int64)
    lengths = []
    for clip, count in enumerate(frame_mask.sum(dim=1).tolist()):
        steps = [data.draw(st.integers(0 if slot == 0 else 1, 20)) for slot in range(count)]
        places = torch.tensor(steps).cumsum(0)
        chosen = torch.tensor([data.draw(st.booleans()) for _ in range(count)])
        fixed[clip, :count] = torch.where(chosen, places, -1)
        lengths.append(int(places[-1]) + data.draw(st.integers(1, 20)))
    num_frames = lengths if data.draw(st.booleans()) else None
    plan = plan_gaps(gaps, frame_mask, num_frames, tail, fixed)
    assert_valid(plan, frame_mask)
    assert torch.equal(plan.positions[fixed >= 0], fixed[fixed >= 0])
    if num_frames is not None:
        assert plan.num_frames.tolist() == lengths


@settings(deadline=None)
@given(gap_batches(), st.data())
def test_a_clip_does_not_depend_on_its_batch_mates(batch, data):
    gaps, frame_mask, tail = batch
    lengths = [data.draw(st.integers(8, 60)) for _ in gaps]
    together = plan_gaps(gaps, frame_mask, lengths, tail)
    for clip, count in enumerate(frame_mask.sum(dim=1).tolist()):
        alone = plan_gaps(gaps[clip : clip + 1, :count], None, lengths[clip], None if tail is None else tail[[clip]])
        assert torch.equal(alone.gaps[0], together.gaps[clip, :count])


def test_stretching_keeps_proportions():
    plan = plan_gaps(torch.tensor([[0.0, 1.0, 3.0, 6.0]]), num_frames=101)
    assert plan.gaps.tolist() == [[0, 10, 30, 60]]
    plan = plan_gaps(torch.tensor([[0.0, 4.0, 4.0]]), num_frames=18, tail=torch.tensor([0.0]))
    assert plan.gaps.tolist() == [[0, 8, 8]]


def test_a_plan_of_the_requested_length_is_kept():
    gaps = torch.tensor([[2.0, 1.0, 7.0, 3.0]])
    assert plan_gaps(gaps, num_frames=14).gaps.tolist() == [[2, 1, 7, 3]]


def test_what_cannot_be_planned_is_refused_with_both_numbers():
    gaps = torch.ones(1, 5)
    with pytest.raises(ValueError, match="5 latent frames do not fit in a video of 4 frames"):
        plan_gaps(gaps, num_frames=4)
    with pytest.raises(ValueError, match="each of the 1 clips, got 2"):
        plan_gaps(gaps, num_frames=[9, 9])
    with pytest.raises(ValueError, match="must be finite"):
        plan_gaps(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"shape \(1, 5\) of `gaps`, got \(1, 4\)"):
        plan_gaps(gaps, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="clip 0 has none"):
        plan_gaps(gaps, torch.zeros(1, 5, dtype=torch.bool))
    fixed = torch.tensor([[-1, -1, 1, -1, -1]])
    with pytest.raises(ValueError, match="need at least 2 frames between frame 0 and frame 1, there are 1"):
        plan_gaps(gaps, fixed_positions=fixed)


def test_default_steps_are_equal():
    scheduler = FlowMatchGapScheduler()
    scheduler.set_timesteps(8)
    assert scheduler.sigmas.tolist() == [1 - i / 8 for i in range(9)]
    assert scheduler.timesteps.tolist() == [1000 * (1 - i / 8) for i in range(8)]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"stochastic_sampling": True},
        {"use_dynamic_shifting": True},
        {"shift_terminal": 0.1},
    ],
    ids=str,
)
def test_without_gaps_it_is_its_parent(config):
    ours, parent = FlowMatchGapScheduler(**config), FlowMatchEulerDiscreteScheduler(**config)
    sigmas = [0.9, 0.5, 0.2]
    mu = 0.7 if config.get("use_dynamic_shifting") else None
    states = []
    for scheduler in (ours, parent):
        generator = torch.Generator().manual_seed(0)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        sample = torch.randn(2, 4, 3, 2, 2, generator=generator)
        for timestep in scheduler.timesteps:
            velocity = (sample * 0.3 + timestep / 1000).bfloat16()
            output = scheduler.step(velocity, timestep, sample, generator=generator)
            assert type(output).__name__ == "FlowMatchEulerDiscreteSchedulerOutput"
            sample = output.prev_sample
        states.append(sample)
    assert torch.equal(ours.sigmas, parent.sigmas)
    assert torch.equal(*states)
    assert states[0].dtype == states[1].dtype


def test_gaps_are_handed_through_and_the_state_stays_float32():
    scheduler = FlowMatchGapScheduler()
    scheduler.set_timesteps(100)
    sample, velocity = torch.zeros(1, 4), torch.full((1, 4), 0.1, dtype=torch.bfloat16)
    gaps = torch.tensor([[0.0, 2.5]])
    for timestep in scheduler.timesteps:
        output = scheduler.step(velocity, timestep, sample, gaps=gaps)
        sample = output.prev_sample
    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample, -velocity.float(), rtol=1e-5, atol=0)
    assert output.gaps is gaps
    scheduler.set_timesteps(1)
    assert len(scheduler.step(velocity, scheduler.timesteps[0], sample, gaps=gaps, return_dict=False)) == 2


def test_noise_is_added_along_the_flow():
    scheduler = FlowMatchGapScheduler()
    scheduler.set_timesteps(4)
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    noised = scheduler.add_noise(data, noise, scheduler.timesteps[[1, 3]])
    sigma = torch.tensor([[0.75], [0.25]])
    torch.testing.assert_close(noised, sigma * noise + (1 - sigma) * data)
    assert scheduler.scale_model_input(data, scheduler.timesteps[0]) is data


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_of_scheduled_timesteps_is_the_parent_s(shift):
    options = {"shift": shift}
    ours, parent = FlowMatchGapScheduler(**options), FlowMatchEulerDiscreteScheduler(**options)
    ours.set_timesteps(7)
    parent.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    data, noise = torch.randn(7, 3, 2), torch.randn(7, 3, 2)
    for dtype in (torch.float32, torch.bfloat16):
        expected = parent.scale_noise(data.to(dtype), parent.timesteps, noise.to(dtype))
        assert torch.equal(ours.scale_noise(data.to(dtype), ours.timesteps, noise.to(dtype)), expected)


@pytest.mark.parametrize("num_inference_steps", [None, 10])
def test_noise_of_every_timestep_is_on_the_line_from_data_to_noise(num_inference_steps):
    scheduler = FlowMatchGapScheduler(shift=3.0)
    if num_inference_steps is not None:
        scheduler.set_timesteps(num_inference_steps)
        scheduler.set_begin_index(2)
    data, noise = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    assert torch.equal(scheduler.add_noise(data, noise, torch.zeros(4, dtype=torch.int64)), data)
    assert torch.equal(scheduler.add_noise(data, noise, torch.tensor([1000])), noise)
    assert torch.equal(scheduler.scale_noise(data, 0, noise), data)
    timesteps = torch.tensor([0.0, 123.456, 0.5, 999.99])
    sigma = (timesteps / 1000)[:, None, None]
    torch.testing.assert_close(scheduler.add_noise(data, noise, timesteps), sigma * noise + (1 - sigma) * data)
    integers = torch.randint(0, 1001, (4,))
    torch.testing.assert_close(
        scheduler.add_noise(data, noise, integers), scheduler.add_noise(data, noise, integers.double())
    )


def test_timesteps_that_were_named_otherwise_keep_their_noise_level():
    scheduler = FlowMatchGapScheduler()
    scheduler.set_timesteps(sigmas=[0.9, 0.5], timesteps=[800.0, 300.0])
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    sigma = torch.tensor([[0.9], [0.5]])
    torch.testing.assert_close(
        scheduler.add_noise(data, noise, torch.tensor([800, 300])), sigma * noise + (1 - sigma) * data
    )


@pytest.mark.parametrize("timestep", [-1.0, 1000.5, float("nan")])
def test_timesteps_out_of_range_are_refused(timestep):
    with pytest.raises(ValueError, match="must lie between 0 and 1000, got"):
        FlowMatchGapScheduler().add_noise(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([timestep]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0, -0.5]}, r"numbers in \(0, 1\], got \[1.0, -0.5\]"),
        ({"sigmas": [1.2, 0.5]}, r"numbers in \(0, 1\]"),
        ({"sigmas": [0.5, 0.5]}, "must fall, but number 1 is 0.5 after 0.5"),
        ({"sigmas": [0.5, 0.7]}, "must fall, but number 1 is 0.7 after 0.5"),
        ({"sigmas": []}, "one or more numbers"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({}, "at least 1, got None"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchGapScheduler().set_timesteps(**arguments)


def test_configs_travel_between_flow_schedulers(tmp_path):
    scheduler = FlowMatchGapScheduler(shift=2.5)
    scheduler.save_pretrained(tmp_path)
    assert FlowMatchGapScheduler.from_pretrained(tmp_path).config.shift == 2.5
    euler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    heun = FlowMatchHeunDiscreteScheduler.from_config(scheduler.config)
    assert euler.config.shift == heun.config.shift == 2.5
    assert FlowMatchGapScheduler.from_config(euler.config).config.shift == 2.5
    assert FlowMatchEulerDiscreteScheduler in scheduler.compatibles
