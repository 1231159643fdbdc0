"""Watched chains of a checkpoint, for a page. What was drawn is kept."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from rjem_cli.config import CompareConfig, LangevinConfig, RuntimeOptions
from rjem_cli.engine.comparison.work import Work, kept, kept_path
from rjem_cli.engine.model.checkpoint import load_checkpoint
from rjem_cli.engine.report.chains import ChainPictures, chain_pictures
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.request import describe_request, settle_request
from rjem_cli.engine.sampling.starts import settle_start
from rjem_cli.engine.sampling.trajectories import run_chains

CHAINS, MOMENTS = 8, 11


def chains_of(config: CompareConfig, name: str, path: Path, work: Work) -> ChainPictures:
    """A few chains as `rjem langevin` runs them. Raises as it does."""
    runtime = start_runtime(RuntimeOptions(device=config.device), reproducible=True)
    options = LangevinConfig(count=CHAINS, seed=config.sample_seed, data=config.data)
    checkpoint = load_checkpoint(path, runtime.device)
    info = checkpoint.info
    request = settle_request(
        options, info.config, info.class_names, runtime.device.type, count=options.count, seed=options.seed
    )
    logits_of = runtime.frozen(checkpoint.model)
    request, start = settle_start(options, checkpoint, logits_of, request, runtime)
    meta = describe_request(request, checkpoint, options.init, start.sha256, runtime)

    def measure() -> dict[str, str]:
        found = run_chains(
            request,
            start.sampler,
            logits_of,
            record=max(1, request.plan.sgld_steps // MOMENTS),
            clamp=options.clamp,
            device=runtime.device,
            report=lambda done, total: work.watch(f"{name}: chains", done, total),
        )
        pictures = chain_pictures(found, request, options.init)
        return {kind: base64.b64encode(picture).decode() for kind, picture in pictures._asdict().items()}

    def read(document: dict[str, Any]) -> ChainPictures:
        return ChainPictures(
            **{kind: base64.b64decode(document[kind], validate=True) for kind in ChainPictures._fields}
        )

    return kept(kept_path("chains", [meta["request"], CHAINS, MOMENTS]), read, measure)
