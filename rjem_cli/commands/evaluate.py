"""`rjem eval`: scores of samples, whoever made them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from rjem_cli.config import EvalConfig
from rjem_cli.errors import GateError, InterruptedRunError
from rjem_cli.interface.eval_view import announce_cost, announce_inputs, show_evaluation
from rjem_cli.interface.options import Call, with_knobs
from rjem_cli.interface.signals import StopRequest, stop_on_signals

SamplesArgument = Annotated[
    str,
    typer.Argument(
        metavar="SAMPLES",
        help="A folder (flat, or a folder a class), .npz (arr_0), .tar, .zip, or - for a tar on stdin.",
    ),
]


@with_knobs(EvalConfig)
def evaluate(call: Call[EvalConfig], samples: SamplesArgument) -> None:
    """Score samples against real images: IS, FID, KID, precision, recall, density, coverage, diversity.

    Features are kept, so what was computed once, or before a Ctrl-C, is not computed again.

    Examples:

      rjem eval samples/

      rjem eval other-model.npz --reference cifar10:train --metrics fid,kid --require 'fid<=45' --json

      rjem generate my-run -n 10000 -o - | rjem eval - --reference cifar10:test
    """
    console, config = call.console, call.settle()

    from rjem_cli.engine.quality.job import evaluate as evaluate_samples
    from rjem_cli.engine.quality.job import plan_scores, prepare, read_inputs
    from rjem_cli.engine.report.quality import check_save, describe_evaluation, write_results

    started = time.perf_counter()
    check_save(config.save, config.overwrite)
    inputs = read_inputs(config, samples, console.binary_input)
    announce_inputs(inputs, console)
    choice, plan = plan_scores(inputs)
    console.say(f"features by {choice.kind} ({choice.reason}): {', '.join(plan.metrics)}")
    if call.dry_run:
        return
    with stop_on_signals(console.say) as stop, console.bar() as bar:

        def watch(phase: str, done: int, total: int) -> None:
            if stop():
                raise interrupted(stop)
            bar.update(phase, done, total)

        job = prepare(inputs, choice, plan, bar.update, stop)
        if job is None:
            raise interrupted(stop)
        announce_cost(job, console)
        subject, scores, per_class = evaluate_samples(job, watch)
    document = describe_evaluation(job, subject, scores, per_class, time.perf_counter() - started)
    write_results(job, subject, document)
    if call.as_json:
        console.document(document)
    else:
        show_evaluation(document, scores, console)
    failed = [gate for gate in inputs.gates if not gate.holds(scores)]
    if failed:
        raise GateError("; ".join(gate.describe(scores) for gate in failed))


def interrupted(stop: StopRequest) -> InterruptedRunError:
    assert stop.signal_number is not None
    return InterruptedRunError("stopped; what was computed is kept, and the same command goes on", stop.signal_number)
