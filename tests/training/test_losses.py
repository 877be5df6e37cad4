"""Every loss against a case that can be worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffusers_vidvae.training import losses


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 2 - 1


PADDED = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.mark.parametrize(("loss", "expected"), [(losses.mse_loss, 0.04), (losses.mae_loss, 0.2)])
def test_pixel_losses_are_in_units_of_zero_to_one(loss, expected):
    target = torch.zeros(1, 3, 4, 2, 2)
    assert loss(target + 0.4, target).item() == pytest.approx(expected)


def test_mse_gradient_is_that_of_a_mean_over_real_pixels():
    sample, target = pixels(2, 3, 4, 2, 2).requires_grad_(), pixels(2, 3, 4, 2, 2)
    losses.mse_loss(sample, target, PADDED).sum().backward()
    real_values = PADDED.sum(dim=1) * 3 * 2 * 2
    expected = (sample - target) / 2 / real_values[:, None, None, None, None] * PADDED[:, None, :, None, None]
    torch.testing.assert_close(sample.grad, expected.detach())


def test_kl_gradient_is_mean_and_variance_minus_one():
    mean, logvar = torch.randn(1, 2, 3, 1, 1, requires_grad=True), torch.randn(1, 2, 3, 1, 1, requires_grad=True)
    losses.kl_loss(mean, logvar).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach() / 6)
    torch.testing.assert_close(logvar.grad, (logvar.detach().exp() - 1) / 12)


def test_kl_of_a_standard_normal_is_zero():
    assert losses.kl_loss(torch.zeros(1, 2, 3, 1, 1), torch.zeros(1, 2, 3, 1, 1)).item() == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda values, mask: losses.mse_loss(values, torch.zeros_like(values), mask),
        lambda values, mask: losses.mae_loss(values, torch.zeros_like(values), mask),
        lambda values, mask: losses.kl_loss(values, values, mask),
        lambda values, mask: losses.flow_matching_loss(values, 0 * values, 0 * values, mask),
        lambda values, mask: losses.keep_rate(values[:, 0, :, 0, 0] > 0, mask),
        lambda values, mask: losses.logit_penalty(9 * values[:, 0, :, 0, 0], frame_mask=mask),
        lambda values, mask: losses.gap_regression_loss(values[:, 0, :, 0, 0], values[:, 1, :, 0, 0], mask),
        lambda values, mask: losses.mask_log_prob(values[:, 0, :, 0, 0], values[:, 0, :, 0, 0] > 0, mask),
    ],
)
def test_padding_never_counts(loss):
    values = pixels(2, 3, 4, 2, 2)
    changed = torch.where(PADDED[:, None, :, None, None], values, pixels(2, 3, 4, 2, 2))
    torch.testing.assert_close(loss(values, PADDED), loss(changed, PADDED))
    torch.testing.assert_close(loss(values, PADDED)[:1], loss(values[:1, :, :3], None))


def test_logit_penalty_pulls_back_saturated_logits():
    logits = torch.tensor([[-40.0, -4.0, 0.0, 40.0]], requires_grad=True)
    losses.logit_penalty(logits, limit=4.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.0, 0.0, 0.25]]))


def test_mask_log_probs_of_all_masks_sum_to_one():
    logits = torch.randn(1, 4).expand(16, 4)
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    assert losses.mask_log_prob(logits, masks).exp().sum().item() == pytest.approx(1)


def toy_cost(masks: torch.Tensor) -> torch.Tensor:
    """A cost without structure for each of the 16 masks of 4 frames."""
    table = torch.randn(16, generator=torch.Generator().manual_seed(1))
    return table[(masks * torch.tensor([8, 4, 2, 1])).sum(dim=1)]


def test_policy_gradient_is_the_exact_gradient_on_average():
    logits = torch.randn(1, 4, requires_grad=True)
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    probs = losses.mask_log_prob(logits.expand(16, 4), masks).exp()
    (exact,) = torch.autograd.grad((probs * toy_cost(masks)).sum(), logits)

    # The expectation over both masks, taken over all 256 pairs.
    first, second = masks.repeat_interleave(16, dim=0), masks.repeat(16, 1)
    weights = (probs.repeat_interleave(16) * probs.repeat(16)).detach()
    advantages = losses.leave_one_out_advantages(torch.stack([toy_cost(first), toy_cost(second)]))
    estimates = losses.policy_gradient_loss(logits.expand(256, 4), torch.stack([first, second]), advantages)
    (estimated,) = torch.autograd.grad((weights * estimates).sum(), logits)
    torch.testing.assert_close(estimated, exact)


def test_policy_gradient_of_equal_masks_is_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    mask = torch.rand(3, 4) < 0.5
    advantages = losses.leave_one_out_advantages(torch.rand(2, 3))
    losses.policy_gradient_loss(logits, torch.stack([mask, mask]), advantages).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4))


def test_policy_gradient_leaves_the_losses_alone():
    costs = torch.rand(2, 2, requires_grad=True)
    masks = torch.stack([torch.ones(2, 4), torch.zeros(2, 4)]).bool()
    advantages = losses.leave_one_out_advantages(costs)
    losses.policy_gradient_loss(torch.randn(2, 4, requires_grad=True), masks, advantages).sum().backward()
    assert costs.grad is None


def test_running_scale_of_a_constant_is_that_constant_from_the_first_step():
    scale = losses.RunningScale(decay=0.9)
    for _ in range(3):
        assert scale.update(torch.tensor([-3.0, 3.0])).item() == pytest.approx(3, rel=1e-5)
    assert scale.update(torch.empty(0)).item() == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(("rate", "direction"), [(0.5, 1), (0.1, -1), (0.3, 0)])
def test_keep_price_rises_above_and_falls_below_the_target_rate(rate, direction):
    controller = losses.KeepCostController(target_rate=0.3, initial=0.01, speed=0.03)
    controller.update(torch.tensor(rate))
    expected = 0.01 * math.exp(0.03 * (rate - 0.3) / 0.3)
    assert controller.price.item() == pytest.approx(expected)
    assert (controller.price.item() > 0.01) - (controller.price.item() < 0.01 * (1 - 1e-6)) == direction


def test_flow_matching_gradient_points_to_noise_minus_data():
    velocity = torch.zeros(1, 2, 3, 1, 1, requires_grad=True)
    noise, data = torch.randn(1, 2, 3, 1, 1), torch.randn(1, 2, 3, 1, 1)
    losses.flow_matching_loss(velocity, noise, data).sum().backward()
    torch.testing.assert_close(velocity.grad, -2 * (noise - data) / 6)


def test_gap_regression_gradient_is_in_frames():
    predicted = torch.tensor([[1.0, 4.0]], requires_grad=True)
    losses.gap_regression_loss(predicted, torch.tensor([[0, 2]])).sum().backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[1.0, 2.0]]))


def test_hinge_losses_have_their_known_gradients():
    real, fake = torch.tensor([0.5, 2.0], requires_grad=True), torch.tensor([-2.0, 0.5], requires_grad=True)
    losses.hinge_discriminator_loss(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([-0.25, 0.0]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 0.25]))
    scores = torch.tensor([1.0, 3.0], requires_grad=True)
    losses.hinge_generator_loss(scores).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([-0.5, -0.5]))


@pytest.mark.parametrize("num_frames", [1, 4])
def test_discriminator_scores_patches_of_clips_of_any_length(num_frames):
    scores = losses.PatchDiscriminator3D(channels=4)(pixels(2, 3, num_frames, 16, 16))
    assert scores.shape[:2] == (2, 1) and scores.shape[3:] == (2, 2)


def test_perceptual_loss_without_torchvision_says_how_to_get_it():
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pip install torchvision"):
            losses.PerceptualLoss()
    else:
        loss = losses.PerceptualLoss(pretrained=False)
        clips = pixels(2, 3, 2, 16, 16)
        assert not loss(clips, clips).any() and loss(clips, -clips).min() > 0
