"""What an evaluation shows: what is compared by whose features, the scores with how each was made, the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli.interface.console import Console

if TYPE_CHECKING:
    from rjem_cli.engine.quality.job import EvalJob, Inputs

MOST_CLASSES = 20


def describe_images(count: int, of: int, shape: tuple[int, int, int], name: str) -> str:
    channels, height, width = shape
    first = f"first {count} of {of}" if count != of else f"{count}"
    return f"{first} images of {name}, {width}x{height} {'grey' if channels == 1 else 'coloured'}"


def announce_inputs(inputs: Inputs, console: Console) -> None:
    samples, reference = inputs.samples, inputs.reference
    console.say(f"samples: {describe_images(len(samples), inputs.of, samples.image_shape, samples.name)}")
    if reference.images is None:
        console.say(f"reference: statistics of {reference.name}")
    else:
        count = len(reference.images)
        console.say(f"reference: {describe_images(count, count, reference.images.image_shape, reference.name)}")
    console.say(f"device: {inputs.runtime.describe()}")


def announce_cost(job: EvalJob, console: Console) -> None:
    """How long the features will take here, measured on the first images."""
    total = len(job.inputs.samples) + len(job.inputs.reference.images or ())
    if not job.missing:
        console.say(f"features of all {total} images are kept from before")
        return
    rate = job.images_per_second()
    console.say(
        f"features: {job.missing} of {total} images to compute at about {rate:.3g} images/s: "
        f"about {duration(job.missing / rate)}"
    )


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def show_evaluation(document: dict[str, Any], scores: dict[str, float], console: Console) -> None:
    """Tables on a terminal, TSV on a pipe; with --quiet the first score alone."""
    if console.quiet:
        console.result(f"{next(iter(scores.values())):.6g}")
        return
    protocol = document["protocol"]
    rows = []
    for metric in protocol["metrics"].values():
        how = ", ".join(f"{key} {value}" for key, value in metric["settings"].items())
        for name, better in metric["scores"].items():
            if name in scores:
                rows.append((name, number(scores[name]), better, how))
    features, reference = protocol["features"], protocol["reference"]
    title = f"{protocol['samples']['count']} samples against {reference['name']} ({reference['count'] or 'statistics'})"
    console.table(title, ("score", "value", "better", "how"), rows)
    if document["per_class"]:
        console.table("Classes", *class_table(document["per_class"]))
    console.say(
        f"features: {features['network']}, weights sha256 {features['weights_sha256'][:12]}, "
        f"resize {features['resize']}, {features['arithmetic']} ({features['chosen']})"
    )
    for note in document["notes"]:
        console.say(f"note: {note}")


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def class_table(per_class: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows); where there are many classes, those that are sampled least."""
    titles = {"share": "share", "share_real": "in the reference"}
    kinds = list(per_class)
    names = list(per_class.get("share_real") or per_class[kinds[0]])
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: per_class[kinds[0]].get(name, 0.0))[:MOST_CLASSES]
    rows = [(name, *(cell(kind, per_class[kind].get(name)) for kind in kinds)) for name in names]
    return ("class", *(titles.get(kind, kind) for kind in kinds)), rows


def cell(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if kind.startswith("share") else f"{value:.6g}"
