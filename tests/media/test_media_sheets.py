from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusers_vidvae.media import contact_sheet


def test_every_frame_is_on_the_sheet_row_by_row(clip):
    sheet = np.asarray(contact_sheet(clip[:5], columns=3))
    height, width = clip.shape[1:3]
    for index in range(5):
        row, column = divmod(index, 3)
        top, left = 4 + row * (height + 4), 4 + column * (width + 4)
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], clip[index])
    assert sheet.shape == (4 + 2 * (height + 4), 4 + 3 * (width + 4), 3)


def test_frames_of_different_sizes_are_centred():
    sheet = np.asarray(
        contact_sheet([Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "red")], columns=2)
    )
    assert (sheet == [255, 0, 0]).all(axis=-1).sum() == 400


def test_labels_are_drawn_below_and_cut_to_the_frame(clip):
    plain = contact_sheet(clip[:2], columns=2)
    labelled = contact_sheet(clip[:2], columns=2, labels=["a", "a label much too long for a frame of this width"])
    assert labelled.height > plain.height and labelled.width == plain.width
    strip = np.asarray(labelled)[-18:]
    assert (strip > 200).any() and (strip[:, -4:] == 24).all()


def test_a_title_stands_above(clip):
    plain, titled = (contact_sheet(clip[:2], columns=2, title=title) for title in (None, "a clip\nof two frames"))
    above = titled.height - plain.height
    assert titled.width == plain.width and above > 0
    np.testing.assert_array_equal(np.asarray(titled)[above:], np.asarray(plain))
    assert (np.asarray(titled)[:above] > 200).any()


def test_frames_can_be_scaled(clip):
    assert contact_sheet(clip[:1], frame_width=64).size == (72, 56)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": []}, "at least one frame"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"labels": ["a"]}, "got 1 labels for 2 frames"),
    ],
)
def test_impossible_sheets_are_refused(clip, options, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(**{"frames": clip[:2], **options})
