"""The autoregression AR(p): x[t] = c + sum over i of coeffs[i - 1] x[t - i] + noise."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.checks import integer
from aigc_fast.models.ar.checks import DTYPES, check_choice, rows_of, tensor_of
from aigc_fast.models.ar.diagnostics import CRITERIA, OrderSelection, Whiteness, information, ljung_box
from aigc_fast.models.ar.fitting import estimate
from aigc_fast.ops.recursion.reflection import reflection_of_coeffs
from aigc_fast.runtime.arguments import number


class Forecast(NamedTuple):
    """A forecast and its interval, each (steps,) or (B, steps)."""

    mean: Tensor
    lower: Tensor
    upper: Tensor


class ARModel(nn.Module):
    """The autoregression x[t] = intercept + sum over i from 1 to p of coeffs[i - 1] x[t - i] + ε[t], ε of N(0, σ²).

    One model holds one series' coefficients, or those of each series of a batch. They are buffers: `state_dict` keeps
    them, and `load_state_dict` of a model of that order takes those of one series and of any batch. Tensors given to
    the methods are of the model's dtype and on its device; `fit` takes both from the series. NumPy's arrays, pandas'
    Series, lists and whatever else NumPy makes an array of do as well: they are copied to the model's dtype and device,
    by `fit` to float32 where they are, and to float64 where they are not. Of a DataFrame each column is a series.

    Args:
        order: p, at least 0, for a model to fit; until then its coefficients are NaN. Either this or `coeffs`.
        coeffs: (p,), or (B, p) of each series; the most recent lag first. Tensors are copied, without their gradient.
        intercept: c, a number, () or (B,).
        noise_variance: σ², at least 0; a number, () or (B,).
        device: of the buffers; by default coeffs'.
        dtype: float32 or float64; by default coeffs', or PyTorch's default.

    Attributes:
        coeffs: (p,) or (B, p).
        intercept: () or (B,).
        noise_deviation: σ, () or (B,), which `noise_variance` is the square of; that is 0 or infinite where the
            series' values are so small or great that their squares leave the dtype's range.
        num_samples: int64 (), how many samples the fit predicts; 0 before a fit.
        num_parameters: int64 (), how many numbers the fit estimates for a series, the noise's variance included.

    Raises:
        ValueError: for both or none of order and coeffs, an order below 0, or numbers that do not fit.

    Example:
        >>> model = ARModel(2).fit(prices, method="burg")
        >>> mean, lower, upper = model.forecast(prices, steps=10)
        >>> ARModel(coeffs=[0.5, 0.3], intercept=30.0).forecast(torch.tensor([100.0, 110.0]), steps=1).mean
        tensor([115.])

    Equivalent to `statsmodels.tsa.ar_model.AutoReg`. Source: Box, Jenkins, "Time Series Analysis: Forecasting and
    Control", 1970; the 5th edition's chapters 3, 5, 7 and 8.
    """

    coeffs: Tensor
    intercept: Tensor
    noise_deviation: Tensor
    num_samples: Tensor
    num_parameters: Tensor

    def __init__(
        self,
        order: int | None = None,
        *,
        coeffs: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        intercept: Tensor | float = 0.0,
        noise_variance: Tensor | float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (order is None) == (coeffs is None):
            raise ValueError(f"order={order}, coeffs={coeffs}: expected one of the two")
        if coeffs is None:
            coeffs = torch.full((integer("order", order, 0),), math.nan, device=device, dtype=dtype)
        coeffs = self._numbers("coeffs", coeffs, dtype, device).detach().clone()
        if coeffs.dim() not in (1, 2):
            raise ValueError(f"coeffs has shape {tuple(coeffs.shape)}: expected (p,) or (B, p)")
        if coeffs.dtype not in DTYPES:
            raise ValueError(f"coeffs has dtype {coeffs.dtype}: expected float32 or float64")
        self.register_buffer("coeffs", coeffs)
        self.register_buffer("intercept", self._of_series("intercept", intercept))
        self.register_buffer("noise_deviation", self._deviation(noise_variance))
        if order is not None:
            self.noise_deviation.fill_(math.nan)
        self.register_buffer("num_samples", torch.zeros((), dtype=torch.int64, device=coeffs.device))
        self.register_buffer("num_parameters", torch.zeros((), dtype=torch.int64, device=coeffs.device))

    @staticmethod
    def _numbers(name: str, value: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
        """What arguments other than series are made: a tensor, by NumPy only of what NumPy knows as an array."""
        if hasattr(value, "__array__"):
            value = tensor_of(name, value)
        return torch.as_tensor(value, dtype=dtype, device=device)

    def _of_series(self, name: str, value: Tensor | float) -> Tensor:
        found = self._numbers(name, value, self.coeffs.dtype, self.coeffs.device).detach()
        shape = self.coeffs.shape[:-1]
        if found.shape not in ((), shape):
            raise ValueError(f"{name} has shape {tuple(found.shape)}: expected a number or {tuple(shape)}")
        return found.expand(shape).clone()

    def _deviation(self, variance: Tensor | float) -> Tensor:
        variance = self._of_series("noise_variance", variance)
        if not bool((variance >= 0).all()):
            raise ValueError(f"noise_variance={variance.tolist()}: expected at least 0")
        return variance.sqrt()

    @property
    def noise_variance(self) -> Tensor:
        """σ², () or (B,); to be assigned, not written into."""
        return self.noise_deviation.square()

    @noise_variance.setter
    def noise_variance(self, variance: Tensor | float) -> None:
        self.noise_deviation = self._deviation(variance)

    @property
    def order(self) -> int:
        """p."""
        return self.coeffs.shape[-1]

    @property
    def series(self) -> int | None:
        """B of a model of each series of a batch; None of a model of one."""
        return None if self.coeffs.dim() == 1 else self.coeffs.shape[0]

    @torch.no_grad()
    def fit(self, x: Tensor, method: str = "least-squares", intercept: bool = True) -> ARModel:
        """Estimates coefficients, intercept and noise variance, in float64; each series of a batch has its own.

        Args:
            x: (T,) or (B, T), float32 or float64, finite; of any size, small or great.
            method: "least-squares": the regression of x[t] on the p values before it, for t from p on, as
                `numpy.linalg.lstsq` and statsmodels' `AutoReg(x, p)`; σ² is the mean square of what is left. Solved by
                the normal equations, which square the condition number: some four digits are left where the noise is
                120 dB below the series. "yule-walker": from the biased autocovariance, always stable, as statsmodels'
                `yule_walker(x, p, method="mle")` (Levinson, "The Wiener RMS Error Criterion in Filter Design and
                Prediction", 1947; Durbin, "The Fitting of Time-Series Models", 1960). "burg": the least forward and
                backward prediction error order by order, stable unless rounding is all of the noise (Burg, "Maximum
                Entropy Spectral Analysis", thesis, 1975); the coefficients are those of statsmodels' `burg(x, p)`,
                whose variance is the mean square of the forward and backward errors within the series. Here, for both
                of the last, σ² is the series' variance times the product of 1 - k² over the reflection coefficients k.
            intercept: whether c is estimated, by regression or, for the other methods, from the series' mean;
                otherwise it is 0.

        Returns:
            the model itself, of x's dtype, device and number of series.

        Raises:
            TypeError: if x is neither a Tensor nor an array of real numbers.
            ValueError: for an unknown method; on a series that is of another dtype, shorter than 2p + 1 samples (one
                more with an intercept; p + 1 for "yule-walker" and "burg"), not finite, constant (without an
                intercept, 0 everywhere), or, for "least-squares", predicted without error by fewer than p lags.
        """
        x = tensor_of("x", x)
        found = estimate(rows_of(x), self.order, method, intercept)
        shape = x.shape[:-1]
        self.coeffs = found.coeffs.reshape(*shape, self.order).to(x.dtype)
        self.intercept = found.intercept.reshape(shape).to(x.dtype)
        self.noise_deviation = found.deviations[:, -1].reshape(shape).to(x.dtype)
        self.num_samples = torch.tensor(found.samples, device=x.device)
        self.num_parameters = torch.tensor(self.order + 1 + intercept, device=x.device)
        return self

    @staticmethod
    @torch.no_grad()
    def select_order(
        x: Tensor, max_order: int, criterion: str = "aic", method: str = "least-squares", intercept: bool = True
    ) -> OrderSelection:
        """Compares all orders from 0 to max_order, fitted to the same samples, by -2 log-likelihood + penalty.

        Args:
            x: (T,) or (B, T), float32 or float64; each series of a batch has an order of its own.
            max_order: the greatest order, at least 1; for least squares the first max_order samples are predictors
                only, whatever the order, as in statsmodels' `ar_select_order`.
            criterion: "aic", 2 for each parameter (Akaike, "A New Look at the Statistical Model Identification",
                1974), or "bic", log of the number of samples (Schwarz, "Estimating the Dimension of a Model", 1978).
            method: as for `fit`.
            intercept: as for `fit`.

        Returns:
            (order, criteria): int64 () or (B,), and float64 (max_order + 1,) or (B, max_order + 1), criteria[..., p]
            being that of order p; 0 is noise around a mean. `ARModel(order).fit(x)` then fits on all samples that the
            order leaves.

        Raises:
            TypeError, ValueError: as for `fit`; on an unknown criterion.
        """
        check_choice("criterion", criterion, CRITERIA)
        x = tensor_of("x", x)
        found = estimate(rows_of(x), integer("max_order", max_order, 1), method, intercept)
        parameters = torch.arange(max_order + 1, device=x.device) + 1 + intercept
        criteria = information(criterion, found.deviations, found.samples, parameters)
        order = criteria.argmin(1)
        return OrderSelection(order.reshape(x.shape[:-1]), criteria.reshape(*x.shape[:-1], max_order + 1))

    @property
    def aic(self) -> Tensor:
        """Akaike's criterion of the last fit, float64 () or (B,), of the Gaussian likelihood with σ² = noise_variance.

        Models fitted to different numbers of samples do not compare; `select_order` takes care of that.

        Raises:
            RuntimeError: before a fit.
        """
        return self._information("aic")

    @property
    def bic(self) -> Tensor:
        """Schwarz's criterion of the last fit; as `aic`."""
        return self._information("bic")

    def _information(self, criterion: str) -> Tensor:
        samples = int(self.num_samples)
        if not samples:
            raise RuntimeError(f"{criterion}: the model was not fitted, and a criterion is one of a fit")
        return information(criterion, self.noise_deviation.double(), samples, self.num_parameters)

    @property
    def is_stable(self) -> Tensor:
        """bool () or (B,): whether the process is stationary, all reflection coefficients being within -1 to 1.

        Raises:
            RuntimeError: before a fit.
        """
        self._check_fitted("is_stable")
        return (reflection_of_coeffs(self.coeffs.double()).abs() < 1).all(-1)

    def forecast(self, x: Tensor, steps: int, level: float = 0.95) -> Forecast:
        """The steps after the end of x, and intervals that each hold the value to come with probability `level`.

        The interval h steps ahead is mean ± z σ sqrt(psi[0]² + ... + psi[h - 1]²), psi being the process's response
        to an impulse (Box and Jenkins, chapter 5); the coefficients count as known. Differentiable in x.

        Args:
            x: (T,) or (B, T), of which the last p values count.
            steps: how many, at least 1.
            level: between 0 and 1.

        Returns:
            (mean, lower, upper), each (steps,) or (B, steps).

        Raises:
            RuntimeError: before a fit.
            TypeError: if x is neither a Tensor nor an array of real numbers.
            ValueError: if x is shorter than p or does not fit the model, or steps or level is out of range.

        Equivalent to statsmodels' `AutoReg.fit().get_prediction(T, T + steps - 1)`.
        """
        steps = integer("steps", steps, 1)
        if not 0 < number("level", level) < 1:
            raise ValueError(f"level={level}: expected a probability between 0 and 1")
        x = self._checked("forecast", x, self.order)
        driven = self.intercept[..., None].expand(*x.shape[:-1], steps)
        mean = functional.ar_recursion(driven, self.coeffs, x[..., x.shape[-1] - self.order :].flip(-1))
        half = _normal_quantile((1 + level) / 2) * self._forecast_deviation(steps)
        return Forecast(mean, mean - half, mean + half)

    def _forecast_deviation(self, steps: int) -> Tensor:
        """(steps,) or (B, steps), the standard deviation of the forecast's error."""
        impulse = torch.zeros(*self.coeffs.shape[:-1], steps, dtype=self.coeffs.dtype, device=self.coeffs.device)
        impulse[..., 0] = 1
        psi = functional.ar_recursion(impulse, self.coeffs)
        return self.noise_deviation[..., None] * psi.square().cumsum(-1).sqrt()

    @torch.no_grad()
    def simulate(
        self,
        steps: int,
        paths: int | None = None,
        *,
        state: Tensor | None = None,
        burn_in: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws paths of the process with Gaussian noise.

        Args:
            steps: T, how many samples of each.
            paths: how many, of a model of one series; None draws one without a batch dimension. A model of B series
                draws one path of each.
            state: (p,) or (B, p), the values before the first sample, the most recent first; by default the process's
                mean, or 0 where it is not stationary.
            burn_in: how many samples are drawn and dropped before the first, for paths that do not show the state.
            generator: makes the draw reproducible; None uses PyTorch's default generator.

        Returns:
            (T,) or (B, T).

        Raises:
            RuntimeError: before a fit.
            ValueError: for a number out of range, a state that does not fit, or paths of a model of several series.

        Equivalent to `statsmodels.tsa.arima_process.arma_generate_sample([1, -c1, ..., -cp], [1], T)` plus the mean.
        """
        self._check_fitted("simulate")
        if paths is not None and self.series is not None:
            raise ValueError(f"paths={paths}: expected None, the model has {self.series} series of its own")
        count = self.coeffs.shape[:-1] if paths is None else (integer("paths", paths, 1),)
        dropped = integer("burn_in", burn_in, 0)
        size = (*count, dropped + integer("steps", steps, 0))
        device = self.coeffs.device if generator is None else generator.device
        noise = functional.randn(*size, generator=generator, dtype=self.coeffs.dtype, device=device)
        driven = torch.addcmul(self.intercept[..., None], noise.to(self.coeffs.device), self.noise_deviation[..., None])
        return functional.ar_recursion(driven, self.coeffs, self._state(state, count))[..., dropped:]

    def _state(self, state: Tensor | None, count: Sequence[int]) -> Tensor:
        shape = (*count, self.order)
        if state is None:
            mean = torch.where(self.is_stable, self.intercept / (1 - self.coeffs.sum(-1)), 0)
            return mean[..., None].expand(shape)
        state = self._numbers("state", state, self.coeffs.dtype, self.coeffs.device)
        if state.shape not in ((self.order,), shape):
            raise ValueError(f"state has shape {tuple(state.shape)}: expected ({self.order},) or {shape}")
        return state.expand(shape)

    def residuals(self, x: Tensor) -> Tensor:
        """x[t] less its prediction from the p values before, for t from p on. Differentiable in x.

        Args:
            x: (T,) or (B, T), T above p.

        Returns:
            (T - p,) or (B, T - p).

        Raises:
            RuntimeError: before a fit.
            TypeError: if x is neither a Tensor nor an array of real numbers.
            ValueError: if x is too short or does not fit the model.
        """
        x = self._checked("residuals", x, self.order + 1)
        found = x[..., self.order :] - self.intercept[..., None]
        for lag in range(1, self.order + 1):
            past = x[..., self.order - lag : x.shape[-1] - lag]
            found = torch.addcmul(found, self.coeffs[..., lag - 1 : lag], past, value=-1)
        return found

    @torch.no_grad()
    def whiteness(self, x: Tensor, lags: int | None = None) -> Whiteness:
        """Ljung and Box's test of whether the residuals of x are white; a small p-value says that the model misses.

        The statistic n (n + 2) sum over k of r[k]² / (n - k), r the residuals' autocorrelation, is compared with the
        chi-squared distribution of lags - p degrees of freedom (Ljung and Box, "On a Measure of Lack of Fit in Time
        Series Models", 1978).

        Args:
            x: (T,) or (B, T), T above p + lags.
            lags: how many, above p; by default p + 10.

        Returns:
            (statistic, p_value), float64, each () or (B,).

        Raises:
            RuntimeError: before a fit.
            TypeError: if x is neither a Tensor nor an array of real numbers.
            ValueError: if lags is not above p, x is too short or does not fit the model, or nothing is left of it.

        Equivalent to statsmodels' `acorr_ljungbox(residuals, [lags], model_df=p)`.
        """
        lags = self.order + 10 if lags is None else integer("lags", lags, self.order + 1)
        x = self._checked("whiteness", x, self.order + lags + 1)
        found = ljung_box(rows_of(self.residuals(x)), lags, self.order)
        return Whiteness(*(value.reshape(x.shape[:-1]) for value in found))

    def spectrum(self, points: int = 512) -> tuple[Tensor, Tensor]:
        """The power spectral density σ² / |1 - sum over i of coeffs[i - 1] exp(-2πi f i)|².

        Args:
            points: how many frequencies, at least 2.

        Returns:
            the frequencies (points,) from 0 to 0.5 cycles a sample, and the density there, (points,) or (B, points);
            over -0.5 to 0.5 it integrates to the variance of the process.

        Raises:
            RuntimeError: before a fit.
            ValueError: if points is below 2.

        Equivalent to `scipy.signal.freqz(sqrt(σ²), [1, -c1, ..., -cp])`, squared.
        """
        self._check_fitted("spectrum")
        points = integer("points", points, 2)
        device, dtype = self.coeffs.device, self.coeffs.dtype
        frequencies = torch.linspace(0, 0.5, points, device=device, dtype=dtype)
        lags = torch.arange(1, self.order + 1, device=device, dtype=dtype)
        phases = 2 * math.pi * lags[:, None] * frequencies
        real, imaginary = 1 - self.coeffs @ phases.cos(), self.coeffs @ phases.sin()
        return frequencies, (self.noise_deviation[..., None] / torch.hypot(real, imaginary)).square()

    def _check_fitted(self, what: str) -> None:
        if bool(self.noise_deviation.isnan().any()):
            raise RuntimeError(f"{what}: the model was not fitted: expected a fit before, or a model made of coeffs")

    def _checked(self, what: str, x: Any, needed: int) -> Tensor:
        """The series as a tensor, where the model is fitted and they suit it."""
        self._check_fitted(what)
        x = tensor_of("x", x, self.coeffs.dtype, self.coeffs.device)
        rows = rows_of(x)
        if x.dtype != self.coeffs.dtype:
            raise ValueError(f"x has dtype {x.dtype}: expected the model's {self.coeffs.dtype}")
        if self.series is not None and x.shape[:-1] != (self.series,):
            raise ValueError(f"x has shape {tuple(x.shape)}: expected ({self.series}, T), the model's series")
        if rows.shape[1] < needed:
            raise ValueError(f"x has {rows.shape[1]} samples: expected at least {needed} for order {self.order}")
        return x

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        loaded, variance = state_dict.get(f"{prefix}coeffs"), state_dict.pop(f"{prefix}noise_variance", None)
        if isinstance(variance, Tensor):
            # Models saved before the deviation took the variance's place.
            state_dict[f"{prefix}noise_deviation"] = variance.sqrt()
        if isinstance(loaded, Tensor) and loaded.dim() in (1, 2) and loaded.shape[-1] == self.order:
            shape = loaded.shape[:-1]
            self.coeffs = self.coeffs.new_zeros(*shape, self.order)
            self.intercept, self.noise_deviation = self.coeffs.new_zeros(shape), self.coeffs.new_ones(shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"order={self.order}, series={self.series}"


def _normal_quantile(probability: float) -> float:
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
