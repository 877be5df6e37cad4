from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_vidvae import GapDiT
from diffusers_vidvae.models.factored_attention import FactoredFeedForward
from diffusers_vidvae.models.gap_dit import PositionTable, channels_to_gaps, gaps_to_channels


TINY_CONFIG = {
    "sample_size": 4,
    "in_channels": 6,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ff_inner_dim": 48,
    "max_num_frames": 8,
}
FLOW_CONFIG = {
    **TINY_CONFIG,
    "rope_type": "axial",
    "time_embedding": "adaptive",
    "gap_mode": "flow",
    "gap_log_mean": 0.9,
    "gap_log_std": 0.6,
}
# What helps small models: all that blocks would otherwise learn of single channels and of places.
GUIDED_CONFIG = {
    **FLOW_CONFIG,
    "latents_variance": [9.0, 2.0, 0.5, 0.2, 0.05, 0.01],
    "input_context": True,
    "absolute_positions": True,
    "ff_convolution": True,
}
CONFIGS = [
    pytest.param(TINY_CONFIG, id="published"),
    pytest.param(FLOW_CONFIG, id="flow"),
    pytest.param(GUIDED_CONFIG, id="guided"),
]


def make_model(config: dict, **changes) -> GapDiT:
    torch.manual_seed(0)
    model = GapDiT(**{**config, **changes})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)  # what starts at zero would hide its input
    return model.eval()


def make_inputs(model: GapDiT, batch_size: int = 2, kept: int = 5, height: int = 4, width: int = 4) -> dict:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch_size, model.config["in_channels"], kept, height, width, generator=generator)
    gap_channels = torch.randn(batch_size, model.num_gap_channels, kept, 1, 1, generator=generator)
    hidden_states = torch.cat([latents, gap_channels.expand(-1, -1, -1, height, width)], dim=1)
    return {"hidden_states": hidden_states, "timestep": torch.linspace(900, 200, batch_size)}


