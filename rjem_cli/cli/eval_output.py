"""Output of `rjem eval`: what is compared, the scores with how each was computed, the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rjem_cli.cli.attack_output import describe_attack
from rjem_cli.cli.console import Console
from rjem_cli.cli.sampling_output import describe_checkpoint
from rjem_cli.config.fields import format_short_epsilon
from rjem_cli.errors import pluralize
from rjem_cli.paths import results_file

if TYPE_CHECKING:
    from rjem_cli.cli.formatting import Row
    from rjem_cli.config.scoring import EvalConfig
    from rjem_cli.engine.metrics.classifier import ClassifierJob
    from rjem_cli.engine.metrics.registry import EvalPlan

MAX_CLASSES = 20


def describe_images(count: int, total: int, shape: tuple[int, int, int], name: str) -> str:
    channels, height, width = shape
    counts = f"{count} of {total}" if count != total else f"{count}"
    return f"{counts} images of {name}, {width}x{height} {'grey' if channels == 1 else 'colour'}"


def log_plan(plan: EvalPlan, judge_training: str | None, console: Console) -> None:
    """Log what will be compared and computed."""
    inputs, choice = plan.inputs, plan.inputs.choice
    samples, real = inputs.samples, inputs.reference.images
    for summary in dict.fromkeys((samples.read_summary, real.read_summary if real else "")):
        console.log(summary)
    console.log(f"samples: {describe_images(len(samples), inputs.total, samples.image_shape, samples.name)}")
    reference = f"statistics of {inputs.reference.name}"
    if real is not None:
        reference = describe_images(len(real), len(real), real.image_shape, inputs.reference.name)
    console.log(f"reference: {reference}")
    console.log(f"device: {inputs.runtime.describe()}")
    console.log(f"features by {choice.kind} ({choice.reason}); metrics: {', '.join(plan.metrics)}")
    if judge_training:
        console.log(f"a judge will be trained on the reference first ({judge_training}) and cached")
    console.log(describe_outputs(inputs.config))


def log_job(job: ClassifierJob, console: Console) -> None:
    """Log the checkpoint, the images, the attack and its cost."""
    console.log(describe_checkpoint(job.model.checkpoint))
    console.log(f"device: {job.model.runtime.describe()}")
    for summary in job.read_summaries:
        console.log(summary)
    console.log(f"{len(job.test.images)} of {job.test.total} images of {job.test.source}, evenly spaced")
    console.log(describe_attack(job.plan, job.radii))
    console.log(f"out-of-distribution images: {', '.join(job.ood_sets) or 'none'}")
    chains = 0 if job.samples is None else job.samples.request.gradient_steps
    steps = job.plan.gradient_steps * len(job.radii) * len(job.test.images) + chains
    console.log(f"at most {steps} gradient steps, {chains} of them for {pluralize(job.config.samples, 'sample')}")
    console.log(describe_outputs(job.config))


def describe_outputs(config: EvalConfig) -> str:
    return f"writes to {', '.join([config.results or str(results_file()), *([config.save] if config.save else [])])}"


def show_estimate(start_up: float, seconds: float | None, memory: int | None, console: Console) -> None:
    """The result of --dry-run for samples; `seconds` is None if a network must be downloaded first."""
    if seconds is None:
        console.estimate(None, None, ": the network for features must be downloaded first")
    else:
        console.estimate(start_up + seconds, memory)


def show_sample_scores(document: dict[str, Any], scores: dict[str, float], console: Console) -> None:
    """Tables on a terminal, TSV in a pipe, the first score alone with --quiet; notes on stderr. With --json only the
    document, which has the notes."""
    if console.as_json:
        console.document(document)
        return
    if console.quiet:
        console.result(format_score(next(iter(scores.values()))))
    protocol = document["protocol"]
    rows = []
    for metric in protocol["metrics"].values():
        settings = ", ".join(f"{key} {value}" for key, value in metric["settings"].items())
        for name, score in metric["scores"].items():
            if name in scores:
                how = ", ".join(filter(None, (score["description"], settings)))
                rows.append((name, format_score(scores[name]), score["better"], how))
    features, reference = protocol["features"], protocol["reference"]
    title = f"{protocol['samples']['count']} samples against {reference['name']} ({reference['count'] or 'statistics'})"
    console.table(title, ("score", "value", "better", "how"), rows)
    if document["per_class"]:
        console.table("Classes", *class_table(document["per_class"]))
    console.log(
        f"features: {features['network']}, weights sha256 {features['weights_sha256'][:12]}, "
        f"resize {features['resize']}, {features['arithmetic']} ({features['reason']})"
    )
    for note in document["notes"]:
        console.note(note)


def format_score(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def class_table(per_class: dict[str, dict[str, float]]) -> tuple[Row, Sequence[Row]]:
    """(columns, rows). Of many classes, those with the smallest share, or else the largest distance."""
    titles = {"class": "class", "share": "share", "share_real": "in the reference"}
    names = list(per_class.get("share_real") or next(iter(per_class.values())))
    if len(names) > MAX_CLASSES:
        titles["class"] = f"class ({MAX_CLASSES} of {len(names)}, worst first)"
        values, sign = (per_class["share"], 1) if "share" in per_class else (next(iter(per_class.values())), -1)
        names = sorted(names, key=lambda name: sign * values.get(name, 0.0))[:MAX_CLASSES]
    rows = [(name, *(format_cell(kind, values.get(name)) for kind, values in per_class.items())) for name in names]
    return tuple(titles.get(kind, kind) for kind in ("class", *per_class)), rows


def format_cell(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if kind.startswith("share") else f"{value:.6g}"


def show_checkpoint_scores(document: dict[str, Any], scores: dict[str, float], console: Console) -> None:
    """Tables on a terminal, TSV in a pipe, the accuracy alone with --quiet; notes on stderr. With --json only the
    document, which has the notes."""
    if console.as_json:
        console.document(document)
        return
    if console.quiet:
        console.result(format_score(scores["accuracy"]))
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
    console.table("Classes", *accuracy_table(document))
    if protocol["ood"]["sets"]:
        console.table("Out of distribution", *ood_table(protocol["ood"], scores))
    console.log(f"{document['zero_gradient_images']} of {document['attacked']} attacked images have a zero gradient")
    console.table("Energies", *energy_table(document["energies"]))
    for note in document["notes"]:
        console.note(note)


def accuracy_table(document: dict[str, Any]) -> tuple[Row, Sequence[Row]]:
    """(columns, rows) of the least accurate classes, in the data set's order."""
    by_class, norm = document["per_class"], document["protocol"]["attack"]["norm"]
    radii = (format_short_epsilon(robust["eps"], norm) for robust in document["robust"])
    shown = sorted(by_class, key=lambda name: by_class[name]["value"])[:MAX_CLASSES]
    rows = []
    for name in filter(shown.__contains__, by_class):
        shares = [by_class[name]["value"], *(robust["per_class"][name]["value"] for robust in document["robust"])]
        rows.append((name, str(by_class[name]["of"]), *(f"{share:.1%}" for share in shares)))
    return ("class", "images", "accuracy", *(f"robust {eps}" for eps in radii)), rows


def ood_table(ood: dict[str, Any], scores: dict[str, float]) -> tuple[Row, Sequence[Row]]:
    rows = []
    for kind, count in ood["sets"].items():
        values = [scores.get(f"auroc_{kind}_{score}") for score in ood["scores"]]
        rows.append((f"{kind} ({count})", *("-" if value is None else f"{value:.4f}" for value in values)))
    return ("AUROC against", *ood["scores"].values()), rows


def energy_table(energies: dict[str, dict[str, Any]]) -> tuple[Row, Sequence[Row]]:
    keys = ("q05", "median", "q95", "gradient_norm")
    rows = []
    for kind, values in energies.items():
        cells = ("-" if values[key] is None else f"{values[key]:.3f}" for key in keys)
        rows.append((f"{kind} ({values['count']})", *cells))
    return ("E(x) of", "5%", "median", "95%", "mean |dE/dx|"), rows
