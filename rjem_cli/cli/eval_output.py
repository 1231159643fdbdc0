"""What an evaluation shows: what is compared by whose features, the scores with how each was made, the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli.cli.attack_output import describe_attack
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_duration
from rjem_cli.config.fields import format_short_epsilon
from rjem_cli.paths import results_file

if TYPE_CHECKING:
    from rjem_cli.config import EvalConfig
    from rjem_cli.engine.callbacks import OnProgress
    from rjem_cli.engine.metrics.classifier import ClassifierJob
    from rjem_cli.engine.metrics.samples import EvalJob, Inputs

MOST_CLASSES = 20


def describe_images(count: int, of: int, shape: tuple[int, int, int], name: str) -> str:
    channels, height, width = shape
    first = f"{count} of {of}" if count != of else f"{count}"
    return f"{first} images of {name}, {width}x{height} {'grey' if channels == 1 else 'coloured'}"


def announce_inputs(inputs: Inputs, console: Console) -> None:
    case, plan = inputs.case, inputs.plan
    samples, reference = case.samples, case.reference
    console.log(f"samples: {describe_images(len(samples), inputs.of, samples.image_shape, samples.name)}")
    if reference.images is None:
        console.log(f"reference: statistics of {reference.name}")
    else:
        count = len(reference.images)
        console.log(f"reference: {describe_images(count, count, reference.images.image_shape, reference.name)}")
    console.log(f"device: {inputs.runtime.describe()}")
    console.log(f"features by {case.choice.kind} ({case.choice.reason}); metrics: {', '.join(plan.metrics)}")
    total = len(samples) + (case.real_count or 0)
    if inputs.judge_steps:
        console.log(f"a judge of this reference is trained first, {inputs.judge_steps}, and then kept")
    console.log(f"{total} images need features, but for those that have them from before; {places_of(case.config)}")


def announce_features(job: EvalJob, watch: OnProgress, console: Console) -> None:
    """How long the features will take here, measured on the first images."""
    case = job.inputs.case
    total = len(case.samples) + (case.real_count or 0)
    if not job.missing:
        console.log(f"features of all {total} images are kept from before")
        return
    rate = job.images_per_second(watch)
    console.log(
        f"features: {job.missing} of {total} images to compute at about {rate:.3g} images/s: "
        f"about {format_duration(job.missing / rate)}"
    )


def announce_estimate(seconds: float | None, start_up: float, memory: int | None, console: Console) -> None:
    if seconds is None:
        console.estimate(None, None, ": the network that gives features must be fetched first")
    else:
        console.estimate(start_up + seconds, memory)


def announce_tests(job: ClassifierJob, console: Console) -> None:
    console.log(f"device: {job.runtime.describe()}")
    console.log(f"{len(job.test.images)} of {job.test.total} images of {job.test.source}, spread evenly")
    console.log(describe_attack(job.plan, job.radii))
    console.log(f"out of distribution: {', '.join(job.ood_sets) or 'nothing'}")
    chains = 0
    if job.samples is not None:
        request = job.samples.request
        chains = request.plan.gradient_steps * request.block_count * request.block_size
    steps = job.plan.gradient_steps * len(job.radii) * len(job.test.images) + chains
    console.log(f"at most {steps} gradient steps in all, {chains} of them for {job.config.samples} samples")
    console.log(places_of(job.config))


def places_of(config: EvalConfig) -> str:
    return f"writes to {', '.join([config.results or str(results_file()), *([config.save] if config.save else [])])}"


def show_sample_scores(document: dict[str, Any], scores: dict[str, float], console: Console) -> None:
    """Tables on a terminal, TSV on a pipe; with --quiet the first score alone."""
    if console.as_json:
        console.document(document)
        return
    if console.quiet:
        console.result(number(next(iter(scores.values()))))
        return
    protocol = document["protocol"]
    rows = []
    for metric in protocol["metrics"].values():
        how = ", ".join(f"{key} {value}" for key, value in metric["settings"].items())
        rows += [
            (name, number(scores[name]), score["better"], ", ".join(filter(None, (score["what"], how))))
            for name, score in metric["scores"].items()
            if name in scores
        ]
    features, reference = protocol["features"], protocol["reference"]
    title = f"{protocol['samples']['count']} samples against {reference['name']} ({reference['count'] or 'statistics'})"
    console.table(title, ("score", "value", "better", "how"), rows)
    if document["per_class"]:
        console.table("Classes", *class_table(document["per_class"]))
    console.log(
        f"features: {features['network']}, weights sha256 {features['weights_sha256'][:12]}, "
        f"resize {features['resize']}, {features['arithmetic']} ({features['chosen']})"
    )
    for note in document["notes"]:
        console.log(f"note: {note}")


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def class_table(per_class: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows); of many classes, those that are sampled least, else those that are furthest."""
    titles = {"share": "share", "share_real": "in the reference"}
    kinds = list(per_class)
    names = list(per_class.get("share_real") or per_class[kinds[0]])
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: trouble(per_class, name))[:MOST_CLASSES]
        titles["class"] = f"class ({MOST_CLASSES} of {len(per_class[kinds[0]])}, the worst first)"
    rows = [(name, *(cell(kind, per_class[kind].get(name)) for kind in kinds)) for name in names]
    return tuple(titles.get(kind, kind) for kind in ("class", *kinds)), rows


