"""The generation half from models to the report: latents of different sizes, interrupted, continued, shown."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_autoencoders import frame_select

from diffusers_vidvae.cli.app import run
from diffusers_vidvae.evaluation import (
    EvaluationSettings,
    GenerationSettings,
    evaluate_generation,
    evaluate_models,
    summarize_generation,
    write_report,
)
from diffusers_vidvae.evaluation.generation import run as running
from diffusers_vidvae.media import VideoWriter


SETTINGS = GenerationSettings(
    num_frames=4, side=16, train_windows=16, held_out_windows=8, steps=4, batch_size=8, seeds=(0, 1), sampling_steps=2
)
READING = EvaluationSettings(rates=(1.0,), modes=("systematic",), quantizations=("bf16",), top_k=(), codecs=("x264",))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(2):
        frames = np.random.default_rng(seed).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
        with VideoWriter(folder / f"{seed}.mkv", 12, lossless=True) as writer:
            writer.write(frames.repeat(8, axis=1).repeat(8, axis=2))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def results(models, clips, tmp_path_factory):
    named = [(path.name, path) for path in clips]
    return evaluate_generation(models, named, tmp_path_factory.mktemp("generation"), SETTINGS, READING)


def test_models_with_other_latents_are_measured_alike(results):
    summary = summarize_generation(results.load(), results.header)
    selecting, tiny = summary.models.values()
    assert selecting.latents["latent_shape"] == [6, 4, 2, 2] and tiny.latents["latent_shape"] == [4, 4, 2, 2]
    assert selecting.probe["tokens"] == tiny.probe["tokens"] == 4 and selecting.probe["patch"] == [4, 1, 1]
    for model in (selecting, tiny):
        assert 0.5 < model.error.mean < 1.5 and model.error.low < model.error.mean < model.error.high
        assert len(model.error_by_seed) == 2 and model.frechet.mean > model.latents["frechet_real"]
        assert {"psnr", "gap_scale", "gap_shift", "gap_turn", "noise_0.1"} <= model.figures.keys()
        assert set(model.latents["clips"]) == {"0.mkv", "1.mkv"}
    assert [difference[:2] for difference in summary.differences] == [("<tiny>", "error"), ("<tiny>", "frechet")]
    difference = selecting.error.mean - tiny.error.mean
    assert summary.differences[0][2].mean == pytest.approx(difference)
    assert json.loads(json.dumps(summary.to_json()))["models"]["selecting"]["probe"]["tokens"] == 4


def test_what_was_measured_is_not_measured_again(results, models, clips, monkeypatch):
    named = [(path.name, path) for path in clips]
    before = results.path.read_bytes()
    monkeypatch.setattr(running, "GenerationMeasurement", None)
    evaluate_generation(models, named, results.folder, SETTINGS, READING)
    assert results.path.read_bytes() == before
    with pytest.raises(ValueError, match=r"generation.jsonl: holds results of another evaluation, .* in settings;"):
        evaluate_generation(models, named, results.folder, replace(SETTINGS, steps=5), READING)


def test_interrupted_runs_go_on_with_the_same_results(results, models, clips, tmp_path, monkeypatch):
    named = [(path.name, path) for path in clips]
    train_probe, trained = running.train_probe, []

    def interrupted(*args):
        trained.append(args)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_probe(*args)

    monkeypatch.setattr(running, "train_probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_generation(models, named, tmp_path, SETTINGS, READING)
    found = evaluate_generation(models, named, tmp_path, SETTINGS, READING).load()
    assert len(trained) == 5
    for key, record in results.load().items():
        assert found[key] | {"seconds": 0} == record | {"seconds": 0}


def test_models_of_one_size_make_windows_of_it():
    fixed = frame_select(hidden_size=24).eval()
    measurement = running.GenerationMeasurement(
        {"fixed": fixed}, [], replace(SETTINGS, side=16), READING, running.RandomFeatures()
    )
    assert fixed.config.sample_size == measurement.side == 16
    facts = measurement.measure("fixed", "latents")
    assert [note.split(":")[0] for note in facts["notes"]] == ["Equivariance to a scale", "Equivariance to a shift"]


def test_the_report_shows_figures_and_says_what_they_mean(results, models, clips, tmp_path):
    measured = evaluate_models(models, clips, tmp_path, READING)
    assert "Not measured; <code>--generation</code> does." in write_report(measured).read_text()
    summary = summarize_generation(results.load(), results.header)
    page = write_report(measured, "vidvae evaluate", summary).read_text()
    assert "It can tell" in page and "It cannot tell" in page and "<tiny>" not in page
    for table in ("probe", "probe-differences", "latents"):
        assert f'<table id="{table}">' in page
    for name in ("spectrum.png", "latent_noise.png", "probe_error.png"):
        assert (tmp_path / name).stat().st_size > 5000
    lines = list(csv.DictReader((tmp_path / "generation.csv").open()))
    errors = {line["model"]: float(line["mean"]) for line in lines if line["figure"] == "probe_error"}
    assert errors == {name: model.error.mean for name, model in summary.models.items()}


def test_command_measures_and_prints_it(capsys, models, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_vidvae.evaluation.GenerationSettings", lambda **given: replace(SETTINGS, **given))
    models["<tiny>"].save_pretrained(tmp_path / "model")
    arguments = ["evaluate", *map(str, clips), "-m", str(tmp_path / "model"), "--report", str(tmp_path / "report")]
    arguments += ["--codec", "x264", "--generation", "--probe-steps", "2", "--probe-seeds", "2", "--probe-side", "16"]
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    generation = json.loads(capsys.readouterr().out)["generation"]
    assert generation["settings"]["steps"] == 2 and len(generation["models"]["model"]["error_by_seed"]) == 2
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "probe's error" in printed and f"{generation['models']['model']['error'][0]:.4f}" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generation"], "--generation: needs --report."),
        (["--report", "out", "--probe-steps", "4"], "--probe-steps: needs --generation."),
        (["--report", "out", "--features", "net.pt"], "--features: needs --generation."),
    ],
)
def test_options_of_the_probe_need_it(capsys, clips, options, message):
    assert run(["evaluate", str(clips[0]), *options]) == 1
    assert message in capsys.readouterr().err
