"""What an attack shows: its plan in words, the table with the curve, the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import pluralize
from rjem_cli.config.fields import format_epsilon, format_short_epsilon

if TYPE_CHECKING:
    from rjem_cli.engine.attacks.robustness import AttackPlan

BAR_WIDTH = 12
WORST_CLASSES = 20
ROUNDING = 1 / 255 + 1e-6  # half a grey level, in model units


def describe_attack(plan: AttackPlan, radii: tuple[float, ...]) -> str:
    target = "targeted " if plan.targeted else ""
    start = "the image" if plan.start == "image" else "a random point"
    restarts = f"{pluralize(plan.restarts, 'restart')} from {start}, {plan.iterate} iterate"
    name = "PGD" if plan.method == "pgd" else "APGD"
    eps = "; ".join(format_epsilon(eps, plan.norm) for eps in radii)
    return f"{target}{name}-{plan.loss.upper()} {plan.norm}, eps {eps}, {plan.steps} steps, {restarts}"


def show_attack(report: dict[str, Any], console: Console) -> None:
    """Tables on a terminal, TSV on a pipe; with --quiet the share at the largest radius alone."""
    clean, results, norm = report["clean"], report["results"], report["protocol"]["attack"]["norm"]
    targeted = report["protocol"]["targets"] is not None
    name = "success" if targeted else "robust_accuracy"
    zero = clean["zero_gradient_images"]
    if zero["count"]:
        console.warn(
            f"{zero['count']} of {zero['of']} attacked images have a gradient of zero; try --loss margin, which does "
            "not saturate"
        )
    if console.quiet:
        value = results[-1][name]["value"]
        console.result("nan" if value is None else f"{value:.4f}")
        return
    if targeted:
        accuracy = clean["accuracy"]
        console.log(f"clean accuracy {accuracy['value']:.2%}; {clean['attacked']} of {accuracy['of']} images attacked")
    rows = [] if targeted else [curve_row("0", clean["accuracy"])]
    rows += [curve_row(result["eps_text"], result[name]) for result in results]
    title = "Images pushed to their target" if targeted else "Accuracy under attack"
    share = "success" if targeted else "robust accuracy"
    console.table(title, ("eps", share, "95% interval", "images", ""), rows)
    console.table("Per class", *class_table(clean, results, targeted, norm))
    console.log(
        f"{zero['count']} of {zero['of']} attacked images have a gradient of zero; "
        f"{clean['zero_gradient_components']:.2%} of all components are zero"
    )
    for result in results:
        if "files" in result:
            files = result["files"]
            rounded = norm == "linf" and files["over_eps"] > 0 and files["largest_distance"] <= result["eps"] + ROUNDING
            over = f"{files['over_eps']} images beyond eps{' by rounding to 8 bits' * rounded}"
            console.log(
                f"from the files in {files['folder']}: {files[name]['value'] or 0:.2%}, largest distance "
                f"{format_epsilon(files['largest_distance'], norm)}, {over}"
            )


def curve_row(eps: str, found: dict[str, Any]) -> tuple[str, ...]:
    low, high = found["interval_95"]
    value = found["value"] or 0.0
    share = "-" if found["value"] is None else f"{value:.2%}"
    bar = "█" * round(value * BAR_WIDTH) + "░" * (BAR_WIDTH - round(value * BAR_WIDTH))
    return eps, share, f"{low:.1%} to {high:.1%}", f"{found['count']} of {found['of']}", bar


def class_table(
    clean: dict[str, Any], results: list[dict[str, Any]], targeted: bool, norm: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows); where there are many classes, those that fare worst at the largest radius."""
    kind = "success" if targeted else "robust"
    columns = (
        "class",
        "images",
        "clean",
        *(f"{kind} {format_short_epsilon(result['eps'], norm)}" for result in results),
    )
    last = results[-1]["per_class"]
    names = sorted(last, key=lambda name: last[name]["value"])[:WORST_CLASSES] if len(last) > WORST_CLASSES else last
    rows = []
    for name in names:
        own = clean["per_class"][name]
        shares = [result["per_class"][name]["value"] for result in results]
        rows.append((name, str(own["of"]), f"{own['value']:.1%}", *(f"{share:.1%}" for share in shares)))
    return columns, rows
