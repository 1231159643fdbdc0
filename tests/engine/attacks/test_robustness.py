"""Exactly the images that can be broken are; restarts keep the worst case of each image; the broken cost no more."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from rjem_cli.engine.attacks.losses import cross_entropy, is_success
from rjem_cli.engine.attacks.search import CHECK_EVERY, AttackPlan, attempt
from torch import nn

from rjem_cli.engine.attacks.pgd import l2_norm, random_start
from rjem_cli.engine.attacks.robustness import AttackDataset, attack_images, evaluate_clean, random_targets
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.errors import RjemError

CPU = torch.device("cpu")
PIXELS = torch.arange(0, 256, dtype=torch.uint8).view(-1, 1, 1, 1)
GREYS = ImageSet(PIXELS, (PIXELS.flatten() >= 128).long(), ("dark", "light"))
LEVEL = 1 / 127.5


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A perfect classifier of greys whose margin is the distance to middle grey."""
    level = x.flatten(1).sum(1, keepdim=True)
    return torch.cat([-level, level], dim=1)


def attack(model, images, plan, radii, targets=None, batch_size=64, seed=0, report=lambda *_: None):
    chosen = AttackDataset(images, torch.arange(len(images)), targets, seed)
    batches = BatchSizer(batch_size)
    clean = evaluate_clean(model, plan, chosen, CPU, batches)
    results = list(attack_images(model, plan, chosen, clean, radii, device=CPU, batches=batches, report=report))
    return clean, results


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (60, 1, 6, 6), generator=generator).to(torch.uint8)
    return ImageSet(pixels, torch.randint(0, 4, (60,), generator=generator), tuple("abcd"))


@pytest.fixture(scope="module")
def model(images):
    """A small network that fits its images, so that most must be attacked with care."""
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
def test_exactly_the_images_within_eps_of_the_border_fall(norm, method, loss, start):
    plan = AttackPlan(norm=norm, method=method, loss=loss, start=start, steps=10)
    clean, (result,) = attack(brightness, GREYS, plan, [20 * LEVEL])
    assert result.robust(clean, GREYS.labels).correct == 256 - 40  # 20 levels on each side
    assert result.success(clean).correct == 40 and result.success(clean).count == 256


def test_eps_zero_gives_the_clean_and_a_huge_eps_no_accuracy():
    for method in ("pgd", "apgd"):
        clean, (none, all_of_it) = attack(brightness, GREYS, AttackPlan(method=method, steps=5), [0, 4])
        assert none.robust(clean, GREYS.labels).value == 1 and all_of_it.robust(clean, GREYS.labels).value == 0
        assert torch.equal(none.x, to_model(PIXELS))


def test_the_curve_falls_and_hits_stay_hit(model, images):
    _, results = attack(model, images, AttackPlan(steps=5), [0.18, 0.05, 0.14, 0.6])
    assert [result.eps for result in results] == [0.05, 0.14, 0.18, 0.6]
    for smaller, larger in itertools.pairwise(results):
        assert (larger.hit >= smaller.hit).all()
    assert results[0].hit.sum() < results[-1].hit.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["pgd", "apgd"])
def test_what_is_returned_is_in_the_ball_and_hits_where_it_says(model, images, norm, method):
    eps = 0.15 if norm == "linf" else 0.6
    plan = AttackPlan(norm=norm, method=method, steps=10, restarts=3)
    clean, (result,) = attack(model, images, plan, [eps])
    offset = result.x - to_model(images.pixels)
    size = offset.abs().amax() if norm == "linf" else l2_norm(offset).amax()
    assert size <= eps + 1e-5 and result.x.abs().max() <= 1
    wrong = model(result.x).argmax(dim=1) != images.labels
    assert torch.equal(wrong & clean.attacked, result.hit) and 0 < result.hit.sum() < clean.attacked.sum()


def test_restarts_keep_the_worst_case_of_each_image_and_leave_the_broken_alone(model, images):
    plan, attempts, progress = AttackPlan(steps=2, restarts=8, norm="l2", iterate="last"), [], []

    def counting(x):
        attempts.append(len(x))
        return model(x)

    _, (many,) = attack(counting, images, plan, [0.7], batch_size=60, report=lambda *seen: progress.append(seen))
    singles = [attack(model, images, replace(plan, restarts=1), [0.7], batch_size=60)[1][0].hit]
    assert (many.hit >= singles[0]).all() and many.hit.sum() > singles[0].sum()
    pools = attempts[1::3]  # a look at the clean images, then three passes a restart
    assert pools == sorted(pools, reverse=True) and pools[-1] < pools[0] == 60
    assert [done for done, _, _ in progress] == [60 * restart for restart in range(1, 9)]
    assert progress[-1][1] == 480 and f"{1 - int(many.hit.sum()) / 60:.1%} stand" in progress[-1][2]


