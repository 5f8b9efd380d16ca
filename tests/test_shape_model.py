"""The modes in which faces vary are found again in faces that were made of them."""

from __future__ import annotations

import numpy as np

from facetrack.training.shape_model import principal_modes


def test_principal_modes_are_recovered_regardless_of_position_size_and_roll() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(10, 2))
    mean -= mean.mean(0)
    mean /= np.linalg.norm(mean)
    still = np.stack([np.tile([1, 0], 10), np.tile([0, 1], 10), mean.ravel(), (mean @ [[0, 1], [-1, 0]]).ravel()], 1)
    free = np.linalg.qr(np.hstack((still, rng.normal(size=(20, 2)))))[0][:, 4:]
    shapes = mean + (rng.normal(size=(400, 2)) * [0.05, 0.02] @ free.T).reshape(400, 10, 2)
    turns, sizes = rng.uniform(-3, 3, 400), rng.uniform(20, 300, (400, 1, 1))
    spins = np.stack([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]]).transpose(2, 1, 0)
    found, modes = principal_modes(shapes @ spins * sizes + rng.uniform(0, 500, (400, 1, 2)), 2)
    np.testing.assert_allclose(np.linalg.norm(found), 1)
    both = (found[:, 0] + 1j * found[:, 1]), (mean[:, 0] + 1j * mean[:, 1])
    assert abs(np.vdot(*both)) > 0.999
    turn = np.vdot(*both) / abs(np.vdot(*both))
    there = modes.reshape(10, 2, 2)
    upright = (there[:, 0] + 1j * there[:, 1]) * turn
    columns = np.stack((upright.real, upright.imag), 1).reshape(20, 2)
    assert np.linalg.svd(columns.T @ free)[1].min() > 0.99
