"""Whatever the bytes, reading ends in the clip or in an `FsvError` that names the file, in little memory."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from diffusers_vidvae.codec import QUANTIZATIONS, CompressedVideo, FsvError


def read_all(path: Path) -> None:
    for window in CompressedVideo.load(path).windows:
        assert window.latents.shape[1] == window.num_kept


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(text: bytes, payload: bytes) -> bytes:
    """A file with a right length and, where the text has a place for it, a right checksum."""
    start = struct.pack("<Q", len(text)) + text
    blank = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', start)
    checksum = hashlib.sha256(payload + blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + checksum) + payload


def forged(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with another header and a right checksum: what a checksum cannot catch."""
    content, payload = split(data)
    change(content)
    return join(json.dumps(content, separators=(",", ":")).encode(), payload)


@contextmanager
def little_memory(limit: int = 1 << 20):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def assert_refused(path: Path, data: bytes, match: str = "") -> None:
    path.write_bytes(data)
    with little_memory(), pytest.raises(FsvError, match=rf"{path.name}: .*{match}"):
        read_all(path)


def test_forging_nothing_leaves_a_good_file(fsv_file):
    data = fsv_file.read_bytes()
    fsv_file.write_bytes(forged(data, lambda content: None))
    read_all(fsv_file)


@pytest.mark.parametrize("quantization", ["fp32", "int4"])
def test_every_truncation_is_refused(make_video, tmp_path, quantization):
    path = make_video(quantization=quantization).save(tmp_path / "clip.fsv")
    data = path.read_bytes()
    for length in [*range(0, len(data), 10), len(data) - 1]:
        assert_refused(path, data[:length])
    assert_refused(path, data + b"\0", "the tensors end at byte")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_flipped_byte_is_refused(make_video, tmp_path, quantization):
    path = make_video(quantization=quantization).save(tmp_path / "clip.fsv")
    data = path.read_bytes()
    generator = random.Random(0)
    for position in generator.sample(range(len(data)), 200):
        flipped = bytearray(data)
        flipped[position] ^= generator.randrange(1, 256)
        assert_refused(path, bytes(flipped))


def test_random_forged_headers_never_crash(fsv_file):
    """Replaces bytes of the header and makes the checksum right again."""
    content, payload = split(fsv_file.read_bytes())
    text = json.dumps(content, separators=(",", ":")).encode()
    generator = random.Random(1)
    for _ in range(500):
        mutated = bytearray(text)
        for _ in range(generator.randint(1, 3)):
            mutated[generator.randrange(len(text))] = generator.choice(b'0123456789-"{}[],:.eE \\uafnt\0\xff')
        fsv_file.write_bytes(join(bytes(mutated), payload))
        with little_memory():
            try:
                read_all(fsv_file)
            except FsvError as error:
                assert fsv_file.name in str(error)


def test_random_forged_payloads_never_crash(make_video, tmp_path):
    path = make_video(quantization="int8").save(tmp_path / "clip.fsv")
    content, payload = split(path.read_bytes())
    text = json.dumps(content, separators=(",", ":")).encode()
    generator = random.Random(2)
    first_scale = content["scales"]["data_offsets"][0]
    for _ in range(500):
        mutated = bytearray(payload)
        mutated[generator.randrange(first_scale, len(payload))] = generator.choice([0, 1, 2, 127, 128, 255])
        path.write_bytes(join(text, bytes(mutated)))
        try:
            read_all(path)
        except FsvError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("length", [0, 1, 1 << 16 | 1, 1 << 40, 1 << 60, (1 << 64) - 1])
def test_an_absurd_header_length_is_refused(fsv_file, length):
    data = fsv_file.read_bytes()
    assert_refused(fsv_file, struct.pack("<Q", length) + data[8:], "header: ")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "header"),
        (b"\xff\xfe\x00\x00", "header: not JSON"),
        (b"[1,2,3]", "header: not a JSON object"),
        (b'{"a":1,"a":2}', "header: a key occurs twice"),
        (b'{"a":{"b":1,"b":2}}', "header: a key occurs twice"),
        (b'{"a":NaN}', "header: NaN is not JSON"),
        (b'{"a":-Infinity}', "header: -Infinity is not JSON"),
        (b'{"a":' * 9000 + b"1" + b"}" * 9000, "header: nested too deeply"),
        (b"[" * 60000, "header: n"),
        (b'{"a":' + b"9" * 60000 + b"}", "header: not JSON"),
        (b"{}", "__metadata__: not a compressed video"),
        (b'{"__metadata__":{"format":"pt"}}', "format: not a compressed video"),
        (b'{"__metadata__":{"format":{"format":"fsv"}}}', "__metadata__: not a compressed video"),
        (b'{"__metadata__":{"format":"fsv"}}', "version: None cannot be read, only 1"),
        (b'{"__metadata__":{"format":"fsv","version":"1"}}', "sha256: missing"),
    ],
)
def test_an_absurd_header_is_refused(fsv_file, text, match):
    assert_refused(fsv_file, join(text, b""), match)


