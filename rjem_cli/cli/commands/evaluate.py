"""`rjem eval`: scores of samples and of checkpoints."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.eval_output import log_job, log_plan, show_checkpoint_scores, show_estimate, show_sample_scores
from rjem_cli.cli.eval_subjects import resolve_subjects
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.stopping import stop_on_signals, stoppable
from rjem_cli.config.scoring import EvalConfig

SAMPLES_STOPPED = "stopped; features and the judge are cached; run the same command again to resume"
CHECKPOINT_STOPPED = "stopped; run the same command again to start over"
SubjectArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SAMPLES...|CHECKPOINT",
        help="Samples: a folder (flat, or one folder per class), .npz (arr_0), .tar, .zip, or - for a tar on stdin; "
        "several are parts of one set. Or a checkpoint: a .safetensors file, a run (name or folder), or a pretrained "
        "model such as cifar10-16.",
        autocompletion=paths.model_names,
    ),
]


@with_options(EvalConfig)
def evaluate(call: CommandCall[EvalConfig], subjects: SubjectArgument = None) -> None:
    """Score samples (IS, FID, KID, precision, recall, density, coverage, diversity) or a checkpoint (accuracy,
    calibration, robust accuracy, out-of-distribution AUROC, energies).

    Features of images are cached: they are computed once, and a Ctrl-C loses little.

    Examples:

      rjem eval samples/

      rjem eval part0.npz part1.npz part2.npz part3.npz

      rjem eval other.npz --reference cifar10:train --require 'fid<=45'

      rjem generate my-run -n 10000 -o - | rjem eval - --reference cifar10:test

      rjem eval photos/ --image-size 32 --save-stats photos.npz

      rjem eval my-run --eps 2/255,8/255 --ood noise,svhn --save scores/
    """
    config, samples, checkpoint = resolve_subjects(call, subjects or [])
    if config.save_stats:
        save_image_statistics(call, config, samples)
    elif samples:
        evaluate_samples(call, config, samples)
    else:
        evaluate_checkpoint(call, config, checkpoint)


def evaluate_samples(call: CommandCall[EvalConfig], config: EvalConfig, locations: list[str]) -> None:
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.metrics import results, samples

    console = call.console
    samples.check_options(config)
    plan = samples.plan_evaluation(config, samples.read_samples(locations, console.binary_input, config.image_size))
    log_plan(plan, samples.describe_judge_training(plan.inputs), console)
    if call.dry_run:
        start_up, seconds = call.elapsed(), samples.estimate_seconds(plan)
        show_estimate(start_up, seconds, estimated_bytes(plan.inputs.runtime.device), console)
        return
    with results.open_results(config) as writer:
        with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
            on_progress = stoppable(bar, stop, SAMPLES_STOPPED)
            job = samples.prepare_evaluation(plan, console.warn, on_progress)
            cached = ", others are cached" if job.missing < plan.inputs.image_count else ""
            console.log(f"features of {job.missing} of {plan.inputs.image_count} images to compute{cached}")
            result = samples.evaluate_samples(job, on_progress)
        document = samples.describe_sample_scores(job, result, call.elapsed())
        show = partial(show_sample_scores, document, result.scores, console)
        writer.write(document, samples.draw_figures(job, result), show)
    results.check_requirements(plan.requirements, result.scores)


def save_image_statistics(call: CommandCall[EvalConfig], config: EvalConfig, locations: list[str]) -> None:
    from rjem_cli.engine.metrics.saved_statistics import plan_statistics, read_subject, save_statistics

    console, path = call.console, paths.expand(str(config.save_stats))
    plan = plan_statistics(config, read_subject(config, locations, console.binary_input))
    console.log(plan.images.read_summary)
    console.log(f"features of {len(plan.images)} images by {plan.choice.kind} ({plan.choice.reason}); writes {path}")
    if call.dry_run:
        return
    with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
        protocol = save_statistics(plan, path, console.warn, stoppable(bar, stop, SAMPLES_STOPPED))
    if call.as_json:
        console.document({"statistics": str(path.absolute()), "protocol": protocol})
    else:
        console.result(str(path.absolute()))


def evaluate_checkpoint(call: CommandCall[EvalConfig], config: EvalConfig, path: Path | None) -> None:
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.metrics import classifier, results

    console = call.console
    job = classifier.prepare_classifier(config, classifier.load_classifier(config, path), console.warn)
    log_job(job, console)
    if call.dry_run:
        seconds = call.elapsed() + job.estimate_seconds()
        console.estimate(seconds, estimated_bytes(job.model.device), at_most=True)
        return
    with results.open_results(config) as writer:
        with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
            result = classifier.evaluate_classifier(job, stoppable(bar, stop, CHECKPOINT_STOPPED))
        document = classifier.describe_classifier_scores(job, result, call.elapsed())
        show = partial(show_checkpoint_scores, document, result.scores, console)
        writer.write(document, classifier.draw_figures(job, result), show)
    results.check_requirements(job.requirements, result.scores)
