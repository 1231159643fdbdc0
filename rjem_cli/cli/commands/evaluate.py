"""`rjem eval`: scores of samples, whoever made them, and of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.eval_output import (
    announce_estimate,
    announce_features,
    announce_inputs,
    announce_tests,
    show_checkpoint_scores,
    show_sample_scores,
)
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.sampling_output import describe_checkpoint
from rjem_cli.cli.signals import interrupted, stop_on_signals, stoppable
from rjem_cli.config import CheckpointScoreOptions, EvalConfig, SampleScoreOptions
from rjem_cli.errors import ConfigError

FEATURES_KEPT = "stopped; features and the judge are kept; run the same command again to resume"
SubjectArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SAMPLES...|CHECKPOINT",
        help="Samples: a folder (flat, or a folder a class), .npz (arr_0), .tar, .zip, or - for a tar on stdin; "
        "several are parts of one set. Or a checkpoint: a .safetensors file, a run's name or folder.",
        autocompletion=paths.run_names,
    ),
]


@with_options(EvalConfig)
def evaluate(call: CommandCall[EvalConfig], subjects: SubjectArgument = None) -> None:
    """Score samples (IS, FID, KID, precision, recall, density, coverage, diversity) or a checkpoint (accuracy,
    calibration, robust accuracy, out-of-distribution AUROC, energies).

    Features of images are kept: what was computed once, or before a Ctrl-C, is not computed again.

    Examples:

      rjem eval samples/

      rjem eval part0.npz part1.npz part2.npz part3.npz

      rjem eval other.npz --reference cifar10:train --require 'fid<=45'

      rjem generate my-run -n 10000 -o - | rjem eval - --reference cifar10:test

      rjem eval my-run --eps 2/255,8/255 --ood noise,svhn --save scores/
    """
    config, samples, checkpoint = resolve_subjects(call, subjects or [])
    if samples:
        evaluate_samples(call, config, samples)
    else:
        evaluate_checkpoint(call, config, checkpoint)


def resolve_subjects(call: CommandCall[EvalConfig], subjects: list[str]) -> tuple[EvalConfig, list[str], Path | None]:
    """(config, places of samples, checkpoint): samples or a checkpoint, or with --model neither. Raises ConfigError or
    AbsentError."""
    config = call.resolve()
    if config.model is not None:
        call.reject(SampleScoreOptions, f"applies to samples only, but {config.model} is a network")
        return config, [], call.find_network(config, subjects[0] if subjects else None)
    if not subjects:
        raise ConfigError("nothing to score; give samples, a checkpoint or a run (see --help)")
    found = {subject: paths.find_checkpoint_or_images(subject) for subject in subjects}
    checkpoint = found[subjects[0]]
    if len(found) < len(subjects):
        raise ConfigError(f"{max(subjects, key=subjects.count)} is given twice; give each part once")
    if len(found) > 1 and (other := next((name for name, path in found.items() if path), None)):
        raise ConfigError(
            f"{other} is a checkpoint; several arguments are parts of one set of samples (see rjem compare)"
        )
    if checkpoint:
        call.reject(SampleScoreOptions, f"applies to samples only, but {subjects[0]} is a checkpoint")
    else:
        call.reject(CheckpointScoreOptions, f"applies to checkpoints only, but {subjects[0]} holds samples")
    return config, [] if checkpoint else subjects, checkpoint


def evaluate_samples(call: CommandCall[EvalConfig], config: EvalConfig, locations: list[str]) -> None:
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.metrics.estimate import estimate_seconds
    from rjem_cli.engine.metrics.results import opened_results
    from rjem_cli.engine.metrics.sample_report import describe_sample_scores, pictures_of
    from rjem_cli.engine.metrics.samples import evaluate, prepare, read_inputs

    console = call.console
    inputs = read_inputs(config, locations, console.binary_input)
    announce_inputs(inputs, console)
    if call.dry_run:
        start_up, seconds = call.elapsed(), estimate_seconds(inputs)
        announce_estimate(seconds, start_up, estimated_bytes(inputs.runtime.device), console)
        return
    with opened_results(config) as results:
        with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
            on_progress = stoppable(bar, stop, FEATURES_KEPT)
            job = prepare(inputs, console.warn, on_progress, bar.update, stop)
            if job is None:
                raise interrupted(stop, FEATURES_KEPT)
            announce_features(job, on_progress, console)
            found = evaluate(job, on_progress)
        document = describe_sample_scores(job, found, call.elapsed())
        with results.write(document, pictures_of(job, found)):
            show_sample_scores(document, found.scores, console)
    inputs.requirements.check(found.scores)


def evaluate_checkpoint(call: CommandCall[EvalConfig], config: EvalConfig, path: Path | None) -> None:
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.metrics.classifier import evaluate_classifier, prepare_classifier
    from rjem_cli.engine.metrics.classifier_report import describe_classifier_scores, pictures_of
    from rjem_cli.engine.metrics.results import opened_results

    console = call.console
    job = prepare_classifier(config, path, console.warn)
    console.log(describe_checkpoint(job.checkpoint))
    announce_tests(job, console)
    if call.dry_run:
        seconds = call.elapsed() + job.estimate_seconds()
        console.estimate(seconds, estimated_bytes(job.runtime.device), at_most=True)
        return
    with opened_results(config) as results:
        with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
            found = evaluate_classifier(job, stoppable(bar, stop, "stopped; a checkpoint's scores are not kept"))
        document = describe_classifier_scores(job, found, call.elapsed())
        with results.write(document, pictures_of(job, found)):
            show_checkpoint_scores(document, found.scores, console)
    job.requirements.check(found.scores)
