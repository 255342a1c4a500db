"""The settings that a sweep varies, in the grammar of Hydra's multirun.

`seed=1,2`, `choice(...)` and `range(...)` list values; `interval(a,b)`, `int(interval(a,b))` and
`tag(log,interval(a,b))` are for a search. Hydra's own parser reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    QuotedString,
    Transformer,
    ValueType,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from configs.compose import quoted
from configs.quoting import is_text, rejoined
from mediffusion_core.common.errors import UserError

SEED = "seed"


@dataclass(frozen=True)
class Values:
    """A setting with the values that it takes, as they stand in overrides."""

    key: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Interval:
    """A number between two bounds, which it may equal; whole if the bounds are."""

    key: str
    low: int | float
    high: int | float
    log: bool


Axis = Values | Interval


@dataclass(frozen=True)
class Space:
    """The overrides of a sweep in their order, some of them with several values."""

    parts: tuple[str | Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The varied settings without the seed."""
        return tuple(one for one in self._varied() if one.key != SEED)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The values of the seed; empty if it does not vary."""
        found = [one for one in self._varied() if one.key == SEED]
        return found[0].texts if found and isinstance(found[0], Values) else ()

    def grid(self) -> Iterator[dict[str, str]]:
        """Each combination of values, without the seed.

        Raises:
            UserError: if a setting has an interval.
        """
        for axis in self.axes:
            if isinstance(axis, Interval):
                raise UserError(
                    f"{axis.key}: an interval needs --trials N; a grid takes values such as 1,2"
                )
        texts = [axis.texts for axis in self.axes if isinstance(axis, Values)]
        for chosen in product(*texts):
            yield dict(zip((axis.key for axis in self.axes), chosen, strict=True))

    def overrides(self, chosen: Mapping[str, str]) -> tuple[str, ...]:
        """All overrides with one value for each varied setting, the seed among them."""
        return tuple(
            part if isinstance(part, str) else f"{part.key}={chosen[part.key]}"
            for part in self.parts
        )

    def _varied(self) -> Iterator[Axis]:
        return (part for part in self.parts if not isinstance(part, str))


def parse_space(overrides: Sequence[str]) -> Space:
    """The space that overrides span.

    Args:
        overrides: As Hydra's multirun takes them.

    Raises:
        UserError: if nothing varies, a varied setting stands there twice, or its values cannot be
            listed.
    """
    parts = tuple(_part(override) for override in rejoined(overrides))
    keys = [_key(one) for one in parts]
    varied = [one.key for one in parts if not isinstance(one, str)]
    if not varied:
        raise UserError("no setting has several values; give for example seed=1,2")
    for key in varied:
        if keys.count(key.lstrip("+")) > 1:
            raise UserError(f"{key} varies and stands there twice; give it once")
    return Space(parts)


def _key(part: str | Axis) -> str:
    name = part.partition("=")[0] if isinstance(part, str) else part.key
    return name.lstrip("+~")


def _part(override: str) -> str | Axis:
    key, _, value = override.partition("=")
    try:
        # Under another name: those of the user's own need not be Hydra's.
        parsed = OverridesParser.create().parse_override(f"x={value}")
    except (HydraException, OmegaConfBaseException, RecursionError):
        return override  # a text without quotation marks, or a mistake that `compose` names
    if not parsed.is_sweep_override():
        return override
    if parsed.is_interval_sweep():
        return _interval(override, key, parsed.value())
    if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{override}: glob lists no values here; list them, as in {key}=a,b")
    if parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP and is_text(_key(override)):
        raise UserError(
            f"{override}: {key} holds text, which may have commas; write choice(...) for several "
            "values, [...] for a list, or quotation marks around one text"
        )
    return Values(key, _texts(override, key, parsed))


def _texts(override: str, key: str, parsed: Override) -> tuple[str, ...]:
    try:
        elements = list(parsed.sweep_iterator())
    except (HydraException, ValueError):  # a step of 0
        elements = []
    if not elements:
        raise UserError(f"{override}: no value is in it")
    texts = tuple(_text(key, element) for element in elements)
    if len(set(texts)) < len(texts):
        raise UserError(f"{override}: a value stands there twice")
    return texts


def _text(key: str, element: object) -> str:
    """A value as an override has it."""
    if is_text(key.lstrip("+")) and isinstance(element, str | QuotedString):
        return quoted(element.text if isinstance(element, QuotedString) else element)
    return str(Transformer.str(element))  # type: ignore[arg-type]


def _interval(override: str, key: str, interval: object) -> Interval:
    assert isinstance(interval, IntervalSweep)
    low, high, log = interval.start, interval.end, "log" in interval.tags
    if key == SEED:
        raise UserError(f"{override}: seeds are repetitions and not searched; list them as in 1,2")
    if low is None or high is None or not low < high:
        raise UserError(f"{override}: the first bound must be below the second one")
    if log and low <= 0:
        raise UserError(f"{override}: a logarithmic interval starts above 0")
    if unknown := interval.tags - {"log"}:
        raise UserError(f"{override}: no tag {min(unknown)!r}; allowed: log")
    return Interval(key, low, high, log)
