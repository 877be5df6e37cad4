"""Version 2 of the file: coded latents come back within the quantiser's step, window by window and in any order."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fsv_clips import make_header

from diffusers_vidvae.codec import (
    AxesCycle,
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


def make_cycle_basis() -> LatentsBasis:
    """Axes of five channels, the last two of which show one of three groups in turn; errors are shaped."""
    generator, cycle = np.random.default_rng(2), AxesCycle(5, 2, 3)
    forward = np.zeros((9, 9))
    for group in cycle.groups:
        forward[np.ix_(group, group)] = np.linalg.qr(generator.normal(size=(len(group), len(group))))[0]
    deviations, shaping = np.linspace(2, 0.1, 9), np.tile([0.5, 0.25], (9, 1))
    return LatentsBasis.from_arrays(generator.normal(size=9), forward, deviations, 0.5, cycle, shaping)


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
    fields |= {"model_probe": (), "model_sketch": (0.5,) * 8, "channel_statistics": basis.channel_statistics}
    fields |= {"shared_channels": basis.cycle.shared, "cycle_length": basis.cycle.length}
    return make_header(**(size | fields | changes))


def write(path: Path, windows: list[LatentWindow], basis: LatentsBasis, **changes) -> CodedFsvReader:
    with CodedFsvWriter(path, coded_header(basis, **changes), basis) as writer:
        for window in windows:
            writer.write_window(window)
    reader = CodedFsvReader(path)
    reader.basis = reader.basis or basis
    return reader


def errors_of(written: LatentWindow, read: LatentWindow, basis: LatentsBasis) -> list[np.ndarray]:
    """Errors `(axes shown, height, width)` of every kept frame, in the axes of the basis."""
    axes = [
        [basis.to_axes(window.latents[:, i].double().numpy(), frame) for window in (written, read)]
        for i, frame in enumerate((written.start + written.positions).tolist())
    ]
    return [after - before for before, after in axes]


PLAIN = {"mean": [0.5, 0, -1, 2, 0], "deviations": [1, 2, 0.5, 1, 1]}
BASES = {
    "model": make_basis(),
    "channels": LatentsBasis.of_channels(**PLAIN),
    "cycle": make_cycle_basis(),
    "channels in a cycle": LatentsBasis.of_channels(**PLAIN, cycle=AxesCycle(5, 2, 3)),
}


@pytest.mark.parametrize("name", BASES)
def test_coded_latents_come_back_within_the_step(tmp_path, name):
    basis, windows = BASES[name], make_windows()
    reader = write(tmp_path / "clip.fsv", windows, basis)
    largest = (0.5 + DEAD_ZONE) * STEP * (1 + np.abs(basis.shaping).sum(axis=1).max())
    for written, read in zip(windows, reader, strict=True):
        assert (read.start, read.num_frames) == (written.start, written.num_frames)
        assert torch.equal(read.gaps, written.gaps)
        assert max(np.abs(error).max() for error in errors_of(written, read, basis)) <= largest + 1e-5


def test_axes_that_take_turns_are_coded_with_their_own_past(tmp_path):
    """Three still pictures in turn cost little more than each of them once."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(3, 2, 3, 7, generator=generator)
    latents = torch.zeros(5, 48, 3, 7)
    latents[3:] = groups[torch.arange(48) % 3].transpose(0, 1)
    gaps = torch.tensor([0] + [1] * 47)
    window = LatentWindow(start=0, num_frames=48, gaps=gaps, latents=latents)
    sizes = {
        name: write(tmp_path / f"{name}.fsv", [window], BASES[name], clip_num_frames=48).latent_bytes
        for name in ("channels", "channels in a cycle")
    }
    assert sizes["channels in a cycle"] < sizes["channels"] / 5


