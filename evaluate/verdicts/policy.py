"""A policy: rules on measured intervals, read from TOML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from clipq.cpu import check_known
from clipq.errors import ClipqError, PolicyError
from clipq.evaluate.metrics.table import METRICS, metric_of, spoken
from clipq.evaluate.verdicts.limits import LIMITS, QUANTITIES
from clipq.fields import Flag, plain_number
from clipq.given import hint
from clipq.text_files import parse_toml, read_text

BUILT_IN = ("strict", "mlperf-99", "mlperf-99.9", "demo")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _known_levels(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    try:
        check_known(value or ())
    except ClipqError as error:
        raise ValueError(str(error)) from error
    return value


_Patterns = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_list)]
_Levels = Annotated[_Patterns | None, AfterValidator(_known_levels)]


class Rule(BaseModel):
    """One requirement of every engine that ``bundle`` and ``recipe`` match, on every number that the rest matches.

    Patterns are shell patterns. ``cpu`` names levels of CPUs (``vnni``): the rule is for engines measured there, and
    fails for an engine that was not, for no level stands for another. ``view`` and ``group`` default to all of them,
    parts of a view (``race=Black``) left out. A rule that matches nothing fails, unless it is ``optional``
    (``"engine"``: only where no engine matches). ``confidence = 0`` judges the value alone. Limits are on the value, on
    value − reference, and on value ÷ reference, in the units of results.csv.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    view: str | None = None
    group: str | None = None
    bundle: _Patterns = ("*",)
    recipe: _Patterns = ("*",)
    cpu: _Levels = None
    min: float | None = None
    max: float | None = None
    min_delta: float | None = None
    max_delta: float | None = None
    min_ratio: float | None = None
    max_ratio: float | None = None
    confidence: float | None = Field(default=None, ge=0, lt=1)
    deployed: Flag = True
    optional: Flag | Literal["engine"] = False

    _plain = field_validator(*LIMITS, "confidence", mode="before")(plain_number)

    @model_validator(mode="after")
    def _has_a_limit(self) -> Rule:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"a rule on {self.metric!r} needs a limit: {', '.join(LIMITS)}")
        if any(not math.isfinite(getattr(self, name)) for name in given):
            raise ValueError(f"a limit of the rule on {self.metric!r} is not finite")
        for quantity in QUANTITIES:
            least, most = (getattr(self, limit.name) for limit in LIMITS.values() if limit.quantity is quantity)
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"no number passes the rule on {self.metric!r}: its min {least} is above its max {most}"
                )
        base = metric_of(self.metric).name
        if set("*?[") & set(self.metric):
            return self
        if base not in METRICS:
            raise ValueError(f"there is no metric {self.metric!r}{hint(base, METRICS, spoken())}")
        forms = METRICS[base].forms or ("",)
        if self.metric.removeprefix(base) not in forms:
            known = ", ".join(base + form for form in forms)
            raise ValueError(f"there is no metric {self.metric!r}; there is {known}")
        return self

    def limits(self) -> list[tuple[str, float]]:
        """The limits given, by name."""
        return [(name, getattr(self, name)) for name in LIMITS if getattr(self, name) is not None]


class Policy(BaseModel):
    """Rules, their default confidence, and the views and CPUs that every engine must have been measured on.

    ``reference`` asks that the references themselves are right: ``verified`` against a published value, or at least
    ``not anomalous``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidence: float = Field(default=0.95, ge=0, lt=1)
    required: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    cpu: _Levels = None
    reference: Literal["verified", "not anomalous"] | None = None
    rule: tuple[Rule, ...] = ()

    _plain = field_validator("confidence", mode="before")(plain_number)

    @model_validator(mode="after")
    def _asks_something(self) -> Policy:
        if not (self.rule or self.required or self.cpu or self.reference):
            raise ValueError(
                "it has no [[rule]], requires no view, names no cpu and asks nothing of the reference: "
                "a gate that cannot fail"
            )
        return self


def read_policy(name: str) -> Policy:
    """A built-in policy or a file; raises PolicyError with everything that is wrong with it."""
    try:
        return Policy.model_validate(parse_toml(policy_text(name), name, PolicyError))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {_said(one)}".lstrip(": ") for one in error.errors())
        raise PolicyError(f"{name}: {wrong}") from error


def _said(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        *table, key = map(str, error["loc"])
        if not table and key in Rule.model_fields:
            return "it belongs into a [[rule]]"
        return f"unknown key{hint(key, Rule.model_fields if table else (*Policy.model_fields, *Rule.model_fields))}"
    return error["msg"].removeprefix("Value error, ")


def policy_text(name: str) -> str:
    """The TOML of a built-in policy or a file."""
    if name in BUILT_IN:
        return (resources.files("clipq.evaluate.verdicts") / "policies" / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return read_text(Path(name), PolicyError)
    except PolicyError as error:
        raise PolicyError(f"{error}; built in are {', '.join(BUILT_IN)}{hint(name, BUILT_IN)}") from error