def test_what_still_stands_is_returned_at_its_largest_loss(model, images):
    plan, eps = AttackPlan(steps=2, restarts=4, norm="l2", iterate="last"), 0.4
    clean, (many,) = attack(model, images, plan, [eps])
    center, losses = to_model(images.pixels), []
    for restart in range(4):
        start = random_start(center, torch.arange(60), eps, "l2", restart)
        losses.append(attempt(model, plan, eps, start, center, images.labels).loss_B)
    standing = clean.attacked & ~many.hit
    found = cross_entropy(model(many.x), images.labels)[standing]
    torch.testing.assert_close(found, torch.stack(losses).amax(dim=0)[standing])


def test_an_image_s_attack_does_not_depend_on_its_batch(model, images):
    plan = AttackPlan(steps=4, restarts=2)
    hits = [attack(model, images, plan, [0.14], batch_size=size)[1][0].hit for size in (60, 7, 1)]
    assert torch.equal(hits[0], hits[1]) and torch.equal(hits[0], hits[2])


def test_broken_images_leave_the_batch(model, images):
    seen = []

    def counting(x):
        seen.append(len(x))
        return model(x)

    attack(counting, images, AttackPlan(steps=20, start="image"), [0.16], batch_size=60)
    assert seen[0] == 60 and seen[1] <= 60 and seen[-1] < seen[1]


def test_an_image_hit_between_two_looks_leaves_as_well(images):
    passes = []

    def loses_at_its_second_pass_only(x):
        passes.append(len(x))
        right = torch.nn.functional.one_hot(images.labels[: len(x)], 4).float() + 0 * x.flatten(1)[:, :4]
        return -right if len(passes) == 3 else right  # the first pass is the look at the clean images

    _, (result,) = attack(loses_at_its_second_pass_only, images, AttackPlan(start="image"), [0.1], batch_size=60)
    assert result.hit.all() and len(passes) <= 2 + CHECK_EVERY


def test_with_the_best_iterate_a_hit_on_the_way_counts():
    def notch(x):
        """Class 0 everywhere but within 0.02 of 0.1."""
        distance = (x.flatten(1) - 0.1).abs()
        return torch.cat([distance - 0.02, torch.zeros_like(distance)], dim=1)

    grey = ImageSet(torch.full((1, 1, 1, 1), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), ("out", "in"))
    plan = AttackPlan(steps=2, step_size=0.1, start="image")  # 0, 0.1, and past it
    assert attack(notch, grey, plan, [0.5])[1][0].hit.tolist() == [True]
    assert attack(notch, grey, replace(plan, iterate="last"), [0.5])[1][0].hit.tolist() == [False]


def test_the_margin_breaks_what_a_saturated_cross_entropy_cannot():
    def steep(x):
        return brightness(x) * 1e4

    clean, (result,) = attack(steep, GREYS, AttackPlan(steps=10, start="image"), [20 * LEVEL])
    assert clean.zero_images > 200 and result.success(clean).correct < 40
    clean, (result,) = attack(steep, GREYS, AttackPlan(steps=10, start="image", loss="margin"), [20 * LEVEL])
    assert clean.zero_images == 0 and result.success(clean).correct == 40


def test_targeted_attacks_push_to_the_target(model, images):
    targets = random_targets(images.labels, torch.arange(60), 4, seed=5)
    assert (targets != images.labels).all() and set(targets.tolist()) == {0, 1, 2, 3}
    for loss in ("ce", "margin"):
        clean, (result,) = attack(model, images, AttackPlan(steps=20, targeted=True, loss=loss), [0.5], targets)
        reached = model(result.x).argmax(dim=1) == targets
        assert torch.equal(reached & clean.attacked, result.hit) and result.hit.sum() > 10
    fixed = torch.full_like(targets, 2)
    clean, _ = attack(model, images, AttackPlan(steps=1, targeted=True), [0.1], fixed)
    assert not clean.attacked[images.labels == 2].any()


def test_apgd_finds_at_least_what_pgd_finds_with_the_same_budget_on_a_hard_model(images):
    torch.manual_seed(4)
    rough = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    images = replace(images, labels=rough(to_model(images.pixels)).argmax(dim=1))
    rough.requires_grad_(False)
    hits = {}
    for method in ("pgd", "apgd"):
        _, (result,) = attack(rough, images, AttackPlan(method=method, steps=50), [0.1])
        hits[method] = int(result.hit.sum())
    assert hits["apgd"] >= hits["pgd"] > 0


@pytest.mark.parametrize("method", ["pgd", "apgd"])
@pytest.mark.parametrize("iterate", ["best", "last"])
def test_a_network_without_gradients_is_no_broken_image(method, iterate):
    """Logits that are no numbers are no hit, and images that cannot be attacked are not called robust either."""

    def rootlike(x):  # 0 at 0, without a gradient there; not a number below
        level = x.flatten(1)[:, :1]
        return torch.cat([torch.where(level >= 0, level, level.sqrt()), level - 1], dim=1)

    assert not is_success(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), targeted=False).any()
    plan = AttackPlan(method=method, iterate=iterate, steps=3)
    center = torch.zeros(4, 1, 1, 1)
    with pytest.raises(RjemError, match="gradients of 4 of 4 images are not finite"):
        attempt(rootlike, plan, 0.1, center, center, torch.zeros(4, dtype=torch.long))
