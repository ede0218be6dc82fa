"""Data that was read from outside. Needs pydantic."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Strict"]


class Strict(BaseModel):
    """Unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(defer_build=True, extra="forbid", allow_inf_nan=False)
