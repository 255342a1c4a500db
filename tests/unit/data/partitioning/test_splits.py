"""No patient is in two splits; labels are nested, stratified and no more than asked for."""

from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mediffusion_core.common.errors import UserError
from mediffusion_core.data import ClientPartition, Store, partition
from mediffusion_core.settings import DataSettings

MANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def make_store(
    labels: np.ndarray,
    groups: list[str],
    centres: list[str] | None = None,
    units: list[int] | None = None,
) -> Store:
    count = len(groups)
    return Store(
        images=np.zeros((count, 1, 1, 1), np.uint8),
        labels=labels.astype(np.float32),
        groups=tuple(groups),
        units=np.unique(groups, return_inverse=True)[1] if units is None else np.array(units),
        centres=None if centres is None else tuple(centres),
        splits=None,
        image_ids=tuple(f"i{index}" for index in range(count)),
        classes=tuple(f"c{index}" for index in range(labels.shape[1])),
        multi_label=True,
        duplicates=np.empty((0, 2), np.int64),
        bad=(),
        place=Path(),
    )


def configure(kind: str = "uniform", **more: object) -> DataSettings:
    return DataSettings(source="medmnist", image_size=8, channels=1, partition=kind, **more)


@st.composite
def stores(draw: st.DrawFn, largest: int = 9) -> Store:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, largest), min_size=60, max_size=120))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    classes = draw(st.integers(1, 6))
    labels = (rng.random((len(groups), classes)) < rng.uniform(0.01, 0.5, classes)).astype(float)
    labels[rng.random(len(groups)) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
    order = rng.permutation(len(groups))
    names = [f"g{group}" for group in groups[order]]
    return make_store(labels[order], names, [f"s{group % 2}" for group in groups[order]])


def splits(client: ClientPartition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return client.train, client.validation, client.test


def try_partition(
    store: Store, chosen: DataSettings, sites: int, seed: int
) -> tuple[ClientPartition, ...]:
    try:
        return partition(store, chosen, sites, seed)
    except UserError as error:  # one huge patient can leave a small site without a split
        assume("too few" not in str(error))
        raise


@MANY
@given(stores(), st.sampled_from(["uniform", "natural"]), st.integers(0, 9))
def test_each_image_once_and_no_group_on_two_sides(store: Store, kind: str, seed: int) -> None:
    clients = try_partition(store, configure(kind), 2, seed)
    parts = [part for client in clients for part in splits(client)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(store.groups)))
    sides = [{store.groups[index] for index in part} for part in parts]
    assert sum(map(len, sides)) == len(set().union(*sides))
    for client in clients:
        for part in splits(client):
            assert (np.diff(part) > 0).all()
        assert client.labelled.shape == client.train.shape
        if kind == "natural":
            held = np.concatenate(splits(client))
            assert {store.centres[index] for index in held} == {client.site}


@MANY
@given(stores(), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 9))
def test_splits_have_their_shares(store: Store, test: float, held: float, seed: int) -> None:
    chosen = configure(test_fraction=test, validation_fraction=held)
    largest = max(np.unique(store.groups, return_counts=True)[1])
    for client in try_partition(store, chosen, 2, seed):
        count = sum(map(len, splits(client)))
        assert abs(len(client.test) - test * count) <= 4 / 3 * largest + 1e-6
        assert abs(len(client.validation) - held * count) <= 4 / 3 * largest + 1e-6


@MANY
@given(stores(), st.lists(st.floats(0, 1), min_size=2, max_size=4), st.integers(0, 9))
def test_labelled_sets_are_nested_and_within_their_budget(
    store: Store, fractions: list[float], seed: int
) -> None:
    known = ~np.isnan(store.labels).all(axis=1)
    before: list[set[int]] = [set(), set()]
    for fraction in sorted(fractions):
        clients = try_partition(store, configure(labelled_fraction=fraction), 2, seed)
        for site, client in enumerate(clients):
            chosen = set(client.train[client.labelled].tolist())
            assert before[site] <= chosen
            before[site] = chosen
            available = client.train[known[client.train]]
            assert chosen <= set(available.tolist())
            assert len(chosen) <= ceil(fraction * len(available)) + len(store.classes)
            assert len(chosen) > fraction * len(available) - 9 - 1e-6
            assert client.validation_labelled == (fraction > 0)
            groups = {store.groups[index] for index in chosen}
            whole = {index for index in available.tolist() if store.groups[index] in groups}
            assert whole == chosen


@MANY
@given(stores(largest=1), st.floats(0.001, 1), st.integers(0, 9))
def test_every_class_keeps_a_label_where_groups_are_small(
    store: Store, fraction: float, seed: int
) -> None:
    for client in try_partition(store, configure(labelled_fraction=fraction), 2, seed):
        present = (store.labels[client.train] == 1).any(axis=0)
        kept = (store.labels[client.train[client.labelled]] == 1).any(axis=0)
        assert (kept == present).all()


