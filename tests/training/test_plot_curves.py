from __future__ import annotations

import json

import pytest
from PIL import Image

from diffusers_vidvae.training.plot_curves import plot_curves


def test_curves_of_runs_that_followed_each_other_are_drawn(tmp_path):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        lines = [{"step": i, "minutes": i / 10, "split": "train", "loss": 1 / i} for i in range(1, 4)]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "just_started").mkdir()
    (tmp_path / "just_started" / "metrics.jsonl").touch()
    logs = [tmp_path / run / "metrics.jsonl" for run in ("first", "second", "just_started")]
    picture = Image.open(plot_curves(logs, tmp_path / "curves.png")).convert("L")
    assert picture.getextrema() == (0, 255)


def test_one_metric_alone_is_a_smaller_picture(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"step": 1, "minutes": 1, "split": "train", "loss": 1.0, "kl": 2.0}))
    both = Image.open(plot_curves([log], tmp_path / "both.png"))
    assert Image.open(plot_curves([log], tmp_path / "one.png", metrics=["kl"])).width < both.width
    with pytest.raises(ValueError, match="has no metric 'psnr', only kl, loss"):
        plot_curves([log], tmp_path / "none.png", metrics=["psnr"])


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a log")
    with pytest.raises(ValueError, match="notes.txt: is not a metrics log"):
        plot_curves([tmp_path / "notes.txt"], tmp_path / "curves.png")
