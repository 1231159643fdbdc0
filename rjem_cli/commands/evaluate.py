"""`rjem eval`: scores of samples, whoever made them, and of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rjem_cli import paths
from rjem_cli.config import STREAM, CheckpointScoreOptions, EvalConfig, SampleScoreOptions
from rjem_cli.errors import ConfigError
from rjem_cli.interface.chains_view import describe_checkpoint
from rjem_cli.interface.eval_view import (
    announce_features,
    announce_forecast,
    announce_inputs,
    announce_tests,
    show_checkpoint_scores,
    show_sample_scores,
)
from rjem_cli.interface.options import Call, with_knobs
from rjem_cli.interface.signals import interrupted, stop_on_signals, stoppable

FEATURES_KEPT = "stopped; features and the judge are kept, and the same command goes on"
SubjectArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SAMPLES...|CHECKPOINT",
        help="Samples: a folder (flat, or a folder a class), .npz (arr_0), .tar, .zip, or - for a tar on stdin; "
        "several are parts of one set. Or a checkpoint: a .safetensors file, a run's name or folder.",
        autocompletion=paths.run_names,
    ),
]


@with_knobs(EvalConfig, ranks=True)
def evaluate(call: Call[EvalConfig], subjects: SubjectArgument = None) -> None:
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
    config, samples, checkpoint = call.ranks.from_first(lambda: settled(call, subjects or []))
    if not samples:
        evaluate_checkpoint(call, config, checkpoint)
    else:
        evaluate_samples(call, config, samples)


def settled(call: Call[EvalConfig], subjects: list[str]) -> tuple[EvalConfig, list[str], Path | None]:
    """(config, places of samples, checkpoint), one of which is there, or with --model neither. Raises ConfigError or
    AbsentError."""
    config = call.settle()
    if config.model is not None:
        call.refuse(SampleScoreOptions, config.model)
        return config, [], call.find_network(config, subjects[0] if subjects else None)
    if not subjects:
        raise ConfigError("nothing to score; give samples, a checkpoint or a run (see --help)")
    found = {subject: paths.find_subject(subject) for subject in subjects}
    checkpoint = found[subjects[0]]
    if len(found) < len(subjects):
        raise ConfigError(f"{max(subjects, key=subjects.count)} is given twice; give each part once")
    if len(found) > 1 and (other := next((name for name, path in found.items() if path), None)):
        raise ConfigError(f"{other} is a checkpoint; several places are parts of one set of samples (see rjem compare)")
    call.refuse(SampleScoreOptions if checkpoint else CheckpointScoreOptions, subjects[0])
    if STREAM in subjects and call.ranks.world > 1:
        raise ConfigError("- is read by one process; give a folder or a file to several")
    return config, [] if checkpoint else subjects, checkpoint


def evaluate_samples(call: Call[EvalConfig], config: EvalConfig, locations: list[str]) -> None:
    from rjem_cli.engine.quality.forecast import forecast
    from rjem_cli.engine.quality.job import EvalJob, evaluate, prepare, read_inputs
    from rjem_cli.engine.report.evaluation import opened_results
    from rjem_cli.engine.report.quality import describe_sample_scores, pictures_of
    from rjem_cli.engine.timing import foreseen_bytes

    console, ranks = call.console, call.ranks
    inputs = ranks.in_turn(lambda: read_inputs(config, locations, console.binary_input, ranks))
    inputs.runtime.check_ranks()
    announce_inputs(inputs, console)
    if call.dry_run:
        start_up, seconds = call.seconds_so_far(), ranks.from_first(lambda: forecast(inputs))
        announce_forecast(seconds, start_up, foreseen_bytes(inputs.runtime.device), console)
        return
    with ranks.opened_by_first(lambda: opened_results(config)) as results:
        with stop_on_signals(console.say) as stop, console.bar() as bar:
            watch = stoppable(bar, stop, FEATURES_KEPT)

            def prepared() -> EvalJob:
                job = prepare(inputs, console.warn, watch, bar.update, stop)
                if job is None:
                    raise interrupted(stop, FEATURES_KEPT)
                return job

            job = ranks.in_turn(prepared)
            inputs.runtime.check_work(job.work)
            ranks.jointly(lambda: announce_features(job, watch, console))
            found = evaluate(job, watch)
        if results is None:
            return
        document = describe_sample_scores(job, found, call.seconds_so_far())
        with results.write(document, pictures_of(job, found)):
            show_sample_scores(document, found.scores, console)
    inputs.gates.check(found.scores)


def evaluate_checkpoint(call: Call[EvalConfig], config: EvalConfig, path: Path | None) -> None:
    from rjem_cli.engine.evaluation.checkpoint import evaluate, forecast, prepare
    from rjem_cli.engine.report.checkpoint import describe_checkpoint_scores, pictures_of
    from rjem_cli.engine.report.evaluation import opened_results
    from rjem_cli.engine.timing import foreseen_bytes

    console, ranks = call.console, call.ranks
    job = ranks.in_turn(lambda: prepare(config, path, ranks, console.warn))
    console.say(describe_checkpoint(job.checkpoint))
    job.runtime.check_ranks()
    job.runtime.check_work(job.work)
    announce_tests(job, console)
    if call.dry_run:
        seconds = call.seconds_so_far() + forecast(job)
        console.forecast(seconds, foreseen_bytes(job.runtime.device), at_most=True)
        return
    with ranks.opened_by_first(lambda: opened_results(config)) as results:
        with stop_on_signals(console.say) as stop, console.bar() as bar:
            found = evaluate(job, stoppable(bar, stop, "stopped; nothing is kept of a checkpoint's scores"))
        if results is None:
            return
        document = describe_checkpoint_scores(job, found, call.seconds_so_far())
        with results.write(document, pictures_of(job, found)):
            show_checkpoint_scores(document, found.scores, console)
    job.gates.check(found.scores)
