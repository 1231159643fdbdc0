"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from rjem_cli import paths
from rjem_cli.config import STREAM, GenerateConfig
from rjem_cli.errors import InterruptedRunError
from rjem_cli.interface.chains_view import describe_checkpoint, describe_classes, describe_plan, told_noise
from rjem_cli.interface.console import counted
from rjem_cli.interface.options import Call, CheckpointArgument, with_knobs
from rjem_cli.interface.signals import stop_on_signals


@with_knobs(GenerateConfig, ranks=True)
def generate(call: Call[GenerateConfig], checkpoint: CheckpointArgument = None) -> None:
    """Generate images of chosen classes. What is not given is as the checkpoint was trained to sample.

    The same call goes on where it was interrupted. Sample i depends on seed + i only.

    Examples:

      rjem generate --class 3 -n 100

      rjem generate my-run --class cat,dog --mode combined -n 10000 -o samples/

      rjem generate my-run -n 50000 --shard 0/4 -o part0.npz

      rjem generate my-run -n 1000 -o - | tar t
    """
    console, ranks = call.console, call.ranks
    config, path = ranks.from_first(lambda: settled(call, checkpoint))

    from rjem_cli.engine.sampling.job import fit_blocks, forecast, prepare, settle, write_samples
    from rjem_cli.engine.timing import foreseen_bytes

    loaded, logits_of, request, runtime = ranks.jointly(lambda: settle(config, path, ranks))
    runtime.check_ranks()
    runtime.check_work(f"the network {loaded.sha256()}")
    shape = loaded.info.image_shape
    request = fit_blocks(logits_of, shape, request, config.block_size, runtime, console.warn)
    total, steps = request.last - request.first, request.plan.gradient_steps * request.computed
    console.say(describe_checkpoint(loaded))
    console.say(f"device: {runtime.describe()}")
    console.say(f"{counted(total, 'sample')} of {describe_classes(request)} to {config.output}, seed {config.seed}")
    console.say(f"mode {config.mode}: {describe_plan(request.plan, config.init)}")
    console.say(f"{steps} gradient steps in all, in whole blocks of {request.block_size}")
    if warning := told_noise(request.plan):
        console.warn(warning)
    if call.dry_run:
        seconds = call.seconds_so_far() + forecast(logits_of, shape, request, runtime)
        console.forecast(seconds, foreseen_bytes(runtime.device), ", for all of them")
        return
    job, started = ranks.jointly(lambda: prepare(config, loaded, logits_of, request, runtime)), time.perf_counter()
    with stop_on_signals(console.say) as stop, console.bar() as bar:

        def watch(done: int) -> None:
            bar.update("generating", done, total)

        found = write_samples(job, console.binary, watch, stop)
    if found.done < total:
        number = max(ranks.each(stop.signal_number or 0))
        where = "the stream breaks off here" if config.output == STREAM else "the same command goes on"
        raise InterruptedRunError(f"stopped at {found.done} of {total} samples; {where}", number)
    behind = f", behind {found.skipped} that were there" if found.skipped else ""
    console.say(f"{counted(total - found.skipped, 'sample')} in {time.perf_counter() - started:.1f} s{behind}")
    if config.output != STREAM:
        place = config.output if paths.expand(config.output).is_file() else f"{config.output.rstrip('/')}/"  # no run
        console.say(f"next: rjem eval {shlex.quote(place)}")
    if call.as_json:
        console.document({"output": config.output, **job.meta})
    elif config.output != STREAM:
        console.result(str(paths.expand(config.output).absolute()))


def settled(call: Call[GenerateConfig], checkpoint: str | None) -> tuple[GenerateConfig, Path | None]:
    """Raises ConfigError or AbsentError."""
    config = call.settle()
    if config.output == STREAM:
        call.console.check_stream(call.as_json)
    return config, call.find_network(config, checkpoint)
