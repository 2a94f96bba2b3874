"""The variants of guidance and their options, as the gateway and GET /guidances know them."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.card import GuidanceInfo, OptionInfo

MAX_SCALE = 50.0  # far beyond what any model draws well; keeps float32 away from overflow


def _number(default: float, minimum: float, maximum: float, needs: str = "") -> OptionInfo:
    return OptionInfo(default=default, minimum=minimum, maximum=maximum, needs=needs)


OF_ALL: Mapping[str, OptionInfo] = {
    "start": _number(0.0, 0.0, 1.0),
    "end": _number(1.0, 0.0, 1.0),
    "curve": OptionInfo(default="constant", choices=("constant", "linear", "cosine")),
    "final": _number(1.0, 0.0, MAX_SCALE, needs="curve"),
    "scales": OptionInfo(default=(), minimum=0.0, maximum=MAX_SCALE, many=True),
}
PERTURBATIONS: Mapping[str, OptionInfo] = {"pag_scale": _number(0.0, 0.0, MAX_SCALE), "seg_scale": _number(0.0, 0.0, MAX_SCALE)}
OWN: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, OptionInfo]]] = {
    "cfg": ("CFG", ("classifier_free_guidance", "ClassifierFreeGuidance"), {}),
    "cfg_zero_star": (
        "CFG-Zero*",
        ("zero_star", "ClassifierFreeZeroStarGuidance"),
        {"zero_init": OptionInfo(default=0, minimum=0, maximum=1000, integer=True)},
    ),
    "apg": (
        "APG",
        ("adaptive_projected_guidance", "AdaptiveProjectedGuidance"),
        {"eta": _number(0.0, 0.0, 1.0), "norm_threshold": _number(0.0, 0.0, 1e6), "momentum": _number(0.0, -0.99, 0.99)},
    ),
    "tcfg": ("TCFG", ("tangential_cfg", "TangentialClassifierFreeGuidance"), {}),
}


def catalog(rescale: float = 0.0, *, perturbable: bool = True) -> tuple[GuidanceInfo, ...]:
    """Every variant, `cfg` first; `rescale` is the model's own, `perturbable` whether it has layers that PAG and SEG disturb."""
    common = {"rescale": _number(rescale, 0.0, 1.0), **OF_ALL, **(PERTURBATIONS if perturbable else {})}
    return tuple(GuidanceInfo(id=id, name=name, aliases=aliases, options={**own, **common}) for id, (name, aliases, own) in OWN.items())
