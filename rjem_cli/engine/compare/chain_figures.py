"""Recorded chains of a checkpoint as figures for the HTML page, cached."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from rjem_cli.config import CompareConfig, LangevinConfig, RuntimeOptions
from rjem_cli.engine.compare.cached import Work, cache_path, cached
from rjem_cli.engine.models.checkpoint import load_checkpoint
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.chains import ChainPictures, render_chains, run_chains
from rjem_cli.engine.sampling.generate import SampleSetup

CHAINS, FRAMES = 8, 11


def draw_chains(config: CompareConfig, name: str, path: Path, work: Work) -> ChainPictures:
    """A few chains as `rjem langevin` runs them. Raises as it does."""
    runtime = start_runtime(RuntimeOptions(device=config.device), reproducible=True)
    options = LangevinConfig(count=CHAINS, seed=config.sample_seed, data=config.data)
    checkpoint = load_checkpoint(path, runtime.device)
    job = SampleSetup.build(options, checkpoint, runtime.frozen(checkpoint.model), runtime).load_start()

    def measure() -> dict[str, str]:
        record = max(1, job.request.plan.sgld_steps // FRAMES)
        chains = run_chains(
            job,
            record=record,
            clamp=options.clamp,
            on_progress=lambda done, total: work.watch(f"{name}: chains", done, total),
        )
        pictures = render_chains(chains, options.init)
        return {kind: base64.b64encode(picture).decode() for kind, picture in pictures._asdict().items()}

    def read(document: dict[str, Any]) -> ChainPictures:
        return ChainPictures(
            **{kind: base64.b64decode(document[kind], validate=True) for kind in ChainPictures._fields}
        )

    return cached(cache_path("chains", [job.meta["request"], CHAINS, FRAMES]), read, measure)
