"""The overrides of a sweep, in the grammar of Hydra's multirun."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from mediffusion_core.common.errors import UserError
from simulations.sweeps.space import Interval, parse_space

PARSER = OverridesParser.create()

NUMBERS = st.integers(-5, 100).map(str) | st.floats(-1e3, 1e3).map(repr)
WORDS = st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True)
LISTS = st.lists(NUMBERS, max_size=3).map(lambda items: f"[{','.join(items)}]")
ELEMENTS = NUMBERS | WORDS | LISTS | st.just("'a b'")  # Hydra's choice(...) takes no null
ONE = ELEMENTS | st.just("null")
SEVERAL = st.lists(ONE, min_size=2, max_size=4, unique=True).map(",".join)
CHOICE = st.lists(ELEMENTS, min_size=1, max_size=4, unique=True).map(
    lambda values: f"choice({','.join(values)})"
)
RANGE = st.tuples(st.integers(-3, 3), st.integers(4, 9), st.integers(1, 3)).map(
    lambda bounds: f"range({bounds[0]},{bounds[1]},{bounds[2]})"
)
KEYS = ("seed", "federation.num_rounds", "model.unet.channels", "data.labelled_fraction", "+new")


def parsed(overrides: object) -> list[tuple[str, str]]:
    """Overrides as Hydra reads them, without the way they were written."""
    read = [PARSER.parse_override(str(one)) for one in overrides]  # type: ignore[attr-defined]
    return sorted((one.get_key_element(), repr(one.value())) for one in read)


@given(st.dictionaries(st.sampled_from(KEYS), ONE | SEVERAL | CHOICE | RANGE, min_size=1))
def test_a_grid_is_that_of_hydras_own_multirun(values: dict[str, str]) -> None:
    given_overrides = [f"{key}={value}" for key, value in values.items()]
    read = PARSER.parse_overrides(given_overrides)
    texts = [list(one.sweep_string_iterator()) for one in read if one.is_sweep_override()]
    if not texts or any(len(set(one)) < len(one) for one in texts):
        with pytest.raises(UserError):
            parse_space(given_overrides)
        return
    space = parse_space(given_overrides)
    found = [
        space.overrides({**chosen, **seed})
        for chosen in space.grid()
        for seed in [{"seed": one} for one in space.seeds] or [{}]
    ]
    (expected,) = BasicSweeper.split_arguments(read, None)
    assert sorted(map(parsed, found)) == sorted(map(parsed, expected))


def test_fixed_settings_stay_as_they_were_written() -> None:
    space = parse_space(["data.root=/data/a (b)", "seed=1,2", "model=tiny"])
    assert space.seeds == ("1", "2")
    assert list(space.grid()) == [{}]
    assert space.overrides({"seed": "2"}) == ("data.root=/data/a (b)", "seed=2", "model=tiny")


def test_values_of_a_text_need_not_be_quoted_again() -> None:
    space = parse_space(["data.root=choice('/data/a b',/data/c)"])
    assert [one["data.root"] for one in space.grid()] == ["'/data/a b'", "'/data/c'"]


def test_intervals_are_for_a_search() -> None:
    space = parse_space(
        ["a=interval(1,2)", "b=tag(log,interval(1e-4,1e-2))", "c=int(interval(1,8))"]
    )
    assert space.axes == (
        Interval("a", 1.0, 2.0, log=False),
        Interval("b", 1e-4, 1e-2, log=True),
        Interval("c", 1, 8, log=False),
    )
    with pytest.raises(UserError, match="a: an interval needs --trials"):
        list(space.grid())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "no setting has several values"),
        ([], "no setting has several values"),
        (["seed=1,2", "seed=3"], "seed varies and stands there twice"),
        (["a=1,2", "+a=3"], "a varies and stands there twice"),
        (["a=1,1"], "a value stands there twice"),
        (["a=range(3,1)"], "no value is in it"),
        (["a=range(1,3,0)"], "no value is in it"),
        (["model=glob(*)"], "glob lists no values here"),
        (["data.classes=NV,MEL"], r"data.classes holds text.*choice\(...\)"),
        (["seed=interval(0,9)"], "seeds are repetitions"),
        (["a=interval(2,1)"], "first bound must be below"),
        (["a=tag(log,interval(0,1))"], "starts above 0"),
        (["a=tag(loud,interval(0,1))"], "no tag 'loud'; allowed: log"),
    ],
)
def test_a_mistake_in_the_space_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space(overrides)
