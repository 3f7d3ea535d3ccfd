"""Geometry keeps picture and labels together."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_annotated

from unigs.transforms import Crop, apply_crop, center_crop, crop_labels, random_crop


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (1, 9), (33, 33)])
def test_crops_are_the_largest_squares_inside(height, width):
    for seed in range(20):
        for crop in (
            center_crop(height, width),
            random_crop(height, width, np.random.default_rng(seed)),
        ):
            assert crop.side_px == min(height, width)
            assert 0 <= crop.left_px <= width - crop.side_px
            assert 0 <= crop.top_px <= height - crop.side_px


def test_labels_at_their_own_size_are_cut_exactly():
    labels = np.arange(40 * 60).reshape(40, 60)
    np.testing.assert_array_equal(crop_labels(labels, Crop(7, 3, 32), 32), labels[3:35, 7:39])
    flipped = crop_labels(labels, Crop(7, 3, 32, flip=True), 32)
    np.testing.assert_array_equal(flipped, labels[3:35, 7:39][:, ::-1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [32, 64, 200])
def test_picture_and_labels_stay_aligned_at_any_scale(size, flip):
    labels = np.zeros((90, 120), int)
    labels[20:60, 40:100] = 1
    labels[30:50, 10:35] = 2
    image, cut = apply_crop(make_annotated(labels, ["a", "b"]), Crop(10, 5, 80, flip), size)
    assert image.shape == (3, size, size)
    shown = (image[0].astype(int) + 10) // 20
    assert (shown == cut).mean() > 0.97  # borders are interpolated


def test_flipped_labels_are_painted_by_their_flipped_place():
    import torch

    from unigs.codec import encode_colormap

    labels = np.zeros((66, 66), int)
    labels[0:6, 0:6] = 1  # the upper left cell
    flipped = crop_labels(labels, Crop(0, 0, 66, flip=True), 66)
    mirrored = np.zeros((66, 66), int)
    mirrored[0:6, 60:66] = 1
    painted = encode_colormap(torch.from_numpy(flipped))
    torch.testing.assert_close(painted, encode_colormap(torch.from_numpy(mirrored)))
    assert not torch.equal(painted.flip(-1), encode_colormap(torch.from_numpy(labels)))