def test_shaped_errors_weigh_less_in_a_decoder_that_averages_changes(tmp_path):
    """What is measured with 1 / (1 + .5 z^-1 + .25 z^-2), the filter that errors were shaped for."""
    generator = torch.Generator().manual_seed(0)
    latents = 0.3 * torch.randn(5, 48, 3, 7, generator=generator).cumsum(dim=1)
    window = LatentWindow(start=0, num_frames=48, gaps=torch.tensor([0] + [1] * 47), latents=latents)
    shaped = make_cycle_basis()
    plain = LatentsBasis.from_arrays(shaped.mean, shaped.forward, shaped.deviations, shaped.unit, shaped.cycle)
    weights = []
    for basis in (shaped, plain):
        header = coded_header(basis, clip_num_frames=48)
        with CodedFsvWriter(None, header, basis) as writer:
            writer.write_window(window)
        reader = CodedFsvReader(writer.data)
        reader.basis = basis
        errors = np.stack([error[:3] for error in errors_of(window, reader[0], basis)])
        seen = np.zeros_like(errors)
        for frame in range(48):
            seen[frame] = errors[frame] - 0.5 * seen[frame - 1] * (frame > 0) - 0.25 * seen[frame - 2] * (frame > 1)
        weights.append(np.square(seen).sum())
    assert weights[0] < 0.8 * weights[1]


def test_the_sum_of_shaped_errors_counts_what_the_decoder_sees():
    gains = make_cycle_basis().error_gains
    response = [1.0, -0.5]
    for _ in range(50):
        response.append(-0.5 * response[-1] - 0.25 * response[-2])
    assert np.allclose(gains, 1 / np.square(response).sum()) and (make_basis().error_gains == 1).all()


def test_a_basis_of_turns_survives_a_config():
    basis = make_cycle_basis()
    found = LatentsBasis.from_config({"_latents_basis": basis.to_config()})
    assert found is not None and found.name == basis.name and found.cycle == basis.cycle
    for name in ("mean", "forward", "deviations", "shaping"):
        assert np.array_equal(getattr(found, name), getattr(basis, name))
    other = replace(basis.cycle, shared=1, length=5)
    assert LatentsBasis.from_arrays(basis.mean, basis.forward, basis.deviations, 0.5, other).name != basis.name
    with pytest.raises(FsvError, match="no readable basis"):
        LatentsBasis.from_config({"_latents_basis": basis.to_config() | {"length": 2}})


@pytest.mark.parametrize("cycle", [(5, 6, 2), (5, 2, 1), (5, 0, 3), (5, 1, 17), (5, -1, 2)])
def test_impossible_cycles_are_refused(cycle):
    with pytest.raises(FsvError, match="cycle: "):
        AxesCycle(*cycle)


@pytest.mark.parametrize("name", ["model", "cycle"])
def test_windows_are_read_in_any_order(tmp_path, name):
    reader = write(tmp_path / "clip.fsv", make_windows(), BASES[name])
    in_order = [window.latents for window in reader]
    fresh = CodedFsvReader(tmp_path / "clip.fsv")
    fresh.basis = BASES[name]
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


@pytest.mark.parametrize(("name", "coder"), [("model", 1), ("cycle", 2)])
def test_the_header_comes_back_and_is_small(tmp_path, name, coder):
    reader = write(tmp_path / "clip.fsv", make_windows(), BASES[name])
    header = coded_header(BASES[name], num_frames=88)
    assert reader.header == header and reader.header.sha256 and reader.header.coder == coder
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
    reader = CodedFsvReader(tmp_path / "clip.fsv")
    reader.basis = make_cycle_basis()
    with pytest.raises(FsvError, match=r"clip.fsv: cycle: AxesCycle\(channels=5, shared=0, length=1\) in the file"):
        reader[0]
    with pytest.raises(FsvError, match=rf"clip.fsv: basis: .*{make_basis().name}"):
        CodedFsvReader(tmp_path / "clip.fsv")[0]


@pytest.mark.parametrize(("place", "message"), [(0, "version: 3 .*a newer version"), (1, "coder: number 3 .*newer")])
def test_files_of_newer_versions_say_so(tmp_path, place, message):
    write(tmp_path / "clip.fsv", make_windows(2), make_cycle_basis())
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


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(FsvError, match="clip.fsv: not enough disk space"):
            CodedFsvWriter(tmp_path / "clip.fsv", coded_header(make_basis()), make_basis()).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
