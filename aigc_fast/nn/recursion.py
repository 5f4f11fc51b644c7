"""A learnable all-pole filter."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.recursion.functional import ar_recursion
from aigc_fast.ops.recursion.reflection import coeffs_of_reflection, reflection_of_coeffs


class ARRecursion(torch.nn.Module):
    """y[t] = x[t] + sum over i of coeffs[i - 1] y[t - i] with learnable coefficients; see `functional.ar_recursion`.

    Args:
        order: p, how far back the recursion looks.
        series: B, for coefficients of each series; None, the default, for those of all.
        stable: whether to keep the filter stable: the parameters are then `raw_reflection`, and the coefficients those
            of the reflection coefficients tanh(raw_reflection), within -1 to 1 whatever the parameters are.
        device: of the parameters.
        dtype: of the parameters.

    The parameters begin at zero, the identity; `set_coeffs` sets them.

    Example:
        >>> filter = ARRecursion(16, stable=True)
        >>> y = filter(excitation)  # (B, T)
        >>> y, state = filter(excitation, return_state=True)
    """

    def __init__(
        self,
        order: int,
        series: int | None = None,
        *,
        stable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if order < 0:
            raise ValueError(f"order={order}: expected at least 0")
        self.order, self.series, self.stable = order, series, stable
        shape = (order,) if series is None else (series, order)
        parameter = torch.nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.register_parameter("raw_reflection" if stable else "raw_coeffs", parameter)

    @property
    def coeffs(self) -> Tensor:
        """(p,) or (B, p), what the recursion uses."""
        return coeffs_of_reflection(self.raw_reflection.tanh()) if self.stable else self.raw_coeffs

    @torch.no_grad()
    def set_coeffs(self, coeffs: Tensor) -> None:
        """Sets the coefficients.

        Raises:
            ValueError: where the filter is to be stable and these are not.
        """
        if not self.stable:
            self.raw_coeffs.copy_(coeffs)
            return
        reflection = reflection_of_coeffs(coeffs)
        if not bool((reflection.abs() < 1).all()):
            raise ValueError(f"coeffs={coeffs.tolist()}: expected those of a stable recursion")
        self.raw_reflection.copy_(reflection.atanh())

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y of x (T,) or (B, T); with `return_state`, the state to go on with besides."""
        return ar_recursion(x, self.coeffs, state, return_state=return_state)

    def extra_repr(self) -> str:
        return f"order={self.order}, series={self.series}, stable={self.stable}"
