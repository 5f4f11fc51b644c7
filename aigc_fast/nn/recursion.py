"""A learnable all-pole filter."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.nn.drop_in import node_of, refuse_script
from aigc_fast.ops.recursion.functional import ar_recursion
from aigc_fast.ops.recursion.reflection import greatest_reflection, reflection_of_coeffs, stable_coeffs
from aigc_fast.runtime.arguments import check_types, whole


class ARRecursion(torch.nn.Module):
    """y[t] = x[t] + sum over i of coeffs[i - 1] y[t - i] with learnable coefficients; see `functional.ar_recursion`.

    Args:
        order: p, the number of past values in the recursion.
        series: B, for separate coefficients for each series; None, the default, for the same for all.
        stable: whether to keep the filter stable. The parameter is then `raw_reflection`, and the coefficients are
            computed from the reflection coefficients (1 - eps) tanh(raw_reflection), with the dtype's eps: they lie
            between -1 and 1 for any value of the parameter. At higher orders, rounding can still put a pole on the unit
            circle where several reflection coefficients are within a few eps of 1 or -1.
        device: of the parameters.
        dtype: of the parameters: floating-point or, if the filter is not kept stable, complex.

    The parameters are initialized to zero, the identity; `set_coeffs` sets them.

    Raises:
        TypeError: if `order` or `series` is not an integer.
        ValueError: for a negative order, fewer than one series, or a stable filter with a complex dtype.

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
        for name, value, least in (("order", order, 0), ("series", 1 if series is None else series, 1)):
            if whole(name, value) < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        if stable and dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype}: expected a floating-point type of a stable filter")
        self.order, self.series, self.stable = order, series, stable
        shape = (order,) if series is None else (series, order)
        parameter = torch.nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.register_parameter("raw_reflection" if stable else "raw_coeffs", parameter)

    @property
    def coeffs(self) -> Tensor:
        """The recursion's coefficients, (p,) or (B, p)."""
        return stable_coeffs(self.raw_reflection) if self.stable else self.raw_coeffs

    @torch.no_grad()
    def set_coeffs(self, coeffs: Tensor) -> None:
        """Sets the coefficients.

        Args:
            coeffs: (p,) or, with `series`, (B, p).

        Raises:
            TypeError: if they are not a Tensor.
            ValueError: if their shape does not match, or if the filter is kept stable and they are not stable in the
                parameters' dtype.
        """
        check_types(coeffs=coeffs)
        parameter = self.raw_reflection if self.stable else self.raw_coeffs
        if coeffs.shape not in (parameter.shape, parameter.shape[-1:]):
            raise ValueError(f"coeffs has shape {tuple(coeffs.shape)}: expected {tuple(parameter.shape)}")
        if not self.stable:
            self.raw_coeffs.copy_(coeffs)
            return
        dtype, limit = self.raw_reflection.dtype, greatest_reflection(self.raw_reflection.dtype)
        wide = torch.promote_types(torch.promote_types(coeffs.dtype, dtype), torch.float32)
        reflection = reflection_of_coeffs(coeffs.to(wide))
        if not bool((reflection.to(dtype).abs() < 1).all()):
            raise ValueError(f"coeffs={coeffs.tolist()}: expected those of a recursion that is stable in {dtype}")
        self.raw_reflection.copy_((reflection / limit).clamp(-limit, limit).atanh())

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y for x (T,) or (B, T); with `return_state`, (y, state), the state to continue from."""
        node = node_of(self, x, state, return_state=return_state)
        return ar_recursion(x, self.coeffs, state, return_state=return_state) if node is None else node

    __prepare_scriptable__ = refuse_script

    def extra_repr(self) -> str:
        return f"order={self.order}, series={self.series}, stable={self.stable}"
