"""Colours and blur: their probabilities and strengths, what they leave alone, and when they happen."""

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from longtail.data.photometric import ColourAndBlur, RandomBlur, gaussian_blur
from longtail.data.transforms import train_transform

OFF = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}


def noise(height: int = 32, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize(
    ("name", "expected"), [("jitter_probability", 0.8), ("grey_probability", 0.2), ("blur_probability", 0.5)]
)
def test_each_part_happens_with_its_published_probability(name: str, expected: float) -> None:
    others = {key: value for key, value in OFF.items() if key != name}
    steps, image, changed = ColourAndBlur(**others), noise(8, 8), 0
    for seed in range(400):
        torch.manual_seed(seed)
        changed += not torch.equal(steps(image, {})[0], image)
    assert abs(changed / 400 - expected) < 0.07


def test_grey_has_no_colour_and_the_sample_stays() -> None:
    image, sample = noise(), {"labels": torch.tensor([3])}
    grey, after = ColourAndBlur(**OFF | {"grey_probability": 1.0})(image, sample)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert after is sample
    same, _ = ColourAndBlur(**OFF)(image, sample)
    assert torch.equal(same, image)


def test_brightness_reaches_its_limits() -> None:
    image = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    steps = ColourAndBlur(**OFF | {"jitter_probability": 1.0}, contrast=0, saturation=0, hue=0)
    values = []
    for seed in range(300):
        torch.manual_seed(seed)
        values.append(int(steps(image, {})[0][0, 0, 0]))
    assert 60 <= min(values) < 64
    assert 136 < max(values) <= 140


def test_blur_is_torchvisions_with_a_drawn_width() -> None:
    image = noise(40, 50)
    torch.manual_seed(5)
    blurred = RandomBlur(23, (0.1, 2.0))(image)
    torch.manual_seed(5)
    sigma = 0.1 + 1.9 * float(torch.rand((), dtype=torch.float64))
    wanted = F.gaussian_blur(image, [23, 23], [sigma, sigma])
    assert (blurred.int() - wanted.int()).abs().max() <= 1
    assert (blurred == wanted).float().mean() > 0.999
    for width in (0.1, 0.5, 2.0):
        wanted = F.gaussian_blur(image, [7, 23], [width, width])
        assert (gaussian_blur(image.as_subclass(Tensor), (23, 7), width) == wanted).float().mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 12), (11, 12)])
def test_small_pictures_are_blurred_in_a_smaller_window(size: tuple[int, int]) -> None:
    assert RandomBlur(23, (0.1, 2.0))(noise(*size)).shape == (3, *size)


def test_colours_come_before_resizing() -> None:
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, image: Tensor, sample: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(tuple(image.shape))
            return image, sample

    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 9, 9]]), format="XYXY", canvas_size=(32, 40))
    image, _ = train_transform([16], 40, colour=Watch())(noise(), {"boxes": boxes, "labels": torch.tensor([0])})
    assert seen == [(3, 32, 40)]
    assert image.shape == (3, 16, 20)


def test_windows_that_make_no_sense_are_refused() -> None:
    for kernel, sigma in ((4, (0.1, 2.0)), (5, (0.0, 2.0)), (5, (2.0, 1.0))):
        with pytest.raises(ValueError, match="odd window"):
            RandomBlur(kernel, sigma)
