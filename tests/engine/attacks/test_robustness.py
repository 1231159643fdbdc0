"""Attacks break exactly the images that can be broken, and restarts keep the worst case of each image."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from rjem_cli.engine.attacks.pgd import cross_entropy, is_success, l2_norm, random_start
from rjem_cli.engine.attacks.robustness import (
    DROP_EVERY,
    AttackPlan,
    AttackSetup,
    attack_dataset,
    evaluate_clean,
    run_restart,
)
from rjem_cli.engine.attacks.targets import random_targets
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.errors import RjemError

CPU = torch.device("cpu")
PIXELS = torch.arange(0, 256, dtype=torch.uint8).view(-1, 1, 1, 1)
GREYS = ImageSet(PIXELS, (PIXELS.flatten() >= 128).long(), ("dark", "light"))
LEVEL = 1 / 127.5


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A perfect classifier of greys whose margin is the distance to middle grey."""
    level = x.flatten(1).sum(1, keepdim=True)
    return torch.cat([-level, level], dim=1)


def attack(model, images, plan, radii, targets=None, batch_size=64, on_progress=noop, search=None):
    dataset = AttackDataset(images, torch.arange(len(images)), targets, seed=0)
    setup = AttackSetup(model, search or model, plan, dataset, CPU, BatchSizer(batch_size))
    clean = evaluate_clean(setup)
    return clean, list(attack_dataset(setup, clean, radii, on_progress))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (60, 1, 6, 6), generator=generator).to(torch.uint8)
    return ImageSet(pixels, torch.randint(0, 4, (60,), generator=generator), tuple("abcd"))


