"""Models on clips, interrupted and continued, and the report that comes of it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_vidvae import VideoCompressionPipeline
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.evaluation import EvaluationSettings, evaluate_models, summarize, write_report
from diffusers_vidvae.evaluation import run as running
from diffusers_vidvae.media import VideoReader, VideoWriter
from diffusers_vidvae.media.clips import to_pixels
from diffusers_vidvae.metrics import clip_psnr


ROOT = Path(__file__).resolve().parents[2]

SETTINGS = EvaluationSettings(
    rates=(0.25, 1.0),
    modes=("systematic", "random"),
    quantizations=("bf16",),
    qualities=(20.0, 60.0),
    top_k=(2,),
    codecs=("x264",),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a.mkv", "b.mkv")):
        frames = np.random.default_rng(seed).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
        with VideoWriter(folder / name, 12, lossless=True) as writer:
            writer.write(frames.repeat(8, axis=1).repeat(8, axis=2))
    (folder / "c.mp4").write_text("no video")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def results(models, clips, tmp_path_factory):
    return evaluate_models(models, clips, tmp_path_factory.mktemp("results"), SETTINGS)


@pytest.fixture(scope="module")
def page(results):
    return write_report(results, "vidvae evaluate").read_text()


def rows_of(results, clip: str, part: str) -> list[dict]:
    return results.load()[clip, part]["rows"]


def test_every_method_is_measured_on_every_clip(results):
    selecting = rows_of(results, "a.mkv", "selecting")
    found = {(row["method"], row["mode"], row["rate"], row.get("top_k")) for row in selecting}
    assert found == {
        ("model", "systematic", 0.25, None),
        ("repeat", "systematic", 0.25, None),
        ("blend", "systematic", 0.25, None),
        ("model", "systematic", 1.0, None),
        ("model", "random", 0.25, None),
        ("model", "bernoulli", None, None),
        ("model", "top_k", None, 2),
        ("model", None, 1.0, None),
    }
    tiny = rows_of(results, "a.mkv", "<tiny>")[0]
    assert tiny["bits_per_pixel"] == pytest.approx(16 * 4 / 64) and tiny["values_per_pixel"] == pytest.approx(4 / 64)
    sizes = sorted({row["num_bytes"] for row in selecting if row["mode"] in ("systematic", None)})
    coded = rows_of(results, "a.mkv", "codecs")
    assert [row["target_bytes"] for row in coded] == sizes


def test_coded_files_count_their_real_bytes(results, models, clips, tmp_path):
    for name, model in models.items():
        rows = [row for row in rows_of(results, "a.mkv", name) if row["quantize"] == "coded"]
        assert [row["quality"] for row in rows] == [20.0, 60.0] and rows[0]["num_bytes"] < rows[1]["num_bytes"]
        compressed = VideoCompressionPipeline(model).compress(
            clips[0], quality=20.0, output=tmp_path / f"{len(name)}.fsv"
        )
        assert rows[0]["num_bytes"] == compressed.path.stat().st_size
    summary = summarize(results.load(), results.header)
    curves = {point.method.label: point.budget for point in summary.points if point.method.quantize == "coded"}
    assert curves == {"selecting: .fsv file": 60.0, "<tiny>: .fsv file": 60.0}


def test_kept_frames_fill_the_others(results, clips):
    rows = [row for row in rows_of(results, "a.mkv", "selecting") if row["mode"] == "systematic"]
    by_method = {row["method"]: row for row in rows if row["rate"] == 0.25}
    assert by_method["repeat"]["num_bytes"] == by_method["model"]["num_bytes"]
    assert by_method["repeat"]["psnr_kept"] == pytest.approx(by_method["model"]["psnr_kept"])
    assert by_method["repeat"]["kept"] == by_method["blend"]["kept"] and by_method["model"]["num_kept"] == 3


def test_figures_are_those_of_the_frames(results, models, clips):
    pixels = to_pixels(VideoReader(clips[0]).read().data)
    with torch.no_grad():
        frames = models["<tiny>"](pixels[0].transpose(0, 1)).sample.transpose(0, 1)[None]
    row = rows_of(results, "a.mkv", "<tiny>")[0]
    assert row["psnr"] == pytest.approx(clip_psnr(pixels, frames), abs=0.05)
    assert row["mse"] == pytest.approx(10 ** (-row["psnr"] / 10))


def test_interrupted_runs_go_on_with_the_same_results(results, models, clips, tmp_path, monkeypatch):
    seen = []

    def interrupted(clip, *args):
        seen.append(clip.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run_codecs(clip, *args)

    run_codecs = running.run_codecs
    monkeypatch.setattr(running, "run_codecs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_models(models, clips, tmp_path, SETTINGS)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"key": ["b.mkv", "cod')
    before = (tmp_path / "results.jsonl").read_bytes().rsplit(b"\n", 1)[0] + b"\n"
    again = evaluate_models(models, clips, tmp_path, SETTINGS)
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)
    assert seen == ["a.mkv", "b.mkv", "b.mkv"]
    expected, found = results.load(), again.load()
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].get("rows") == expected[key].get("rows")


def test_results_of_something_else_are_not_mixed_in(results, models, clips):
    with pytest.raises(ValueError, match=r"results.jsonl: holds results of another evaluation, .* in settings;"):
        evaluate_models(models, clips, results.folder, EvaluationSettings(seed=1))
    other = {name: model for name, model in models.items() if name == "selecting"}
    with pytest.raises(ValueError, match="differs in classes, models"):
        evaluate_models(other, clips, results.folder, SETTINGS)


def test_summary_has_means_over_clips_and_names_what_is_missing(results):
    summary = summarize(results.load(), results.header)
    assert sorted(summary.clips) == ["a.mkv", "b.mkv"]
    psnrs = [rows_of(results, clip, "<tiny>")[0]["psnr"] for clip in summary.clips]
    point = next(point for point in summary.points if point.method.part == "<tiny>")
    assert point.figures["psnr"].mean == pytest.approx(np.mean(psnrs)) and point.figures["psnr"].num_clips == 2
    notes = " ".join(summary.notes)
    assert "c.mp4: not a readable video" in notes and "MS-SSIM needs 176 pixels a side, which 2 clips do not" in notes
    assert "LPIPS was not measured" in notes


def test_clips_shorter_than_a_window_are_measured_and_named(models, clips, tmp_path):
    settings = replace(SETTINGS, max_frames=3, qualities=(), codecs=())
    short = evaluate_models({"selecting": models["selecting"]}, clips[:1], tmp_path, settings)
    summary = summarize(short.load(), short.header)
    assert summary.clips == ["a.mkv"]
    assert "a.mkv: shorter than the 4 frames of a window of selecting." in summary.notes


def test_a_folder_without_media_says_what_it_looked_for(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    assert run(["evaluate", str(tmp_path), "--report", str(tmp_path / "report")]) == 1
    assert re.search(r"holds no file that ends in .*\.mp4.*\.$", capsys.readouterr().err.strip())


def test_report_is_one_file_that_needs_nothing_else(results, page):
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "http" not in page.split("<script>")[0]
    assert "&lt;tiny&gt;" in page and "<tiny>" not in page
    for needed in ("Quality over bits", "worst first", "probability to keep each frame", "How it was run", "2 clips"):
        assert needed in page
    assert page.index("<h3>" + summarize(results.load(), results.header).clips[0]) < page.index("All figures")
    for name in ("psnr.png", "ssim.png", "points.csv", "clips.csv"):
        assert (results.folder / name).stat().st_size > 500
    lines = list(csv.DictReader((results.folder / "clips.csv").open()))
    assert len(lines) == 2 * (7 + 2 + 1 + 2 + 4)


def test_all_that_the_original_reports_of_masks_is_there(results, page):
    """What `evaluate.py`, `bernoulli_compression_demos.py` and `mask_identity_prob.py` print, on any folder."""
    lines = list(csv.DictReader((results.folder / "selection.csv").open()))
    assert {line["model"] for line in lines} == {"selecting"}
    assert {line["clip"] for line in lines} == {"", "a.mkv", "b.mkv"}
    known = {line["figure"]: float(line["value"]) for line in lines if not line["clip"]}
    of_clips = [
        {line["figure"]: float(line["value"]) for line in lines if line["clip"] == clip} for clip in ("a.mkv", "b.mkv")
    ]
    for name in ("mse_all", "mse_drawn", "keep_rate_mean", "mask_entropy"):
        assert known[name] == pytest.approx(np.mean([clip[name] for clip in of_clips]))
    assert known["identical_mean"] == pytest.approx(np.mean([10 ** clip["log10_identical"] for clip in of_clips]))
    assert known["num_clips"] == 2 and sum(known[f"histogram_{tenth}"] for tenth in range(10)) == known["num_frames"]
    assert 'id="selection-of-all"' in page and "in all frames, median" in page and "top 2 of a window" in page


def test_nothing_to_report_is_an_error(models, clips, tmp_path):
    results = evaluate_models(models, clips[2:], tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="None of the 1 clips could be read"):
        write_report(results)


def test_command_writes_a_report_and_goes_on(capsys, models, clips, tmp_path):
    models["<tiny>"].save_pretrained(tmp_path / "model")
    arguments = ["evaluate", str(clips[0]), "-m", str(tmp_path / "model"), "--report", str(tmp_path / "report")]
    arguments += ["--codec", "x264", "--max-frames", "4", "--json"]
    outputs = []
    for _ in range(2):
        capsys.readouterr()
        assert run(arguments) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1] and outputs[0]["clips"] == ["a.mkv"]
    assert (tmp_path / "report" / "report.html").is_file()
    assert run([*arguments, "--seed", "3"]) == 1
    assert "holds results of another evaluation" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_clips_and_write_one_report(models, clips, tmp_path):
    models["<tiny>"].save_pretrained(tmp_path / "model")
    command = [*("-m", "diffusers_vidvae", "evaluate"), *map(str, clips[:2]), "-m", str(tmp_path / "model")]
    command += ["--codec", "x264", "--max-frames", "4", "--device", "cpu", "--report"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, arguments in (("one", []), ("two", launch)):
        subprocess.run([sys.executable, *arguments, *command, str(tmp_path / name)], check=True, cwd=ROOT)
    assert (tmp_path / "two" / "results.1.jsonl").is_file()
    one, two = ((tmp_path / name / "points.csv").read_text() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a", "--model", "b"], "--model: 2 of them need --report"),
        (["--mode", "top_k", "--mode", "uniform"], "--mode: 2 of them need --report"),
        (["--codec", "x264"], "--codec: needs --report"),
        (["--report", "out", "--num-frames", "4"], "--num-frames: a report shares frames by --rate"),
    ],
)
def test_options_of_the_other_form_are_refused(capsys, clips, options, message):
    assert run(["evaluate", str(clips[0]), *options]) == 1
    assert message in capsys.readouterr().err