@MANY
@given(stores(), st.integers(0, 9))
def test_neither_row_order_nor_fraction_changes_who_stands_where(store: Store, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(store.groups))
    turned = make_store(store.labels[order], [store.groups[index] for index in order])
    one = try_partition(store, configure(labelled_fraction=0.3), 2, seed)
    other = partition(turned, configure(labelled_fraction=0.3), 2, seed)
    none = partition(store, configure(labelled_fraction=0), 2, seed)
    for left, right, bare in zip(one, other, none, strict=True):
        for part, turned_part, bare_part in zip(
            splits(left), splits(right), splits(bare), strict=True
        ):
            assert set(part.tolist()) == set(order[turned_part].tolist())
            assert np.array_equal(part, bare_part)
        assert set(left.train[left.labelled].tolist()) == set(
            order[right.train[right.labelled]].tolist()
        )
        assert not bare.labelled.any()
        assert not bare.validation_labelled


def imbalanced() -> Store:
    """1,000 patients of one image; 40 have the rare class, 300 the common one."""
    labels = np.zeros((1000, 2))
    labels[:40, 0] = 1
    labels[40:340, 1] = 1
    return make_store(labels, [f"g{index}" for index in range(1000)])


def test_rare_classes_get_their_share_everywhere() -> None:
    store = imbalanced()
    chosen = configure(test_fraction=0.2, validation_fraction=0.1, labelled_fraction=0.1)
    (client,) = partition(store, chosen, 1, 0)
    rare, common = store.labels[:, 0], store.labels[:, 1]
    assert abs(rare[client.test].sum() - 8) <= 1
    assert abs(rare[client.validation].sum() - 4) <= 1
    assert abs(common[client.test].sum() - 60) <= 1
    labelled = client.train[client.labelled]
    assert len(labelled) == 70
    assert abs(rare[labelled].sum() - 2.8) <= 1.5
    assert abs(common[labelled].sum() - 21) <= 1.5


def test_every_labelled_set_has_each_class_in_its_share() -> None:
    """The protocol of ChestX-ray14: nested sets of 2 to 20 %, stratified by 14 findings at once."""
    rng = np.random.default_rng(0)
    labels = rng.random((3000, 14)) < np.geomspace(0.01, 0.25, 14)
    store = make_store(labels, [f"g{index}" for index in range(3000)])
    for fraction in (0.02, 0.05, 0.1, 0.15, 0.2):
        (client,) = partition(store, configure(labelled_fraction=fraction), 1, 0)
        labelled = labels[client.train[client.labelled]].sum(axis=0)
        # Drawn at random the commonest finding alone would be off by 9 (one σ) at 20 %.
        assert np.abs(labelled - fraction * labels[client.train].sum(axis=0)).max() < 5


def test_one_patient_of_many_images_does_not_end_a_small_labelled_set() -> None:
    groups = ["giant"] * 40 + [f"g{index}" for index in range(400)]
    store = make_store(np.ones((440, 1)), groups)
    for seed in range(20):
        (client,) = partition(store, configure(labelled_fraction=0.1), 1, seed)
        assert abs(client.labelled.sum() - 0.1 * len(client.train)) <= 1


def test_one_patient_who_alone_has_a_class_does_not_keep_all_labels_back() -> None:
    groups = ["giant"] * 60 + [f"g{index}" for index in range(900)]
    labels = np.zeros((960, 3))
    labels[:60, 2] = 1
    labels[60:, :2] = np.random.default_rng(0).random((900, 2)) < 0.3
    store = make_store(labels, groups)
    for seed in range(6):
        for fraction in (0.02, 0.05, 0.1):
            (client,) = partition(store, configure(labelled_fraction=fraction), 1, seed)
            assert abs(client.labelled.sum() - fraction * len(client.train)) <= 3


def test_seeds_differ_and_repeat() -> None:
    store = imbalanced()
    first, again, other = (partition(store, configure(), 3, seed) for seed in (0, 0, 1))
    assert all(
        np.array_equal(left.train, right.train) for left, right in zip(first, again, strict=True)
    )
    assert not np.array_equal(first[0].train, other[0].train)
    assert [client.site for client in first] == ["site-0", "site-1", "site-2"]


def test_fraction_by_site() -> None:
    store = imbalanced()
    chosen = configure(labelled_fraction=0.2, labelled_fraction_by_site={"site-1": 0.0})
    first, second = partition(store, chosen, 2, 0)
    assert first.labelled.sum() == round(0.2 * len(first.train))
    assert first.validation_labelled
    assert not second.labelled.any()
    assert not second.validation_labelled


def test_user_errors_name_the_allowed_values() -> None:
    labels, groups = np.ones((30, 1)), [f"g{index}" for index in range(30)]
    plain = make_store(labels, groups)
    placed = make_store(labels, groups, ["bern", "aarau", "chur"] * 10)
    with pytest.raises(UserError, match=r"data.partition=uniform"):
        partition(plain, configure("natural"), 2, 0)
    with pytest.raises(UserError, match=r"federation.num_sites is 2 .* 3 centres: aarau, bern"):
        partition(placed, configure("natural"), 2, 0)
    with pytest.raises(UserError, match=r"'basel', allowed are aarau, bern, chur"):
        partition(placed, configure("natural", labelled_fraction_by_site={"basel": 1.0}), 3, 0)
    with pytest.raises(UserError, match="only 30 groups"):
        partition(plain, configure(), 31, 0)
    with pytest.raises(UserError, match=r"site-0 has 1 groups .* too few"):
        partition(plain, configure(), 30, 0)
    assert [s.site for s in partition(placed, configure("natural"), 3, 0)] == [
        "aarau", "bern", "chur",
    ]  # fmt: skip
