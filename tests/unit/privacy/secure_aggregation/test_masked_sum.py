"""Masked sums: they equal plain ones, survive absent sites, and tell no site's own part."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from mediffusion_core.common.errors import RefusedError
from mediffusion_core.privacy.secure_aggregation.sites import Numbers, PublicKeys, SiteRound
from mediffusion_core.privacy.secure_aggregation.sum import MaskedSum

SITES, THRESHOLD, LENGTH = 4, 3, 50


def vectors(count: int = SITES) -> list[Numbers]:
    generator = np.random.default_rng(0)
    drawn = generator.integers(-(2**40), 2**40, (count, LENGTH))
    return list(drawn.astype(np.int64).view(np.uint64))


class Round:
    """All sites of one round, of which some fall silent before a stage."""

    def __init__(self, count: int = SITES, dealing: Collection[int] = range(SITES)) -> None:
        self.sites = [SiteRound.begun(1, SITES, THRESHOLD) for _ in range(count)]
        self.roster = [site.public_keys() for site in self.sites]
        self.dealing = [number for number in dealing if number < count]
        self.dealt = {number: self.sites[number].deal(self.roster) for number in self.dealing}

    def for_site(self, number: int) -> dict[int, bytes]:
        return {one: parts[number] for one, parts in self.dealt.items() if one != number}

    def masked(self, number: int, vector: Numbers) -> Numbers:
        # Through its text, as a site keeps a round between two messages.
        self.sites[number] = SiteRound.parsed(self.sites[number].text())
        return self.sites[number].mask(self.for_site(number), vector)

    def sum(
        self, given: list[Numbers], answering: Collection[int], revealing: Collection[int]
    ) -> Numbers:
        total = MaskedSum(LENGTH)
        for number in answering:
            total.add(number, self.masked(number, given[number]))
        shares = {one: self.sites[one].reveal(sorted(answering)) for one in revealing}
        revealed = [
            {one: given[site] for one, given in shares.items() if site in given}
            for site in range(len(self.roster))
        ]
        return total.unmasked(self.roster, self.dealing, revealed, THRESHOLD)


@pytest.mark.parametrize(
    ("dealing", "answering", "revealing"),
    [
        ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
        ((0, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3)),
        ((0, 1, 2, 3), (0, 1, 3), (0, 1, 3)),
        ((0, 1, 2, 3), (1, 2, 3), (1, 2, 3)),
        ((0, 2, 3), (0, 2, 3), (0, 2, 3)),
    ],
)
def test_the_unmasked_sum_is_the_sum_of_the_answering_sites(
    dealing: tuple[int, ...], answering: tuple[int, ...], revealing: tuple[int, ...]
) -> None:
    given = vectors()
    found = Round(dealing=dealing).sum(given, answering, revealing)
    np.testing.assert_array_equal(found, sum(given[number] for number in answering))


def test_a_site_that_never_came_is_not_in_the_roster() -> None:
    given = vectors()
    found = Round(count=3).sum(given, (0, 1, 2), (0, 1, 2))
    np.testing.assert_array_equal(found, given[0] + given[1] + given[2])


@pytest.mark.parametrize("value", [0, 2**40])
def test_a_masked_vector_is_uniform_whatever_the_vector(value: int) -> None:
    vector = np.full(20_000, value, dtype=np.uint64)
    masked = Round().masked(0, vector)
    assert kstest(masked / 2.0**64, "uniform").pvalue > 1e-4
    low = (masked & np.uint64(0xFFFF)) / 2.0**16
    assert kstest(low + 2.0**-17, "uniform").pvalue > 1e-4


def test_no_vector_is_unmasked_with_the_shares_of_the_sum() -> None:
    """The server has b of each site in the sum, and no pair's key: one vector stays uniform."""
    one, vector = Round(), np.zeros(20_000, dtype=np.uint64)
    masked = [site.mask(one.for_site(number), vector) for number, site in enumerate(one.sites)]
    alone = MaskedSum(len(vector))
    alone.add(0, masked[0])
    shares = {number: site.reveal(range(SITES)) for number, site in enumerate(one.sites)}
    revealed = [{giver: given[site] for giver, given in shares.items()} for site in range(SITES)]
    with pytest.raises(ValueError, match=r"false shares|no secret"):
        alone.unmasked(one.roster, one.dealing, revealed, THRESHOLD)
    without = alone.unmasked(one.roster, [0], revealed, THRESHOLD)
    assert kstest(without / 2.0**64, "uniform").pvalue > 1e-4


def test_no_site_gives_shares_of_both_secrets() -> None:
    one = Round()
    for number, vector in enumerate(vectors()):
        one.masked(number, vector)
    first = one.sites[0].reveal([0, 1, 2, 3])
    text = one.sites[0].text()
    assert all(share.hex() in text for share in first.values())
    one.sites[0].stage = None  # type: ignore[assignment]  # as after its answer
    with pytest.raises(RefusedError):
        one.sites[0].reveal([0, 1, 2])


