"""Random colours and blur."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from longtail.data.geometry import Sample, uniform

NOTHING = 1e-7  # a weight that cannot change one of 256 levels


class RandomBlur(torch.nn.Module):
    """Gaussian blur of random width. On pictures too small for the window, the window shrinks.

    Args:
        kernel: side of the window in pixels, odd.
        sigma: range the width is drawn from, in pixels.
    """

    def __init__(self, kernel: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"a blur needs an odd window and a range of widths above 0, got {kernel} and {sigma}")
        self.kernel = kernel
        self.sigma = sigma

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, H, W)."""
        sigma = uniform(*self.sigma)
        sides = [min(self.kernel, 2 * side - 1) for side in (image.shape[-1], image.shape[-2])]
        blurred = gaussian_blur(image.as_subclass(Tensor), (sides[1], sides[0]), sigma)
        picture: Tensor = tv_tensors.Image(blurred)
        return picture


def gaussian_blur(image: Tensor, kernel: tuple[int, int], sigma: float) -> Tensor:
    """Gaussian blur, mirrored at the edges; torchvision's to within a rounding, and several times as quick.

    Args:
        image: (3, H, W) uint8.
        kernel: height and width of the window in pixels, odd, less than twice the picture's.
        sigma: width of the Gaussian in pixels.
    """
    radii = [side // 2 for side in kernel]
    blurred = torch.nn.functional.pad(image.float(), [radii[1], radii[1], radii[0], radii[0]], mode="reflect")
    for axis, radius in zip((1, 2), radii, strict=True):
        shares = torch.softmax(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2), dim=0)
        length = image.shape[axis]
        total = torch.zeros_like(blurred.narrow(axis, 0, length))
        for place, share in enumerate(shares.tolist()):
            if share > NOTHING:
                total.add_(blurred.narrow(axis, place, length), alpha=share)
        blurred = total
    return blurred.round_().to(image.dtype)


class ColourAndBlur(torch.nn.Module):
    """Colour jitter, random grey and Gaussian blur, in this order, each with its probability; objects stay.

    The defaults are those of step-wise learning's two later steps, which have them from SimCLR (Chen et al., 2020).

    Args:
        jitter_probability: of colour jitter as a whole; its four parts come in random order.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue: shift, drawn from -x to x turns of the colour circle.
        grey_probability: of a picture without colour.
        blur_probability, blur_kernel, blur_sigma: of blur, and see :class:`RandomBlur`.
    """

    def __init__(
        self,
        *,
        jitter_probability: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        grey_probability: float = 0.2,
        blur_probability: float = 0.5,
        blur_kernel: int = 23,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        super().__init__()
        jitter = v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        self.steps = v2.Compose(
            [
                v2.RandomApply([jitter], p=jitter_probability),
                v2.RandomGrayscale(p=grey_probability),
                v2.RandomApply([RandomBlur(blur_kernel, blur_sigma)], p=blur_probability),
            ]
        )

    def forward(self, image: Tensor, sample: Sample) -> tuple[Tensor, Sample]:
        """(image, sample) -> (image in other colours, the same sample)."""
        return self.steps(image), sample
