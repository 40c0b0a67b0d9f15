"""Keys of a configuration on what is drawn at random for images in training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from oltr_ext.data import GENTLE, Augment
from oltr_ext.data.transforms import Fit, Policy

__all__ = [
    "AugmentConfig",
    "BatchAugment",
    "Fraction",
    "ListAugment",
    "NotNegative",
    "Strict",
    "preset_alone",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentConfig(Strict):
    """See `oltr_ext.data.Augment`. Of a `preset`, gentle or none, these keys say
    otherwise; alone, its name may stand in the place of this group."""

    shift: NotNegative = 0.0
    scale: NotNegative = 0.0
    stretch: NotNegative = 0.0
    rotate: NotNegative = 0.0
    flip: Fraction = 0.0
    erase: Fraction = 0.0
    ink: NotNegative = 0.0


PACK_PRESETS = {"gentle": GENTLE, "none": Augment()}


def _preset_spelt_out(value: object) -> object:
    value = preset_alone(value)
    if not isinstance(value, dict) or "preset" not in value:
        return value
    keys = dict(value)
    name = keys.pop("preset")
    if name not in PACK_PRESETS:
        raise ValueError(f"expected the preset {' or '.join(PACK_PRESETS)} or keys of a group")
    return {**asdict(PACK_PRESETS[name]), **keys}


def preset_alone(value: object) -> object:
    return {"preset": value} if isinstance(value, str) else value


BatchAugment = Annotated[AugmentConfig, BeforeValidator(_preset_spelt_out)]


class ListAugment(Strict):
    """What is done to the images of lists: a preset, and keys to say otherwise (None: as the
    preset says). Of a preset alone, its name may stand in the place of this group.

    See `oltr_ext.data.Recipe` for `fit` to `policy`, `oltr_ext.data.Augment` for the others.
    """

    # auto: gentle for small images, photo for others; see `oltr_ext.config.pictures`
    preset: Literal[
        "auto", "photo", "gentle", "none", "randaugment", "trivialaugment", "augmix"
    ] = "auto"
    fit: Fit | None = None
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    flip: Fraction | None = None
    jitter: Fraction | None = None
    policy: Policy | None = None
    shift: NotNegative | None = None
    scale: NotNegative | None = None
    stretch: NotNegative | None = None
    rotate: NotNegative | None = None
    erase: Fraction | None = None
    ink: NotNegative | None = None