def trouble(per_class: dict[str, dict[str, float]], name: str) -> float:
    if "share" in per_class:
        return per_class["share"].get(name, 0.0)
    return -next(iter(per_class.values())).get(name, 0.0)


def cell(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if kind.startswith("share") else f"{value:.6g}"


def show_checkpoint_scores(document: dict[str, Any], scores: dict[str, float], console: Console) -> None:
    """Tables on a terminal, TSV on a pipe; with --quiet the accuracy alone."""
    if console.as_json:
        console.document(document)
        return
    if console.quiet:
        console.result(number(scores["accuracy"]))
        return
    protocol, count = document["protocol"], document["protocol"]["images"]
    low, high = document["accuracy_interval_95"]
    rows = [
        ("accuracy", f"{scores['accuracy']:.2%}", f"{low:.1%} to {high:.1%}", f"{count} of {protocol['of']} images")
    ]
    for robust in document["robust"]:
        low, high = robust["accuracy"]["interval_95"]
        name = f"robust accuracy, eps {robust['eps_text']}"
        rows.append((name, f"{robust['accuracy']['value']:.2%}", f"{low:.1%} to {high:.1%}", f"{count} images"))
    rows.append(("nll", f"{scores['nll']:.4f}", "", "mean cross-entropy, nats"))
    rows.append(("ece", f"{scores['ece']:.2%}", "", f"{protocol['ece']['bins']} bins of equal width"))
    console.table(f"{protocol['data']}", ("score", "value", "95% interval", "how"), rows)
    console.table("Classes", *accuracy_by_class(document))
    if protocol["ood"]["sets"]:
        console.table("Out of distribution", *ood_table(protocol["ood"], scores))
    console.log(f"{document['zero_gradient_images']} of {document['attacked']} attacked images have a gradient of zero")
    console.table("Energies", *energy_table(document["energies"]))
    for note in document["notes"]:
        console.log(f"note: {note}")


def accuracy_by_class(document: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    by_class, norm = document["per_class"], document["protocol"]["attack"]["norm"]
    radii = (format_short_epsilon(robust["eps"], norm) for robust in document["robust"])
    columns = ("class", "images", "accuracy", *(f"robust {eps}" for eps in radii))
    names = sorted(by_class, key=lambda name: by_class[name]["value"])[:MOST_CLASSES]
    rows = []
    for name in [name for name in by_class if name in names]:
        shares = [robust["per_class"][name]["value"] for robust in document["robust"]]
        own = by_class[name]
        rows.append((name, str(own["of"]), f"{own['value']:.1%}", *(f"{share:.1%}" for share in shares)))
    return columns, rows


def ood_table(ood: dict[str, Any], scores: dict[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("AUROC against", *ood["scores"].values())
    rows = [
        (f"{kind} ({count})", *(auroc_cell(scores.get(f"auroc_{kind}_{score}")) for score in ood["scores"]))
        for kind, count in ood["sets"].items()
    ]
    return columns, rows


def auroc_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def energy_table(energies: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("E(x) of", "5%", "median", "95%", "mean |dE/dx|")
    keys = ("q05", "median", "q95", "gradient_norm")
    rows = [
        (f"{kind} ({found['count']})", *("-" if found[key] is None else f"{found[key]:.3f}" for key in keys))
        for kind, found in energies.items()
    ]
    return columns, rows
