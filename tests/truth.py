"""Data whose denoiser and solution are known exactly."""

from __future__ import annotations

from fewstep.sampling.plan import Array, Denoise


class Gaussian:
    """Data N(mean, std^2) in every pixel: the denoiser and the ODE's solution are known exactly.

    alpha_of gives the alpha that belongs to a sigma in the space under test; 1 in EDM coordinates.
    """

    def __init__(self, mean: float = 0.3, std: float = 0.6, alpha_of=lambda _sigma: 1.0) -> None:
        self.mean, self.std, self.alpha_of = mean, std, alpha_of

    @property
    def denoise(self) -> Denoise:
        def exact(x: Array, sigma: float) -> Array:
            alpha = self.alpha_of(sigma)
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            return self.mean + gain * (x - alpha * self.mean)

        return exact

    def solve(self, x: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
        """The probability-flow ODE from (alpha, sigma) start to end."""
        spread = [((alpha * self.std) ** 2 + sigma**2) ** 0.5 for alpha, sigma in (start, end)]
        return end[0] * self.mean + spread[1] / spread[0] * (x - start[0] * self.mean)
