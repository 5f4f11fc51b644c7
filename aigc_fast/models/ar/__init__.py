"""Linear autoregression: fit, order, forecast, simulation and diagnostics."""

from aigc_fast.models.ar.diagnostics import OrderSelection, Whiteness
from aigc_fast.models.ar.model import ARModel, Forecast

__all__ = ["ARModel", "Forecast", "OrderSelection", "Whiteness"]
