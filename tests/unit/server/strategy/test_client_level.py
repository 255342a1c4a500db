"""The server's noise that hides a whole site, its cost, and settings that exclude it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, HEAD_MOMENTS, UNET, UNET_MOMENTS
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.settings import ClientLevelSettings
from server.messages import Reply
from server.strategy.client_level import FILE, TIP, ClientLevelPrivacy
from unit.server.test_run import short_run

NO_NOISE = 1e-12
SENT: Mapping[str, Mapping[str, Tensor]] = {
    UNET: {"conv.weight": torch.tensor([[1.0, -2.0]]), "conv.bias": torch.tensor([0.5])},
    HEAD: {"weight": torch.tensor([3.0, 4.0])},
}
VALUES = st.floats(-100, 100, width=32)
CHANGES = st.lists(st.tuples(*[VALUES] * 5), min_size=1, max_size=4)


def privacy(folder: Path, noise: float, bound: float = 1.0, sites: int = 4) -> ClientLevelPrivacy:
    settings = ClientLevelSettings(noise_multiplier=noise, max_update_norm=bound)
    return ClientLevelPrivacy(settings, sites, folder)


def means(
    hidden: ClientLevelPrivacy,
    replies: Sequence[Reply],
    sent: Mapping[str, Mapping[str, Tensor]] = SENT,
    number: int = 1,
) -> Mapping[str, Mapping[str, Tensor]]:
    gathered = hidden.gather("joint", number, sent)
    for one in replies:
        gathered.take(one)
    return gathered.aggregated().components


def reply(change: tuple[float, ...], site: str = "labelled") -> Reply:
    a, b, c, d, e = change
    changes = {
        UNET: {"conv.weight": torch.tensor([[a, b]]), "conv.bias": torch.tensor([c])},
        HEAD: {"weight": torch.tensor([d, e])},
    }
    components = {
        component: {name: value + changes[component][name] for name, value in state.items()}
        for component, state in SENT.items()
    }
    return Reply(
        site, components, {"images_seen": 10.0, "labelled_seen": float(site != "unlabelled")}
    )


def vector(components: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    return torch.cat([value.flatten() for state in components.values() for value in state.values()])


@given(changes=CHANGES, bound=st.floats(0.1, 50))
def test_the_mean_is_of_changes_cut_to_the_bound_as_one_vector(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, ...]], bound: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    found = means(privacy(folder, NO_NOISE, bound), [reply(c) for c in changes])
    expected = torch.zeros(5, dtype=torch.float64)
    for change in changes:
        # In float32, as the weights are sent.
        moved = (vector(SENT) + torch.tensor(change)).double() - vector(SENT).double()
        expected += moved * min(1.0, bound / max(float(moved.norm()), 1e-30))
    moved = vector(found).double() - vector(SENT).double()
    assert torch.allclose(moved, expected / 4, atol=1e-5)
    assert float(moved.norm()) <= len(changes) * bound / 4 + 1e-5


def test_a_site_without_labels_has_no_part_in_the_head(tmp_path: Path) -> None:
    change = (0.1, 0.0, 0.0, 0.3, 0.0)
    found = means(privacy(tmp_path, NO_NOISE), [reply(change, "unlabelled")])
    assert torch.allclose(found[HEAD]["weight"], SENT[HEAD]["weight"])
    assert float(found[UNET]["conv.weight"][0, 0]) == pytest.approx(1 + 0.1 / 4)


def test_the_noise_is_that_of_the_bound_over_the_sites_and_never_the_same(tmp_path: Path) -> None:
    sent = {UNET: {"weight": torch.zeros(100_000)}}
    hidden = privacy(tmp_path, noise=2.0, bound=3.0, sites=5)
    first, second = (means(hidden, [], sent, n)[UNET]["weight"] for n in (1, 2))
    assert float(first.std()) == pytest.approx(2.0 * 3.0 / 5, rel=0.02)
    assert float(first.mean()) == pytest.approx(0, abs=0.02)
    together = torch.stack([first, second])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.02


def test_every_noised_mean_counts_also_after_a_kill(tmp_path: Path) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    assert hidden.spent()["epsilon"] == 0.0
    for number in (1, 2, 2):  # the second round was made again
        means(hidden, [], number=number)
    with (tmp_path / FILE).open("a") as file:
        file.write('\n{"stage":"jo')  # killed while it was written
    again = privacy(tmp_path, noise=4.0)
    means(again, [], number=3)
    assert again.spent()["rounds"] == 5
    assert again.spent()["epsilon"] == pytest.approx(epsilon([Charge(1.0, 4.0, 5)], 0.01))


@pytest.mark.parametrize("change", ["removed", "edited", "swapped"])
def test_a_changed_record_of_noised_means_is_refused(tmp_path: Path, change: str) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    for number in (1, 2, 3):
        means(hidden, [], number=number)
    one, other, last = (tmp_path / FILE).read_text().split()
    lines = {
        "removed": [one, last],
        "edited": [one, other.replace('"round":2', '"round":1'), last],
        "swapped": [other, one, last],
    }
    (tmp_path / FILE).write_text("\n".join(lines[change]))
    with pytest.raises(UserError, match="is not what this run wrote"):
        privacy(tmp_path, noise=4.0).spent()


def test_a_record_with_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    for number in (1, 2):
        means(hidden, [], number=number)
    record = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(record.replace(b'"round":2', b'"round":\xff'))
    with pytest.raises(UserError, match="noised mean 2 is another one"):
        privacy(tmp_path, noise=4.0).spent()


def test_a_record_that_was_cut_off_is_refused_by_the_checkpoint(tmp_path: Path) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    for number in (1, 2):
        means(hidden, [], number=number)
    at_the_checkpoint = hidden.tip()
    hidden.must_extend(at_the_checkpoint)
    older = roll_back(tmp_path, 1)
    with pytest.raises(UserError, match=r"1 noised means and client_level\.tip 2"):
        privacy(tmp_path, noise=4.0).tip()
    (tmp_path / TIP).write_text(older)
    with pytest.raises(UserError, match="1 noised means and this process 2"):
        means(hidden, [], number=2)
    again = privacy(tmp_path, noise=4.0)
    with pytest.raises(UserError, match="1 noised means and the checkpoint 2"):
        again.must_extend(at_the_checkpoint)
    # As many as the checkpoint has, but others: rolled back and made anew.
    means(again, [], number=3)
    with pytest.raises(UserError, match="noised mean 2 is another one in the checkpoint"):
        again.must_extend(at_the_checkpoint)


def roll_back(folder: Path, count: int) -> str:
    """Cuts the record to its first lines; returns the tip that it had then."""
    lines = (folder / FILE).read_text().split()[:count]
    (folder / FILE).write_text("\n".join(lines))
    return f"{count}:{json.loads(lines[-1])['digest']}\n"


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_record_that_was_removed_is_refused(tmp_path: Path, checkpoint: bool) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    means(hidden, [])
    tip = hidden.tip()
    (tmp_path / FILE).unlink()
    if checkpoint:  # and its tip with it
        (tmp_path / TIP).unlink()
    with pytest.raises(UserError, match=r"0 noised means and .* 1: ε would be stated too small"):
        privacy(tmp_path, noise=4.0).must_extend(tip)
    if not checkpoint:  # a run that has none yet
        with pytest.raises(UserError, match=r"0 noised means and client_level\.tip 1"):
            privacy(tmp_path, noise=4.0).gather("joint", 1, SENT).aggregated()


@pytest.mark.parametrize("change", ["removed", "damaged", "ahead"])
def test_a_changed_tip_is_refused(tmp_path: Path, change: str) -> None:
    means(privacy(tmp_path, noise=4.0), [])
    place = tmp_path / TIP
    if change == "removed":
        place.unlink()
    else:
        place.write_text("1" if change == "damaged" else f"2:{'0' * 64}")
    reason = {"removed": "is gone", "damaged": "cannot be read", "ahead": "tip 2: ε would be"}
    with pytest.raises(UserError, match=reason[change]) as caught:
        privacy(tmp_path, noise=4.0).spent()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", ["", ',"digest":"0f"'])
def test_a_record_of_an_earlier_version_is_refused_as_such(tmp_path: Path, more: str) -> None:
    """The first versions wrote no tip, and no digests or others."""
    (tmp_path / FILE).write_text(f'\n{{"stage":"joint","round":1{more}}}')
    with pytest.raises(UserError, match="with the earlier version that began it"):
        privacy(tmp_path, noise=4.0).spent()


@pytest.mark.parametrize("place", ["before the line", "in the line", "before the tip"])
def test_a_kill_while_a_mean_is_counted_is_survived(tmp_path: Path, place: str) -> None:
    hidden = privacy(tmp_path, noise=4.0)
    means(hidden, [])
    kept = (tmp_path / TIP).read_text()
    if place != "before the line":
        means(hidden, [], number=2)
        (tmp_path / TIP).write_text(kept)
    if place == "in the line":
        (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-9])
    again = privacy(tmp_path, noise=4.0)
    assert again.tip().count == (1 if place == "before the line" else 2)
    means(again, [], number=2)
    assert privacy(tmp_path, noise=4.0).tip() == again.tip()
    assert (tmp_path / TIP).read_text() == f"{again.tip()}\n"


def test_a_run_shows_a_site_in_noised_means_alone(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    noise = "federation.client_level.noise_multiplier=3"
    run, sites, _, folder = short_run(shortest, tmp_path, noise)
    figures = run.execute()
    kinds = [kind for kind, _ in sites.sent]
    assert protocol.LATENT_CENSUS not in kinds and protocol.EVALUATE not in kinds
    assert figures["client_level"]["rounds"] == 2
    expected = epsilon([Charge(1.0, 3.0, 2)], 0.01)
    assert figures["client_level"]["epsilon"] == pytest.approx(expected)
    assert figures["auc_pooled"] is None and figures["selected_round"] == 1
    [joint] = [given for kind, given in sites.sent if kind == protocol.TRAIN_JOINT]
    for moments in (UNET_MOMENTS, HEAD_MOMENTS):
        assert not any(value.any() for value in joint[moments].values())
    [first] = [given for kind, given in sites.sent if kind == protocol.TRAIN_AUTOENCODER]
    [encoded] = [given for kind, given in sites.sent if kind == protocol.ENCODE]
    moved = max(
        float((encoded[AUTOENCODER][f"autoencoder.{name}"] - value).abs().max())
        for name, value in first[AUTOENCODER].items()
    )
    assert moved > 0.5  # the noise's deviation is 1, far more than a step of training
    assert len((folder.path / FILE).read_text().split()) == 2
    (folder.path / TIP).write_text(roll_back(folder.path, 1))
    resumed, *_ = short_run(shortest, tmp_path, noise, resumed=True)
    with pytest.raises(UserError, match="1 noised means and the checkpoint 2"):
        resumed.execute()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("training.joint.logit_adjustment=1",), "label counts to all sites"),
        (("training.joint.control_variates=true",), "gradients to all sites without noise"),
        (("federation.client_level.target_delta=0.05",), r"at most 1/\(10 n\)"),
        (("federation.pool_sites=true",), "cannot be hidden among others"),
        (("federation.weighting=steps",), "needs sites of equal weight"),
        (
            ("privacy=dp", "privacy.trained=head", "privacy.public_model=runs/public"),
            "weights that are not trained",
        ),
    ],
)
def test_settings_that_reveal_a_site_are_refused_with_the_reason(
    overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        compose("config", ["federation.client_level.noise_multiplier=1", *overrides])
    without = [one for one in overrides if "client_level" not in one]
    assert not compose("config", without).federation.client_level.enabled
