"""Version 2 of the file: coded latents come back within the quantiser's step, window by window and in any order."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fsv_clips import make_header

from diffusers_vidvae.codec import (
    CodedFsvReader,
    CodedFsvWriter,
    CompressedVideo,
    FsvError,
    LatentsBasis,
    LatentWindow,
)
from diffusers_vidvae.codec.coded_container import PREFIX_BYTES
from diffusers_vidvae.codec.latent_coder import DEAD_ZONE


STEP = 0.125
SHAPE = (5, 3, 7)


def make_basis(channels: int = 5) -> LatentsBasis:
    generator = np.random.default_rng(1)
    forward = np.linalg.qr(generator.normal(size=(channels, channels)))[0]
    return LatentsBasis.from_arrays(generator.normal(size=channels), forward, np.linspace(2, 0.1, channels), 0.5)


def make_windows(num_windows: int = 11, length: int = 8) -> list[LatentWindow]:
    generator = torch.Generator().manual_seed(0)
    windows, frame = [], torch.randn(SHAPE, generator=generator)
    for index in range(num_windows):
        kept = torch.arange(0, length, 1 + index % 3)
        latents = []
        for _ in kept:
            frame = frame + 0.2 * torch.randn(SHAPE, generator=generator)
            latents.append(frame)
        gaps = kept.diff(prepend=torch.zeros(1, dtype=torch.long))
        windows.append(
            LatentWindow(start=index * length, num_frames=length, gaps=gaps, latents=torch.stack(latents, 1))
        )
    return windows


def coded_header(basis: LatentsBasis, **changes):
    size = {"height": 45, "width": 100, "model_height": 48, "model_width": 112, "latent_height": 3, "latent_width": 7}
    fields = {"num_frames": 0, "quantization": "coded", "step": STEP, "basis": basis.name, "windows_per_group": 4}
    fields |= {"model_probe": (), "model_sketch": (0.5,) * 8}
    if not basis.name:
        statistics = zip(basis.mean.tolist(), (1 / basis.forward.diagonal()).tolist(), strict=True)
        fields["channel_statistics"] = tuple(statistics)
    return make_header(**(size | fields | changes))


def write(path: Path, windows: list[LatentWindow], basis: LatentsBasis, **changes) -> CodedFsvReader:
    with CodedFsvWriter(path, coded_header(basis, **changes), basis) as writer:
        for window in windows:
            writer.write_window(window)
    reader = CodedFsvReader(path)
    reader.basis = reader.basis or basis
    return reader


@pytest.mark.parametrize(
    "basis", [make_basis(), LatentsBasis.of_channels([0.5, 0, -1, 2, 0], [1, 2, 0.5, 1, 1])], ids=["model", "channels"]
)
def test_coded_latents_come_back_within_the_step(tmp_path, basis):
    windows = make_windows()
    reader = write(tmp_path / "clip.fsv", windows, basis)
    for written, read in zip(windows, reader, strict=True):
        assert (read.start, read.num_frames) == (written.start, written.num_frames)
        assert torch.equal(read.gaps, written.gaps)
        error = basis.to_axes(read.latents.double().numpy()) - basis.to_axes(written.latents.double().numpy())
        assert np.abs(error).max() <= (0.5 + DEAD_ZONE) * STEP + 1e-5


def test_windows_are_read_in_any_order(tmp_path):
    reader = write(tmp_path / "clip.fsv", make_windows(), make_basis())
    in_order = [window.latents for window in reader]
    fresh = CodedFsvReader(tmp_path / "clip.fsv")
    fresh.basis = make_basis()
    for index in (9, 2, 2, 10, 0, 5, 6, -1):
        assert torch.equal(fresh[index].latents, in_order[index])
    travelled = pickle.loads(pickle.dumps(fresh))
    assert torch.equal(travelled[3].latents, in_order[3])


def test_a_damaged_group_does_not_touch_the_others(tmp_path):
    """Every group stands for itself: its codes are those of a file that holds it alone."""
    windows = make_windows()
    whole = write(tmp_path / "whole.fsv", windows, make_basis())
    shift = windows[4].start
    alone = [
        LatentWindow(start=w.start - shift, num_frames=w.num_frames, gaps=w.gaps, latents=w.latents)
        for w in windows[4:8]
    ]
    part = write(tmp_path / "part.fsv", alone, make_basis())
    for index in range(4):
        assert np.array_equal(whole.read_codes(4 + index), part.read_codes(index))


def test_the_header_comes_back_and_is_small(tmp_path):
    reader = write(tmp_path / "clip.fsv", make_windows(), make_basis())
    header = coded_header(make_basis(), num_frames=88)
    assert reader.header == header and reader.header.sha256
    overhead = reader.num_bytes - reader.latent_bytes - reader.index_bytes
    assert overhead <= 200, overhead


def test_the_mask_of_regular_windows_costs_next_to_nothing(tmp_path):
    windows = [window for window in make_windows(200) if window.num_kept == 8]
    windows = [LatentWindow(start=8 * i, num_frames=8, gaps=w.gaps, latents=w.latents) for i, w in enumerate(windows)]
    reader = write(tmp_path / "clip.fsv", windows, make_basis())
    assert reader.index_bytes < 2 * len(windows)


def test_figures_of_a_coded_clip_count_its_file(tmp_path):
    reader = write(tmp_path / "clip.fsv", make_windows(), make_basis())
    video = CompressedVideo.load(tmp_path / "clip.fsv")
    assert video.num_bytes == (tmp_path / "clip.fsv").stat().st_size
    assert video.payload_bits == 8 * (reader.latent_bytes + reader.index_bytes) < 8 * video.num_bytes
    assert video.keep_mask.sum() == video.kept_frames == sum(window.num_kept for window in make_windows())
    copied = video.save(tmp_path / "copy.fsv")
    assert copied.read_bytes() == (tmp_path / "clip.fsv").read_bytes()


def test_finer_steps_make_larger_files(tmp_path):
    steps = (0.5, 0.25, 0.0625)
    sizes = [write(tmp_path / f"{step}.fsv", make_windows(), make_basis(), step=step).num_bytes for step in steps]
    assert sizes == sorted(sizes)


def test_a_clip_in_memory_is_the_file(tmp_path):
    reader = write(tmp_path / "clip.fsv", make_windows(), make_basis())
    with CodedFsvWriter(None, coded_header(make_basis()), make_basis()) as writer:
        for window in make_windows():
            writer.write_window(window)
    assert writer.data == (tmp_path / "clip.fsv").read_bytes()
    memory = CodedFsvReader(writer.data)
    memory.basis = make_basis()
    assert torch.equal(memory[7].latents, reader[7].latents)


def test_latents_without_their_basis_are_refused(tmp_path):
    write(tmp_path / "clip.fsv", make_windows(), make_basis())
    with pytest.raises(FsvError, match=rf"clip.fsv: basis: .*{make_basis().name}"):
        CodedFsvReader(tmp_path / "clip.fsv")[0]


@pytest.mark.parametrize(("place", "message"), [(0, "version: 3 .*a newer version"), (1, "coder: number 2 .*newer")])
def test_files_of_newer_versions_say_so(tmp_path, place, message):
    write(tmp_path / "clip.fsv", make_windows(2), make_basis())
    data = bytearray((tmp_path / "clip.fsv").read_bytes())
    data[PREFIX_BYTES - 4 + place] += 1
    (tmp_path / "clip.fsv").write_bytes(data)
    with pytest.raises(FsvError, match=message):
        CompressedVideo.load(tmp_path / "clip.fsv")


@pytest.mark.parametrize(
    ("value", "step", "message"), [(float("nan"), STEP, "not finite"), (1e4, STEP, "a lower quality has larger steps")]
)
def test_latents_that_cannot_be_coded_leave_no_file(tmp_path, value, step, message):
    windows = make_windows(2)
    windows[1].latents[0, 0, 0, 0] = value
    with pytest.raises(FsvError, match=message):
        write(tmp_path / "clip.fsv", windows, make_basis(), step=step)
    assert not list(tmp_path.iterdir())