@pytest.fixture(scope="module")
def model(images):
    """A small network that fits its images, so that weak attacks break only some of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(to_model(images.pixels)), images.labels).backward()
        optimizer.step()
    return network.requires_grad_(False)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["pgd", "apgd"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("start", ["random", "image"])
def test_exactly_the_images_within_eps_of_the_border_are_broken(norm, method, loss, start):
    plan = AttackPlan(norm=norm, method=method, loss=loss, start=start, steps=10)
    clean, (result,) = attack(brightness, GREYS, plan, [20 * LEVEL])
    assert result.robust_accuracy(clean).correct == 256 - 40  # 20 levels on each side
    assert result.success_rate(clean).correct == 40 and result.success_rate(clean).count == 256


def test_eps_zero_gives_the_clean_and_a_huge_eps_no_accuracy():
    for method in ("pgd", "apgd"):
        clean, (zero, huge) = attack(brightness, GREYS, AttackPlan(method=method, steps=5), [0, 4])
        assert zero.robust_accuracy(clean).value == 1 and huge.robust_accuracy(clean).value == 0
        assert torch.equal(zero.x, to_model(PIXELS))


def test_robust_accuracy_falls_with_the_radius_and_broken_images_stay_broken(model, images):
    _, results = attack(model, images, AttackPlan(steps=5), [0.18, 0.05, 0.14, 0.6])
    assert [result.eps for result in results] == [0.05, 0.14, 0.18, 0.6]
    for smaller, larger in itertools.pairwise(results):
        assert (larger.success >= smaller.success).all()
    assert results[0].success.sum() < results[-1].success.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["pgd", "apgd"])
def test_attacked_images_are_in_the_ball_and_misclassified_where_the_result_says_so(model, images, norm, method):
    eps = 0.15 if norm == "linf" else 0.6
    plan = AttackPlan(norm=norm, method=method, steps=10, restarts=3)
    clean, (result,) = attack(model, images, plan, [eps])
    offset = result.x - to_model(images.pixels)
    size = offset.abs().amax() if norm == "linf" else l2_norm(offset).amax()
    assert size <= eps + 1e-5 and result.x.abs().max() <= 1
    wrong = model(result.x).argmax(dim=1) != images.labels
    assert torch.equal(wrong & clean.attacked, result.success) and 0 < result.success.sum() < clean.attacked.sum()


def test_restarts_keep_the_worst_case_of_each_image_and_skip_the_broken_ones(model, images):
    plan, sizes, progress = AttackPlan(steps=2, restarts=8, norm="l2", iterate="last"), [], []

    def counting(x):
        sizes.append(len(x))
        return model(x)

    _, (many,) = attack(
        counting, images, plan, [0.7], batch_size=60, on_progress=lambda *values: progress.append(values)
    )
    _, (single,) = attack(model, images, replace(plan, restarts=1), [0.7], batch_size=60)
    assert (many.success >= single.success).all() and many.success.sum() > single.success.sum()
    batches = sizes[1::3]  # one pass over the clean images, then three per restart
    assert batches == sorted(batches, reverse=True) and batches[-1] < batches[0] == 60
    assert [done for _, done, _, _ in progress] == [60 * restart for restart in range(1, 9)]
    assert progress[-1][2] == 480 and f"{1 - int(many.success.sum()) / 60:.1%} robust" in progress[-1][3]


def test_robust_images_are_returned_at_their_largest_loss(model, images):
    plan, eps = AttackPlan(steps=2, restarts=4, norm="l2", iterate="last"), 0.4
    clean, (many,) = attack(model, images, plan, [eps])
    center, losses = to_model(images.pixels), []
    for restart in range(4):
        start = random_start(center, torch.arange(60), eps, "l2", restart)
        losses.append(run_restart(model, plan, eps, start, center, images.labels).loss_B)
    robust = clean.attacked & ~many.success
    loss = cross_entropy(model(many.x), images.labels)[robust]
    torch.testing.assert_close(loss, torch.stack(losses).amax(dim=0)[robust])


def test_the_attack_on_an_image_does_not_depend_on_its_batch(model, images):
    plan = AttackPlan(steps=4, restarts=2)
    successes = [attack(model, images, plan, [0.14], batch_size=size)[1][0].success for size in (60, 7, 1)]
    assert torch.equal(successes[0], successes[1]) and torch.equal(successes[0], successes[2])


def test_broken_images_leave_the_batch(model, images):
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return model(x)

    attack(counting, images, AttackPlan(steps=20, start="image"), [0.16], batch_size=60)
    assert sizes[0] == 60 and sizes[1] <= 60 and sizes[-1] < sizes[1]


def test_an_image_broken_between_two_removals_leaves_at_the_next(images):
    passes = []

    def fails_at_its_second_step_only(x):
        passes.append(len(x))
        correct = torch.nn.functional.one_hot(images.labels[: len(x)], 4).float() + 0 * x.flatten(1)[:, :4]
        return -correct if len(passes) == 3 else correct  # the first pass classifies the clean images

    _, (result,) = attack(fails_at_its_second_step_only, images, AttackPlan(start="image"), [0.1], batch_size=60)
    assert result.success.all() and len(passes) <= 2 + DROP_EVERY


def test_with_the_best_iterate_a_success_on_the_way_counts():
    def notch(x):
        """Class 0 everywhere but within 0.02 of 0.1."""
        distance = (x.flatten(1) - 0.1).abs()
        return torch.cat([distance - 0.02, torch.zeros_like(distance)], dim=1)

    grey = ImageSet(torch.full((1, 1, 1, 1), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), ("out", "in"))
    plan = AttackPlan(steps=2, step_size=0.1, start="image")  # 0, 0.1, and past it
    assert attack(notch, grey, plan, [0.5])[1][0].success.tolist() == [True]
    assert attack(notch, grey, replace(plan, iterate="last"), [0.5])[1][0].success.tolist() == [False]


def test_the_margin_breaks_what_a_saturated_cross_entropy_cannot():
    def steep(x):
        return brightness(x) * 1e4

    clean, (result,) = attack(steep, GREYS, AttackPlan(steps=10, start="image"), [20 * LEVEL])
    assert clean.zero_images > 200 and result.success_rate(clean).correct < 40
    clean, (result,) = attack(steep, GREYS, AttackPlan(steps=10, start="image", loss="margin"), [20 * LEVEL])
    assert clean.zero_images == 0 and result.success_rate(clean).correct == 40


@pytest.mark.parametrize("method", ["pgd", "apgd"])
@pytest.mark.parametrize("iterate", ["best", "last"])
def test_with_a_minimum_confidence_exactly_the_images_that_reach_it_are_broken(method, iterate):
    """p(wrong class) = sigmoid(2 level) reaches sigmoid(20 LEVEL) at 10 levels beyond the border."""
    confidence = float(torch.tensor(20 * LEVEL).sigmoid())
    plan = AttackPlan(method=method, iterate=iterate, steps=10, min_confidence=confidence)
    clean, (result,) = attack(brightness, GREYS, plan, [20 * LEVEL])
    assert result.robust_accuracy(clean).correct == 256 - 20  # 10 levels on each side
    assert (brightness(result.x).softmax(dim=1).amax(dim=1)[result.success] >= confidence).all()


def test_targeted_attacks_reach_the_target(model, images):
    targets = random_targets(images.labels, torch.arange(60), 4, seed=5)
    assert (targets != images.labels).all() and set(targets.tolist()) == {0, 1, 2, 3}
    for loss in ("ce", "margin"):
        clean, (result,) = attack(model, images, AttackPlan(steps=20, targeted=True, loss=loss), [0.5], targets)
        reached = model(result.x).argmax(dim=1) == targets
        assert torch.equal(reached & clean.attacked, result.success) and result.success.sum() > 10
    fixed = torch.full_like(targets, 2)
    clean, _ = attack(model, images, AttackPlan(steps=1, targeted=True), [0.1], fixed)
    assert not clean.attacked[images.labels == 2].any()


def test_apgd_breaks_at_least_as_many_images_as_pgd_with_the_same_budget_on_a_hard_model(images):
    torch.manual_seed(4)
    rough = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    images = replace(images, labels=rough(to_model(images.pixels)).argmax(dim=1))
    rough.requires_grad_(False)
    broken = {}
    for method in ("pgd", "apgd"):
        _, (result,) = attack(rough, images, AttackPlan(method=method, steps=50), [0.1])
        broken[method] = int(result.success.sum())
    assert broken["apgd"] >= broken["pgd"] > 0


@pytest.mark.parametrize("method", ["pgd", "apgd"])
@pytest.mark.parametrize("iterate", ["best", "last"])
def test_gradients_that_are_not_finite_are_an_error(method, iterate):
    """NaN logits are not a success, and images that cannot be attacked are not robust either."""

    def rootlike(x):  # NaN below 0, and an infinite gradient at 0
        level = x.flatten(1)[:, :1]
        return torch.cat([torch.where(level >= 0, level, level.sqrt()), level - 1], dim=1)

    assert not is_success(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), targeted=False).any()
    plan = AttackPlan(method=method, iterate=iterate, steps=3)
    center = torch.zeros(4, 1, 1, 1)
    with pytest.raises(RjemError, match="gradients of 4 of 4 images are not finite"):
        run_restart(rootlike, plan, 0.1, center, center, torch.zeros(4, dtype=torch.long))


def test_success_is_decided_by_the_network_and_not_by_the_search(model, images):
    """The search finds nothing but false successes, so the network attacks all images again itself."""

    def misleading(x):
        return model(x).flip(1)

    for method in ("pgd", "apgd"):
        plan = AttackPlan(steps=5, method=method, restarts=2)
        expected_clean, (expected,) = attack(model, images, plan, [0.14])
        clean, (found,) = attack(model, images, plan, [0.14], search=misleading)
        assert torch.equal(clean.predictions, expected_clean.predictions)
        assert torch.equal(found.success, expected.success) and 0 < found.success.sum() < clean.attacked.sum()
        wrong = model(found.x).argmax(dim=1) != images.labels
        assert torch.equal(wrong & clean.attacked, found.success)


def test_a_search_in_half_precision_finds_what_the_network_confirms(model, images):
    def rounded(x):
        return model(x).bfloat16().float()

    plan = AttackPlan(steps=20, restarts=2, loss="margin")
    _, (exact,) = attack(model, images, plan, [0.14])
    clean, (found,) = attack(model, images, plan, [0.14], search=rounded)
    wrong = model(found.x).argmax(dim=1) != images.labels
    assert torch.equal(wrong & clean.attacked, found.success)
    assert abs(int(found.success.sum()) - int(exact.success.sum())) <= 2
