"""What the server makes of a judgement, with sites that are asked in this process."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from messages import sent
from torch import Tensor

from configs.compose import compose
from mediffusion_core import protocol
from mediffusion_core.artifacts.run_folder import RunFolder
from mediffusion_core.artifacts.trained import TrainedModel
from mediffusion_core.data.hospitals import open_hospitals
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.judge import Judge
from mediffusion_core.settings import Settings
from server.federation import Reply
from server.rounds import FederatedRun
from server.state import fresh_state


class Sites:
    """Three real sites; only what Flower does between them and the server is left out."""

    def __init__(self, settings: Settings, overrides: Sequence[str]) -> None:
        self._hash = settings.fingerprint()
        self._overrides = overrides

    @property
    def sites(self) -> list[str]:
        return ["site-0", "site-1", "site-2"]

    def census(self) -> list[Reply]:
        return self.ask(protocol.CENSUS, 0, {})

    def ask(
        self,
        kind: str,
        number: int,
        components: Mapping[str, Mapping[str, Tensor]],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, Mapping[str, Tensor]]] | None = None,
    ) -> list[Reply]:
        asked = [site for site, name in enumerate(self.sites) if sites is None or name in sites]
        arrays = [{**components, **(own or {}).get(self.sites[site], {})} for site in asked]
        replies = [
            sent(kind, self._overrides, self._hash, given, site, number)
            for site, given in zip(asked, arrays, strict=True)
        ]
        return [
            Reply.of(self.sites[site], reply.content)
            for site, reply in zip(asked, replies, strict=True)
        ]


def test_the_selected_model_has_the_temperature_of_all_sites_patients(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    shorter = ("federation.autoencoder_rounds=1", "federation.num_rounds=1", "evaluation.every=1")
    places = (f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}")
    overrides = (*tiny, *shorter, *places)  # the last of two values counts
    settings = compose("config", overrides)
    hospitals, cpu = open_hospitals(settings), torch.device("cpu")
    store, folder = hospitals.store, RunFolder(tmp_path / "run")
    folder.create(settings)
    groups, sites = hospitals.groups(hospitals.test_rows), hospitals.site_of_test()
    run = FederatedRun(
        settings,
        Sites(settings, overrides),  # type: ignore[arg-type]
        Judge(settings, hospitals.test(), groups, sites, store.classes, store.multi_label),
        folder,
        fresh_state(settings, len(store.classes)),
        store.classes,
        store.multi_label,
        cpu,
    )
    calibration = run.execute()["calibration"]

    model = TrainedModel.load(folder.model, cpu)
    assert model.temperature == calibration["temperature"]
    labelled = [images for site in range(3) if len(images := hospitals.validation(site))]
    logits, targets = (
        torch.cat([model.logits(model.encode(s.take(torch.arange(len(s))))) for s in labelled]),
        torch.cat([s.targets for s in labelled]),
    )
    expected = best_temperature(temperature_losses(logits, targets, store.multi_label))
    assert model.temperature == pytest.approx(expected, rel=1e-3)
    # It is found for each model anew, the untrained one among them.
    judged = [line for line in folder.history() if line["stage"] == "judgement"]
    temperatures = [line["calibration"]["temperature"] for line in judged]
    assert len(temperatures) == 2 and temperatures[0] != temperatures[1] == model.temperature
