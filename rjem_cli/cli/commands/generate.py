"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from rjem_cli import paths
from rjem_cli.cli.formatting import pluralize
from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.cli.sampling_output import describe_checkpoint, describe_classes, describe_plan, warn_about_noise
from rjem_cli.cli.signals import interrupted, stop_on_signals
from rjem_cli.config import STREAM, GenerateConfig
from rjem_cli.engine.distributed import is_distributed, rank_from_environment, world_size_from_environment
from rjem_cli.errors import ConfigError


@with_options(GenerateConfig, several_processes=True)
def generate(call: CommandCall[GenerateConfig], checkpoint: CheckpointArgument = None) -> None:
    """Generate images of chosen classes. Unset options default to the checkpoint's own.

    Sample i depends on seed + i only. Run the same command again to resume; a .npz or .tar starts again. With torchrun,
    each process writes one shard.

    Examples:

      rjem generate --class 3 -n 100

      rjem generate my-run --class cat,dog --mode combined -n 10000 -o samples/

      rjem generate my-run -n 50000 --shard 0/4 -o part0.npz

      rjem generate my-run -n 1000 -o - | tar t
    """
    console, config = call.console, shard_for_process(call.resolve())
    if config.output == STREAM:
        console.check_stream(call.as_json)
    path = call.find_network(config, checkpoint)

    from rjem_cli.engine.distributed import select_gpu
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.sampling.generate import SampleSetup
    from rjem_cli.engine.sampling.writers.writer import check_output, write_samples

    check_output(config.output)
    if is_distributed():
        select_gpu()
    setup = SampleSetup.load(config, path, console.warn)
    request, runtime = setup.request, setup.runtime
    total = request.last - request.first
    console.log(describe_checkpoint(setup.checkpoint))
    console.log(f"device: {runtime.describe()}")
    console.log(f"{pluralize(total, 'sample')} of {describe_classes(request)} to {config.output}, seed {config.seed}")
    console.log(f"mode {config.mode}: {describe_plan(request.plan, config.init)}")
    steps = request.plan.gradient_steps * request.computed
    console.log(f"{steps} gradient steps in blocks of {request.block_size}")
    if warning := warn_about_noise(request.plan):
        console.warn(warning)
    if call.dry_run:
        console.estimate(call.elapsed() + setup.estimate_seconds(), estimated_bytes(runtime.device))
        return
    job, start = setup.load_start(), time.perf_counter()
    with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
        written = write_samples(job, config, console.binary, lambda done: bar.update("generating", done, total), stop)
    if written.done < total:
        raise interrupted(stop, f"stopped at {written.done} of {total} samples; {after_stop(config.output)}")
    resumed = f", after {written.skipped} that were already there" if written.skipped else ""
    seconds = time.perf_counter() - start
    console.log(f"{pluralize(total - written.skipped, 'sample')} in {seconds:.1f} s{resumed}")
    if config.output != STREAM:
        output = config.output if paths.expand(config.output).is_file() else f"{config.output.rstrip('/')}/"
        console.log(f"next: rjem eval {shlex.quote(output)}")
    if call.as_json:
        console.document({"output": config.output, **job.meta})
    elif config.output != STREAM:
        console.result(str(paths.expand(config.output).absolute()))


def shard_for_process(config: GenerateConfig) -> GenerateConfig:
    """With torchrun, this process's shard, in an output of its own: samples-0of4, x-0of4.npz. Raises ConfigError."""
    if not is_distributed():
        return config
    if config.shard is not None or config.output == STREAM:
        given = "-o -" if config.output == STREAM else "--shard"
        raise ConfigError(f"{given} cannot be used with torchrun, where each process writes one shard to a file")
    rank, world_size, output = rank_from_environment(), world_size_from_environment(), Path(config.output)
    name = f"{output.stem}-{rank}of{world_size}{output.suffix}"
    return replace(config, shard=f"{rank}/{world_size}", output=str(output.with_name(name)))


def after_stop(output: str) -> str:
    if output == STREAM:
        return "the stream is incomplete"
    if Path(output).suffix.lower() in (".npz", ".tar"):
        return f"{output} was not written (a folder can be resumed)"
    return "run the same command again to resume"