@pytest.mark.parametrize("version", ["0", "2", "1.0", "", "01", "99999999999999999999"])
def test_another_version_is_refused(fsv_file, version):
    def change(content):
        content["__metadata__"]["version"] = version

    assert_refused(fsv_file, forged(fsv_file.read_bytes(), change), "version: .* cannot be read, only 1")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("num_frames", "12", "window_frames: 11 frames"),
        ("num_frames", "0", "num_frames: 0 frames"),
        ("num_frames", "3", "gaps: shape is not one whole number from 1 to 3"),
        ("num_frames", "-11", "num_frames: '-11' is not a whole number"),
        ("num_frames", "1" * 5000, "num_frames: '1111"),
        ("num_frames", "9999999999", "num_frames: 9999999999 is not a whole number from 0 to"),
        ("num_frames", "١١", "num_frames"),
        ("height", "1e3", "height: '1e3' is not a whole number"),
        ("width", "", "width: '' is not"),
        ("clip_num_frames", "7", "window_frames"),
        ("latent_channels", "6", "latents: shape is"),
        ("latent_height", "1", "latent_width: 1 x 3 latents do not divide"),
        ("quantization", "bf16", "latents: dtype is 'F32' where the other fields ask for BF16"),
        ("quantization", "int8", "scales: missing"),
        ("quantization", "zip", "quantization: 'zip' is not one of"),
        ("fps", "30000/0", "fps: '30000/0' is not a ratio"),
        ("fps", "nan", "fps"),
        ("fps", "1e9", "fps"),
        ("model_probe", "1 nan", "model_probe"),
        ("model_probe", "1e999", "model_probe"),
        ("model_hash", "f" * 63, "model_hash: expected 64"),
        ("model_id", "x" * 1000, "model_id: expected at most 512"),
        ("model_id", "\ud800", "model_id"),
        ("size_fit", "tile", "tile: None"),
        ("tile_size", "16", "tile_overlap: missing"),
        ("surprise", "1", "surprise: unknown field"),
    ],
)
def test_a_field_that_contradicts_the_others_is_named(fsv_file, field, value, match):
    def change(content):
        content["__metadata__"][field] = value

    assert_refused(fsv_file, forged(fsv_file.read_bytes(), change), match)


@pytest.mark.parametrize("field", ["num_frames", "latent_width", "size_fit", "quantization", "latent_dtype", "sha256"])
def test_a_missing_field_is_named(fsv_file, field):
    def change(content):
        del content["__metadata__"][field]

    assert_refused(fsv_file, forged(fsv_file.read_bytes(), change), f"{field}: missing")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("latents", "shape", [2**60, 5, 3, 3]),
        ("latents", "shape", [-4, 5, 3, 3]),
        ("latents", "shape", [4.0, 5, 3, 3]),
        ("latents", "shape", "4"),
        ("latents", "dtype", "F64"),
        ("latents", "dtype", None),
        ("latents", "data_offsets", [0, 2**60]),
        ("latents", "data_offsets", [-720, 0]),
        ("latents", "data_offsets", [0]),
        ("gaps", "shape", [2**60]),
        ("gaps", "shape", [True]),
        ("gaps", "shape", [3]),
        ("gaps", "shape", {}),
        ("gaps", "dtype", "I64"),
        ("window_kept", "shape", [1]),
        ("window_kept", "shape", [0]),
        ("window_frames", "data_offsets", [0, 8]),
        ("window_frames", "extra", 1),
    ],
)
def test_a_tensor_that_contradicts_the_fields_is_refused(fsv_file, name, key, value):
    def change(content):
        content[name][key] = value

    assert_refused(fsv_file, forged(fsv_file.read_bytes(), change))


@pytest.mark.parametrize("value", [None, 1, "x", [], {"dtype": "U8"}])
def test_a_tensor_entry_of_another_kind_is_refused(fsv_file, value):
    for name in ("latents", "gaps", "window_kept", "__metadata__"):
        assert_refused(
            fsv_file, forged(fsv_file.read_bytes(), lambda content, name=name: content.update({name: value}))
        )


def test_tensors_must_be_the_formats_own(fsv_file):
    data = fsv_file.read_bytes()
    assert_refused(fsv_file, forged(data, lambda content: content.pop("window_frames")), "window_frames: missing")
    extra = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    assert_refused(fsv_file, forged(data, lambda content: content.update(extra=extra)), "extra: unknown tensor")


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("window_frames", (0, 11), "window_frames"),
        ("window_frames", (-1, 12), "window_frames"),
        ("window_frames", (3, 8), "gaps: the last kept frame 7 of the window at frame 0 lies beyond its 3 frames"),
        ("window_kept", (0, 4), "window_kept"),
        ("window_kept", (2**31 - 1, -(2**31) + 5), "window_kept"),
        ("window_kept", (2, 1), "window_kept"),
    ],
)
def test_a_window_table_that_contradicts_the_clip_is_refused(fsv_file, name, values, match):
    content, payload = split(fsv_file.read_bytes())
    start, stop = content[name]["data_offsets"]
    payload = payload[:start] + struct.pack("<2i", *values) + payload[stop:]
    assert_refused(fsv_file, join(json.dumps(content, separators=(",", ":")).encode(), payload), match)


def test_latents_and_scales_that_are_not_finite_are_refused(make_video, tmp_path):
    for quantization, name in (("fp32", "latents"), ("int8", "scales")):
        path = make_video(quantization=quantization).save(tmp_path / f"{quantization}.fsv")
        content, payload = split(path.read_bytes())
        start = content[name]["data_offsets"][0]
        payload = payload[:start] + struct.pack("<f", float("nan")) + payload[start + 4 :]
        text = json.dumps(content, separators=(",", ":")).encode()
        assert_refused(path, join(text, payload), f"{name}: window 0")


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "clip.fsv"
    assert_refused(path, b"PK\x03\x04" + bytes(2000))
    assert_refused(path, b"a text that says nothing\n" * 40)
    assert_refused(path, b"", "header: the file has 0 bytes")


def test_a_header_written_by_another_program_is_refused(fsv_file):
    content, payload = split(fsv_file.read_bytes())
    text = json.dumps(content).encode()
    assert_refused(fsv_file, struct.pack("<Q", len(text)) + text + payload, "sha256: the header was rewritten")
