"""Statistics of pixels against closed forms, and how far two sets of images are apart in them."""

from __future__ import annotations

import pytest
import torch

from fewstep.evaluation.pixels import NAMES, SIZE, departures, statistics


def named(images: torch.Tensor) -> dict[str, float]:
    return dict(zip(NAMES, statistics(images)[0].tolist(), strict=False))


def test_statistics_of_images_that_one_can_compute_by_hand() -> None:
    flat = named(torch.full((1, 3, 8, 8), 51.0))
    assert flat == pytest.approx({"brightness": 0.2} | dict.fromkeys(NAMES[1:], 0.0), abs=1e-5)
    halves = torch.zeros(1, 1, 8, 8)
    halves[..., 4:] = 255
    found = named(halves)
    assert (found["brightness"], found["contrast"], found["dark"], found["bright"]) == pytest.approx((0.5,) * 4, abs=1e-5)
    assert found["detail"] == pytest.approx(8 / (7 * 8 + 8 * 7), abs=1e-5)  # eight steps of 1 among all neighbours
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 255
    assert named(red)["color"] == pytest.approx((2 / 9) ** 0.5, abs=1e-5)
    checks = torch.tensor([0.0, 255.0]).repeat(8, 4).reshape(1, 1, 8, 8)
    assert statistics(checks)[0, -1] > statistics(halves)[0, -1]  # the finest ring


def test_noise_that_no_eye_sees_leaves_both_ends_as_they_are() -> None:
    black = torch.randint(0, 6, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    assert named(black)["dark"] == named(255 - black)["bright"] == 1
    assert named(black + 20)["dark"] == 0


def test_a_departure_is_in_deviations_of_real_images() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = 128 + 20 * torch.randn(2000, 1, 1, 1, generator=generator)
    real, made = levels[:1000].expand(-1, 1, 4, 4), levels[1000:].expand(-1, 1, 4, 4)
    assert departures(statistics(real), statistics(made))["brightness"] == pytest.approx(0, abs=0.1)
    brighter = departures(statistics(real), statistics(made + 30))
    assert brighter["brightness"] == pytest.approx(1.5, abs=0.1)
    assert set(brighter) == set(NAMES)
    alike = departures(statistics(real), statistics(torch.full((1000, 1, 4, 4), 128.0)))
    assert alike["brightness"] == pytest.approx((2 / torch.pi) ** 0.5, abs=0.05)  # E|N(0, 1)|


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 3, 5, 7), (2, 1, 1, 1)])
def test_gradients_are_finite_for_any_shape_also_of_flat_images(shape: tuple[int, ...]) -> None:
    for level in (0.0, 100.0, 255.0):
        images = torch.full(shape, level, requires_grad=True)
        found = statistics(images)
        assert found.shape == (2, SIZE)
        found.sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