def test_too_few_shares_unmask_nothing() -> None:
    with pytest.raises(ValueError, match="2 shares of a secret, and 3 are needed"):
        Round().sum(vectors(), (0, 1, 2, 3), (0, 1))


def test_a_second_vector_of_a_site_is_refused() -> None:
    total = MaskedSum(LENGTH)
    total.add(0, vectors()[0])
    with pytest.raises(ValueError, match="second vector"):
        total.add(0, vectors()[0])


def test_the_keys_of_the_masks_do_not_outlast_the_vector() -> None:
    one = Round()
    private = one.sites[0].masking
    one.masked(0, vectors()[0])
    assert private not in one.sites[0].text() and not one.sites[0].own_key


class TestRefused:
    """A site answers each message once, in order, and to enough sites only."""

    def test_a_short_roster(self) -> None:
        site = SiteRound.begun(1, SITES, THRESHOLD)
        other = SiteRound.begun(1, SITES, THRESHOLD).public_keys()
        with pytest.raises(RefusedError, match="a roster of 2 sites; allowed are 3 to 4"):
            site.deal([site.public_keys(), other])

    def test_a_long_roster(self) -> None:
        rounds = [SiteRound.begun(1, SITES, THRESHOLD) for _ in range(5)]
        with pytest.raises(RefusedError, match="a roster of 5 sites"):
            rounds[0].deal([one.public_keys() for one in rounds])

    def test_a_roster_without_this_site(self) -> None:
        rounds = [SiteRound.begun(1, SITES, THRESHOLD) for _ in range(4)]
        with pytest.raises(RefusedError, match="without this site's keys"):
            rounds[0].deal([one.public_keys() for one in rounds[1:]])

    def test_a_key_twice(self) -> None:
        rounds = [SiteRound.begun(1, SITES, THRESHOLD) for _ in range(4)]
        roster = [one.public_keys() for one in rounds]
        roster[3] = PublicKeys(roster[2].masking, roster[3].sealing)
        with pytest.raises(RefusedError, match="one key twice"):
            rounds[0].deal(roster)

    @pytest.mark.parametrize("weak", ["masking", "sealing"])
    def test_a_key_of_small_order(self, weak: str) -> None:
        rounds = [SiteRound.begun(1, SITES, THRESHOLD) for _ in range(4)]
        roster = [one.public_keys() for one in rounds]
        roster[3] = replace(roster[3], **{weak: bytes(32)})
        with pytest.raises(RefusedError, match="small order"):
            rounds[0].deal(roster)

    def test_shares_under_another_roster(self) -> None:
        one = Round()
        other = SiteRound.begun(1, SITES, THRESHOLD)
        swapped = [one.roster[0], one.roster[1], other.public_keys(), one.roster[3]]
        first = SiteRound.parsed(one.sites[0].text())
        first.roster = [(keys.masking.hex(), keys.sealing.hex()) for keys in swapped]
        with pytest.raises(RefusedError, match="of site 1 cannot be opened"):
            first.refuse_dealt(one.for_site(0))

    def test_a_sum_without_the_site_itself(self) -> None:
        one = Round()
        one.masked(0, vectors()[0])
        with pytest.raises(RefusedError, match="a sum without this site"):
            one.sites[0].reveal([1, 2, 3])

    def test_two_deals(self) -> None:
        one = Round()
        with pytest.raises(RefusedError, match="after dealt that belongs after advertised"):
            one.sites[0].deal(one.roster)

    def test_two_vectors(self) -> None:
        one = Round()
        one.masked(0, vectors()[0])
        with pytest.raises(RefusedError, match="after masked that belongs after dealt"):
            one.masked(0, vectors()[1])

    def test_shares_of_too_few(self) -> None:
        with pytest.raises(RefusedError, match="shares of 2 sites; 3 are needed"):
            Round(dealing=(0, 1)).masked(0, vectors()[0])

    def test_shares_that_were_changed(self) -> None:
        one = Round()
        given = one.for_site(0)
        given[1] = given[1][:-1] + bytes([given[1][-1] ^ 1])
        with pytest.raises(RefusedError, match="of site 1 cannot be opened"):
            one.sites[0].refuse_dealt(given)

    @pytest.mark.parametrize("answered", [(0, 1), (0, 1, 2, 7)])
    def test_a_sum_of_too_few_or_others(self, answered: tuple[int, ...]) -> None:
        one = Round()
        one.masked(0, vectors()[0])
        with pytest.raises(RefusedError, match="a sum over"):
            one.sites[0].reveal(answered)

    @pytest.mark.parametrize("text", ["{}", '{"stage": "later"}', "no JSON", "[]"])
    def test_a_text_of_no_round(self, text: str) -> None:
        with pytest.raises(ValueError):
            SiteRound.parsed(text)