def test_the_defaults_are_the_published_model():
    with torch.device("meta"):
        assert GapDiT().num_parameters() == 504_208_738


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_outputs_have_the_promised_shapes(config):
    model = make_model(config)
    inputs = make_inputs(model)
    output = model(**inputs)
    assert output.sample.shape == inputs["hidden_states"].shape
    assert output.gaps.shape == (2, 5)
    assert output.gaps.dtype == torch.float32
    assert (output.tail is None) == (config["gap_mode"] == "regression" if "gap_mode" in config else True)
    for value, expected in zip(model(**inputs, return_dict=False), output.to_tuple(), strict=True):
        assert torch.equal(value, expected)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_one_timestep_serves_all_clips(config):
    model = make_model(config)
    hidden_states = make_inputs(model)["hidden_states"]
    expected = model(hidden_states, torch.tensor([300.0, 300.0]))
    for timestep in (300, 300.0, torch.tensor(300), torch.tensor([300.0])):
        assert torch.equal(model(hidden_states, timestep).sample, expected.sample)
    assert not torch.equal(model(hidden_states, 301).sample, expected.sample)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_padding_and_batch_mates_do_not_matter(config):
    model = make_model(config)
    inputs = make_inputs(model)
    frame_mask = torch.arange(5) < torch.tensor([[5], [3]])
    together = model(**inputs, frame_mask=frame_mask)
    inputs["hidden_states"][1, :, 3:] = 100.0
    assert torch.equal(model(**inputs, frame_mask=frame_mask).sample[1, :, :3], together.sample[1, :, :3])
    alone = model(inputs["hidden_states"][1:, :, :3], inputs["timestep"][1:])
    torch.testing.assert_close(alone.sample[0], together.sample[1, :, :3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.gaps[0], together.gaps[1, :3], rtol=1e-5, atol=1e-6)
    if alone.tail is not None:
        torch.testing.assert_close(alone.tail[0], together.tail[1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gap_channels_stay_constant_over_a_frame():
    model = make_model(FLOW_CONFIG)
    velocity = model(**make_inputs(model)).sample[:, 6:]
    assert torch.equal(velocity, velocity[..., :1, :1].expand_as(velocity))
    assert velocity.unique().numel() > 2


@torch.no_grad()
def test_gaps_are_the_clean_estimate_of_the_gap_channels():
    model = make_model(FLOW_CONFIG)
    inputs = make_inputs(model)
    output = model(**inputs)
    sigma = inputs["timestep"][:, None, None] / 1000
    clean = (inputs["hidden_states"][:, 6:, :, 0, 0] - sigma * output.sample[:, 6:, :, 0, 0]) * 0.6 + 0.9
    torch.testing.assert_close(output.gaps[:, 0], clean[:, 0, 0].expm1())
    torch.testing.assert_close(output.gaps[:, 1:], ((clean[:, 0, 1:] + clean[:, 1, :-1]) / 2).expm1())
    torch.testing.assert_close(output.tail, clean[:, 1, -1].expm1())


@settings(deadline=None)
@given(st.data())
def test_gap_channels_encode_gaps_and_tail_exactly(data):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    gaps = torch.zeros(len(counts), max(counts), dtype=torch.int64)
    for clip, count in enumerate(counts):
        gaps[clip, 0] = data.draw(st.integers(0, 30))
        for slot in range(1, count):
            gaps[clip, slot] = data.draw(st.integers(1, 30))
    tail = torch.tensor([data.draw(st.integers(0, 30)) for _ in counts])
    frame_mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    statistics = data.draw(st.floats(-1, 1)), data.draw(st.floats(0.5, 2))

    channels = gaps_to_channels(gaps, gaps.sum(dim=1) + 1 + tail, frame_mask, *statistics)
    assert channels.shape == (len(counts), 2, max(counts))
    assert not channels.masked_select(~frame_mask[:, None]).any()
    decoded_gaps, decoded_tail = channels_to_gaps(channels, frame_mask, *statistics)
    torch.testing.assert_close(decoded_gaps, gaps.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded_tail, tail.float(), rtol=1e-4, atol=1e-4)


def test_the_model_encodes_gaps_in_its_own_normalisation():
    model = make_model(FLOW_CONFIG)
    gaps, num_frames = torch.tensor([[0, 3, 2]]), torch.tensor([9])
    channels = model.encode_gaps(gaps, num_frames)
    expected = (torch.log1p(torch.tensor([[[0.0, 3, 2], [3, 2, 3]]])) - 0.9) / 0.6
    torch.testing.assert_close(channels, expected)
    decoded_gaps, decoded_tail = model.decode_gaps(channels)
    torch.testing.assert_close(decoded_gaps, gaps.float())
    torch.testing.assert_close(decoded_tail, torch.tensor([3.0]))


@torch.no_grad()
def test_a_flow_model_takes_any_size():
    model = make_model(FLOW_CONFIG)
    inputs = make_inputs(model, height=6, width=3)
    assert model(**inputs).sample.shape == inputs["hidden_states"].shape


@torch.no_grad()
@pytest.mark.parametrize("option", ["latents_variance", "input_context", "absolute_positions", "ff_convolution"])
def test_every_option_for_small_models_does_something(option):
    inputs = make_inputs(make_model(GUIDED_CONFIG))
    without = make_model(GUIDED_CONFIG, **{option: None if option == "latents_variance" else False})
    state = make_model(GUIDED_CONFIG).state_dict()
    without.load_state_dict({name: state[name] for name in without.state_dict()})
    difference = without(**inputs).sample - make_model(GUIDED_CONFIG)(**inputs).sample
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_a_model_that_knows_variances_starts_as_the_best_linear_estimate():
    variance = torch.tensor([*GUIDED_CONFIG["latents_variance"], 1.0, 1.0])
    model = GapDiT(**GUIDED_CONFIG)
    model.proj_out.weight.zero_()
    model.proj_out.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(256, 8, 4, 4, 4, generator=generator) * variance.sqrt()[None, :, None, None, None]
    noise = torch.randn(data.shape, generator=generator)
    for sigma in (0.1, 0.5, 0.9):
        noisy = sigma * noise + (1 - sigma) * data
        error = (model(noisy, 1000 * sigma).sample - (noise - data))[:, :6].square().mean(dim=(0, 2, 3, 4))
        expected = variance / (sigma**2 + (1 - sigma) ** 2 * variance)  # what the best linear estimate leaves
        torch.testing.assert_close(error, expected[:6], rtol=0.06, atol=0)


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes():
    table = PositionTable(4, 8)
    torch.nn.init.normal_(table.table)
    assert torch.equal(table(4, 4), table.table.flatten(1).mT)
    assert table(2, 6).shape == (12, 8)
    table.table[:] = 3.0
    torch.testing.assert_close(table(5, 7), torch.full((35, 8), 3.0))


@torch.no_grad()
def test_only_a_model_of_absolute_positions_knows_the_first_of_equal_frames_from_the_last():
    for config, differ in ((FLOW_CONFIG, False), (GUIDED_CONFIG, True)):
        model = make_model(config)
        inputs = make_inputs(model, kept=1)
        inputs["hidden_states"] = inputs["hidden_states"].expand(-1, -1, 4, -1, -1)
        frames = model(**inputs).sample.unbind(2)
        assert all(torch.allclose(frame, frames[0], atol=1e-5) != differ for frame in frames[1:])


@torch.no_grad()
def test_an_mlp_with_convolution_sees_its_neighbours_and_no_more():
    feed_forward = FactoredFeedForward(8, 16, convolution=True).eval()
    tokens = torch.randn(1, 2, 20, 8)  # 4 rows of 5
    plain = feed_forward(tokens, (4, 5))
    torch.nn.init.normal_(feed_forward.conv.weight)
    before = feed_forward(tokens, (4, 5))
    assert not torch.allclose(before, plain)
    tokens[0, 0, 0] += 1
    changed = (feed_forward(tokens, (4, 5)) != before).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 0, place] for place in (0, 1, 5, 6)]


def test_a_model_with_convolutions_is_not_split_over_tokens():
    assert GapDiT(**GUIDED_CONFIG)._cp_plan is None
    assert GapDiT(**FLOW_CONFIG)._cp_plan


@torch.no_grad()
def test_blocks_of_a_fresh_adaptive_model_are_the_identity():
    model = GapDiT(**FLOW_CONFIG)
    seen = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.transformer_blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(**make_inputs(model))
    assert torch.equal(*seen)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_saving_and_loading_changes_nothing(config, tmp_path):
    model = make_model(config)
    model.save_pretrained(tmp_path)
    loaded = GapDiT.from_pretrained(tmp_path)
    assert torch.equal(loaded(**make_inputs(model)).sample, model(**make_inputs(model)).sample)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_checkpointing_gives_the_same_gradients(config):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(config).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(**make_inputs(model), frame_mask=torch.arange(5) < torch.tensor([[5], [3]]))
        (output.sample.square().mean() + output.gaps.mean()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding": "sine"}, r"`time_embedding` must be one of \('linear', 'adaptive'\), got 'sine'"),
        ({"gap_mode": "none"}, r"`gap_mode` must be one of \('regression', 'flow'\), got 'none'"),
        ({"rope_type": "spiral"}, r"`rope_type` must be one of \('raster', 'axial'\), got 'spiral'"),
        ({"gap_log_std": 0.0}, "`gap_log_std` must be positive, got 0.0"),
        ({"latents_variance": [1.0, 2.0]}, "`latents_variance` must have a number for each of the 6 channels"),
        ({"latents_variance": [1.0, 2.0, 1.0, 0.0, 1.0, 1.0]}, "`latents_variance` must be positive, got 0.0"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GapDiT(**{**TINY_CONFIG, **changes})


@pytest.mark.parametrize(
    ("shape", "mask_shape", "message"),
    [
        ((1, 7, 5, 4, 4), None, r"\(batch, 6, kept, height, width\), got \(1, 7, 5, 4, 4\)"),
        ((1, 6, 4, 4), None, r"got \(1, 6, 4, 4\)"),
        ((1, 6, 9, 4, 4), None, "from 1 to 8 latent frames, got 9"),
        ((1, 6, 0, 4, 4), None, "from 1 to 8 latent frames, got 0"),
        ((1, 6, 5, 8, 2), None, "takes 4x4 latents, got 8x2"),
        ((1, 6, 5, 4, 4), (1, 4), r"\(batch, kept\) = \(1, 5\), got \(1, 4\)"),
    ],
)
def test_bad_inputs_are_refused(shape, mask_shape, message):
    frame_mask = None if mask_shape is None else torch.ones(mask_shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        make_model(TINY_CONFIG)(torch.zeros(shape), 500, frame_mask)
