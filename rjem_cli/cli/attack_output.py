"""The output of `rjem attack`: the attack in words, robust accuracy by radius, and the table of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli.cli.console import Console
from rjem_cli.config.fields import format_epsilon, format_short_epsilon
from rjem_cli.errors import pluralize

if TYPE_CHECKING:
    from rjem_cli.engine.attacks.robustness import AttackPlan

BAR_WIDTH = 12  # characters
MAX_CLASSES = 20  # in the table
ROUNDING = 1 / 255 + 1e-6  # half a grey level, in model units


def describe_attack(plan: AttackPlan, radii: tuple[float, ...]) -> str:
    """`PGD-CE linf, eps 0.0627451 = 8/255, 20 steps, 1 restart from a random point, best iterate`."""
    target = "targeted " if plan.targeted else ""
    start = "the image" if plan.start == "image" else "a random point"
    restarts = f"{pluralize(plan.restarts, 'restart')} from {start}, {plan.iterate} iterate"
    name = "PGD" if plan.method == "pgd" else "APGD"
    eps = "; ".join(format_epsilon(eps, plan.norm) for eps in radii)
    confidence = f", success from {plan.min_confidence:.0%} confidence" if plan.min_confidence else ""
    return f"{target}{name}-{plan.loss.upper()} {plan.norm}, eps {eps}, {plan.steps} steps, {restarts}{confidence}"


def show_attack(report: dict[str, Any], console: Console) -> None:
    """A table on a terminal, TSV in a pipe; with --quiet one number, the share at the largest radius."""
    clean, results, norm = report["clean"], report["results"], report["protocol"]["attack"]["norm"]
    targeted = report["protocol"]["targets"] is not None
    name = "success" if targeted else "robust_accuracy"
    zero = clean["zero_gradient_images"]
    if zero["count"]:
        console.warn(
            f"{zero['count']} of {zero['of']} attacked images have a gradient of zero, so the attack cannot move them; "
            "add --loss margin"
        )
    if console.quiet:
        value = results[-1][name]["value"]
        console.result("nan" if value is None else f"{value:.4f}")
        return
    if targeted:
        accuracy = clean["accuracy"]
        console.log(f"clean accuracy {accuracy['value']:.2%}; {clean['attacked']} of {accuracy['of']} images attacked")
    rows = [] if targeted else [radius_row("0", clean["accuracy"])]
    rows += [radius_row(result["eps_text"], result[name]) for result in results]
    title = "Images pushed to their target" if targeted else "Accuracy under attack"
    console.table(title, ("eps", name.replace("_", " "), "95% interval", "images", ""), rows)
    console.table("Per class", *class_table(clean, results, targeted, norm))
    console.log(
        f"{zero['count']} of {zero['of']} attacked images have a gradient of zero; "
        f"{clean['zero_gradient_components']:.2%} of all components are zero"
    )
    for result in results:
        if "files" in result:
            files = result["files"]
            rounded = norm == "linf" and files["over_eps"] > 0 and files["largest_distance"] <= result["eps"] + ROUNDING
            console.log(
                f"images in {files['folder']}: {files[name]['value'] or 0:.2%} {name.replace('_', ' ')}, "
                f"largest distance {format_epsilon(files['largest_distance'], norm)}, "
                f"{files['over_eps']} beyond eps{' by rounding to 8 bits' * rounded}"
            )


def radius_row(eps: str, share: dict[str, Any]) -> tuple[str, ...]:
    """Radius, share, interval, images and a bar."""
    low, high = share["interval_95"]
    value = share["value"] or 0.0
    text = "-" if share["value"] is None else f"{value:.2%}"
    filled = round(value * BAR_WIDTH)
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    return eps, text, f"{low:.1%} to {high:.1%}", f"{share['count']} of {share['of']}", bar


def class_table(
    clean: dict[str, Any], results: list[dict[str, Any]], targeted: bool, norm: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows) of at most MAX_CLASSES classes, those with the lowest shares at the largest radius."""
    kind = "success" if targeted else "robust"
    radii = [f"{kind} {format_short_epsilon(result['eps'], norm)}" for result in results]
    last = results[-1]["per_class"]
    names = sorted(last, key=lambda name: last[name]["value"])[:MAX_CLASSES] if len(last) > MAX_CLASSES else last
    rows = []
    for name in names:
        accuracy = clean["per_class"][name]
        shares = [result["per_class"][name]["value"] for result in results]
        rows.append((name, str(accuracy["of"]), f"{accuracy['value']:.1%}", *(f"{share:.1%}" for share in shares)))
    return ("class", "images", "clean", *radii), rows
