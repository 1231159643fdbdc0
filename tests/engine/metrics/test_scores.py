"""Samples and classifiers are scored from Python as `rjem eval` scores them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rjem_cli.config.scoring import EvalConfig
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.images import spread_indices
from rjem_cli.engine.data.load import load_digits
from rjem_cli.engine.metrics.classifier import load_classifier, score_classifier
from rjem_cli.engine.metrics.samples import score_samples
from rjem_cli.errors import ConfigError


def without_times(document):
    return {**document, "seconds": 0, "time": 0}


def test_samples_get_the_scores_of_rjem_eval(rjem, digits_judge):
    phases = []
    samples = ImageCollection.from_images(load_digits().subset(spread_indices(1797, 300)), "digits")
    config = EvalConfig(reference="digits", metrics="fid,diversity", require="fd_judge<1000")
    _, document = score_samples(config, samples, on_progress=lambda phase, done, total: phases.append(phase))
    assert document["fd_judge"] > 0 and document["class_agreement_judge"] > 0.5
    assert document["require"] == {"fd_judge<1000": True} and document["notes"]
    assert list(dict.fromkeys(phases)) == ["features of the reference", "features of the samples", "scoring"]
    with pytest.raises(ConfigError, match="did you mean fid"):
        score_samples(EvalConfig(metrics="fidd"), samples)


def test_a_classifier_gets_the_scores_of_rjem_eval(rjem, trained):
    config = EvalConfig(limit=40, samples=5, steps=2, ood="noise")
    _, document = score_classifier(config, load_classifier(config, Path(trained["checkpoint"])))
    flags = ("--limit", 40, "--samples", 5, "--steps", 2, "--ood", "noise", "--json")
    assert without_times(document) == without_times(json.loads(rjem("eval", trained["checkpoint"], *flags).out))


def test_an_error_of_on_progress_ends_the_training_of_a_judge_after_saving_it(quick_judge, own_home):
    config = EvalConfig(reference="digits", features="judge", metrics="fid")
    samples = ImageCollection.from_images(load_digits().subset(spread_indices(1797, 300)), "digits")

    class Stop(Exception):
        pass

    def stop_at_step_7(phase, done, total):
        if phase == "training the judge" and done == 7:
            raise Stop

    with pytest.raises(Stop):
        score_samples(config, samples, on_progress=stop_at_step_7)
    checkpoints = {path.name for path in (own_home / "cache" / "judges").rglob("step-*.safetensors")}
    assert "step-00000007.safetensors" in checkpoints
    steps = []
    score_samples(config, samples, on_progress=lambda phase, done, total: steps.append(done))
    assert steps[0] == 7
