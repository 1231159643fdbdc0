"""PGD finds the known optimum of a linear model and never leaves the ball or the box."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import cross_entropy_until, l2_norm, pgd, project, random_start
from rjem_cli.engine.attacks.robustness import AttackPlan, run_restart

torch.manual_seed(1)
WEIGHT = torch.randn(1, 12)
SHAPE = (1, 3, 4)
LABELS = torch.tensor([0, 1, 0])


def linear(x: torch.Tensor) -> torch.Tensor:
    """Two classes; the logit of class 1 less that of class 0 is w.x."""
    score = x.flatten(1) @ WEIGHT.T
    return torch.cat([-score / 2, score / 2], dim=1)


def test_linf_on_a_linear_model_ends_in_the_worst_corner():
    center = torch.zeros(3, *SHAPE)
    x = pgd(linear, center, LABELS, eps=0.3, steps=10)
    away = torch.where(LABELS == 0, 1.0, -1.0).view(3, 1, 1, 1)  # class 0 is hurt by a larger w.x
    torch.testing.assert_close(x, 0.3 * away * WEIGHT.sign().view(1, *SHAPE).expand(3, *SHAPE))


def test_l2_on_a_linear_model_ends_along_the_weights():
    x = pgd(linear, torch.zeros(1, *SHAPE), LABELS[:1], eps=0.5, steps=20, norm="l2")
    torch.testing.assert_close(x.flatten(1), 0.5 * WEIGHT / WEIGHT.norm(), rtol=1e-4, atol=1e-5)


def test_a_targeted_attack_is_the_untargeted_one_of_the_other_class():
    center = torch.rand(3, *SHAPE) - 0.5
    targeted = pgd(linear, center, 1 - LABELS, eps=0.2, steps=5, targeted=True)
    torch.testing.assert_close(targeted, pgd(linear, center, LABELS, eps=0.2, steps=5))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_leaves_an_image_as_it_is_once_it_is_confident(norm):
    def attack(confidence: float, steps: int) -> torch.Tensor:
        loss = partial(cross_entropy_until, confidence=confidence)
        options = {"eps": 1.0, "step_size": 0.05, "norm": norm, "loss": loss, "targeted": True}
        return pgd(linear, center, LABELS, steps=steps, **options)

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        return linear(x).softmax(dim=1).gather(1, LABELS[:, None]).squeeze(1)

    center = torch.zeros(3, *SHAPE)
    center[2] += 0.3 * WEIGHT.sign().view(SHAPE) * (-1) ** (1 + LABELS[2])  # confident from the start
    iterates = [attack(0.7, steps) for steps in range(30)]
    reached = torch.stack([probabilities(x) > 0.7 for x in iterates])
    assert reached[-1].all() and not reached[0].all() and reached[0, 2]
    for before, after, done in zip(iterates, iterates[1:], reached):
        assert torch.equal(before[done], after[done])
        assert (probabilities(after) > probabilities(before))[~done].all()
    assert torch.equal(
        attack(1.0, 30), pgd(linear, center, LABELS, eps=1.0, steps=30, step_size=0.05, norm=norm, targeted=True)
    )


def test_eps_zero_changes_nothing():
    center = torch.rand(3, *SHAPE) * 2 - 1
    assert torch.equal(pgd(linear, center, LABELS, eps=0.0, steps=7), center)


def test_steps_have_the_length_of_the_step():
    center = torch.zeros(3, *SHAPE)
    for step_size in (0.01, 0.3):
        l2 = pgd(linear, center, LABELS, eps=0.5, steps=1, step_size=step_size, norm="l2")
        torch.testing.assert_close(l2_norm(l2).flatten(), torch.full((3,), step_size))
        linf = pgd(linear, center, LABELS, eps=0.5, steps=1, step_size=step_size)
        torch.testing.assert_close(linf.abs(), torch.full((3, *SHAPE), step_size))


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(0, 3),
    steps=st.integers(0, 6),
    step_size=st.floats(1e-3, 10),
    norm=st.sampled_from(["linf", "l2"]),
    targeted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_result_is_in_the_ball_and_in_the_box(eps, steps, step_size, norm, targeted, seed):
    center = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x = pgd(linear, center, LABELS, eps=eps, steps=steps, step_size=step_size, norm=norm, targeted=targeted)
    offset = (x - center).flatten(1)
    size = offset.abs().max() if norm == "linf" else offset.norm(dim=1).max()
    assert size <= eps + 1e-5
    assert x.abs().max() <= 1


def test_projection_leaves_points_inside_alone():
    center = torch.zeros(2, *SHAPE)
    inside = torch.full((2, *SHAPE), 0.01)
    for norm in ("linf", "l2"):
        torch.testing.assert_close(project(inside, center, 0.5, norm), inside)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_raises_the_loss_of_a_network_and_leaves_its_parameters_without_gradients(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    center = torch.rand(3, *SHAPE) - 0.5
    x = pgd(model, center, LABELS, eps=0.3, steps=10, norm=norm)
    assert F.cross_entropy(model(x), LABELS) > F.cross_entropy(model(center), LABELS)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_and_depend_on_seed_and_restart_only(norm):
    center, seeds = torch.zeros(4000, 1, 1, 2), torch.arange(4000)
    starts = random_start(center, seeds, 0.5, norm)
    size = starts.abs().flatten(1).amax(1) if norm == "linf" else starts.flatten(1).norm(dim=1)
    assert size.max() <= 0.5 and starts.mean().abs() < 0.01
    # the share within half of the radius is that of the volumes
    assert abs((size < 0.25).float().mean() - 0.25) < 0.03
    torch.testing.assert_close(random_start(center[7:9], seeds[7:9], 0.5, norm), starts[7:9])
    assert not torch.equal(random_start(center, seeds, 0.5, norm, restart=1), starts)


NETWORK_SHAPE, CLASSES, COUNT = (2, 5, 5), 6, 60


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(2)
    layers = nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, CLASSES)
    return nn.Sequential(*layers).double().requires_grad_(False)


@pytest.fixture(scope="module")
def attacked(network):
    """(images, starts, their predicted classes); attacks of this size break about half of the images."""
    images = torch.rand(COUNT, *NETWORK_SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    starts = random_start(images, torch.arange(COUNT), 0.1, "linf")
    return images, starts, network(images).argmax(dim=1)


def run_naively(network, plan, eps, start, center, labels):
    """The best iterate of each image by definition: run every image to the end by hand, without dropping any; then the
    first success, else the iterate of largest loss."""
    x, iterates, step_size = start, [], 2.5 * eps / plan.steps
    for _ in range(plan.steps + 1):
        x = x.detach().requires_grad_()
        logits = network(x)
        loss = F.cross_entropy(logits, labels, reduction="none") * (-1 if plan.targeted else 1)
        success = (logits.argmax(dim=1) == labels) == plan.targeted
        iterates.append((x.detach(), success, loss.detach()))
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        x = torch.min(torch.max(x + step_size * gradient.sign(), center - eps), center + eps).clamp(-1, 1)
    xs, successes, losses = (torch.stack(parts) for parts in zip(*iterates))
    chosen = torch.where(successes.any(0), successes.int().argmax(0), losses.argmax(0))
    every = torch.arange(len(center))
    return xs[chosen, every], successes.any(0), losses[chosen, every]


@pytest.mark.parametrize("targeted", [False, True])
def test_the_best_iterate_is_that_of_a_loop_that_drops_no_image(network, attacked, targeted):
    images, starts, labels = attacked
    labels = (labels + 1) % CLASSES if targeted else labels
    plan = AttackPlan(steps=12, targeted=targeted)
    result = run_restart(network, plan, 0.1, starts, images, labels)
    x, success, loss = run_naively(network, plan, 0.1, starts, images, labels)
    assert 0.1 < success.double().mean() < 0.9
    assert torch.equal(result.success_B, success)
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.loss_B, loss, check_dtype=False)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_dropping_images_never_changes_the_others(network, attacked, attack):
    images, starts, labels = attacked
    rows = torch.arange(COUNT)

    def drop(state):
        nonlocal rows
        if state.step not in (0, 4, 17, 30):
            return None
        remaining = (torch.arange(len(rows)) % 4 != 1).nonzero().squeeze(1)
        rows = rows[remaining]
        return remaining

    undisturbed = attack(network, images, labels, eps=0.1, steps=40, start=starts)
    x = attack(network, images, labels, eps=0.1, steps=40, start=starts, callback=drop)
    assert len(x) == len(rows) == 19
    torch.testing.assert_close(x, undisturbed[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_attack_ends_when_no_image_is_left(network, attacked, attack):
    images, _, labels = attacked
    steps = []

    def drop_all(state):
        steps.append(state.step)
        return torch.arange(0) if state.step == 3 else None

    x = attack(network, images, labels, eps=0.1, steps=10, callback=drop_all)
    assert len(x) == 0 and steps == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["pgd", "apgd"])
def test_the_result_of_an_image_does_not_depend_on_which_others_are_dropped(network, attacked, method):
    """Each image has the same result in a batch of one, from which no other image is dropped."""
    images, starts, labels = (part[:20] for part in attacked)
    plan = AttackPlan(steps=12, method=method)
    result = run_restart(network, plan, 0.1, starts, images, labels)
    assert 0.1 < result.success_B.double().mean() < 0.9
    for row in range(20):
        rows = slice(row, row + 1)
        single = run_restart(network, plan, 0.1, starts[rows], images[rows], labels[rows])
        assert torch.equal(single.success_B, result.success_B[rows])
        torch.testing.assert_close(single.x, result.x[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(single.loss_B, result.loss_B[rows])
