"""The first round of the joint stage, made again by a site's real trainer.

The global weights before it depend on the run's seed alone, so whatever the reply tells comes from
this one round. A private round draws new noise, and is charged to a ledger of its own.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from client.site import Site
from client.trainer import Components, Trainer, trainer_of
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.messaging.protocol import EMA_HEAD, EMA_UNET, JOINT, LABEL_COUNTS
from mediffusion_core.models import LatentCodec
from mediffusion_core.settings import Settings
from mediffusion_core.training.latent_files import LATENTS
from server.label_counts import label_counts
from server.state import fresh_state

ROUND = 1


@dataclass(frozen=True)
class Exchange:
    """The components of a round as the server sent them and as they came back."""

    sent: Components
    replied: Components


class Replay:
    """The first joint round of a run's sites, in a folder of its own."""

    def __init__(self, settings: Settings, dataset: FederatedDataset, folder: Path) -> None:
        """Takes the settings and the images of a run, and a folder to write to."""
        own = {"ledger": None, "ledger_tips": None, "max_epsilon": None}
        privacy = settings.privacy.model_copy(update=own)
        self.settings = settings.model_copy(update={"privacy": privacy})
        self._dataset, self._folder = dataset, folder
        self._state = fresh_state(settings, len(dataset.store.classes))

    def with_latents_of(self, run: Path) -> "Replay":
        """Takes the latents that the sites kept in the run's folder.

        Raises:
            UserError: if a site has none.
        """
        for index in range(len(self._dataset.clients)):
            site = self._site(index)
            kept = run / "sites" / site.name / LATENTS
            if not kept.is_file():
                raise UserError(f"{kept} is missing, without which no round can be made again")
            shutil.copyfile(kept, site.folder / LATENTS)
        return self

    def with_latents_by(self, codec: LatentCodec) -> "Replay":
        """Lets the sites encode their images."""
        for index in range(len(self._dataset.clients)):
            trainer_of(self._site(index)).encode(codec.state_dict(), None)
        return self

    def round(self, index: int) -> Exchange:
        """One site's answer to the first message of the joint stage."""
        wanted = self.settings.training.joint
        averages = (EMA_UNET, EMA_HEAD) if wanted.needs_average else ()
        sent = self._state.shared((*JOINT, *averages))
        if wanted.needs_label_counts:
            census = [trainer.census() for trainer in self._trainers()]
            malicious = self.settings.federation.num_malicious_sites
            sent[LABEL_COUNTS] = label_counts(census, malicious).arrays()
        replied, _ = trainer_of(self._site(index)).joint_round(sent, ROUND)
        return Exchange(sent, replied)

    def _trainers(self) -> list[Trainer]:
        return [trainer_of(self._site(index)) for index in range(len(self._dataset.clients))]

    def _site(self, index: int) -> Site:
        name = self._dataset.clients[index].site
        folder = self._folder / "run" / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        return Site(self.settings, self._dataset, index, folder)


@contextmanager
def replayed(settings: Settings, dataset: FederatedDataset) -> Iterator[Replay]:
    """A replay in a temporary folder."""
    with TemporaryDirectory(prefix="fed-mediffusion-attack-") as folder:
        yield Replay(settings, dataset, Path(folder))


def first_image(dataset: FederatedDataset, index: int) -> FederatedDataset:
    """A dataset of one client, which trains on a site's first image alone."""
    client = dataset.clients[index]
    alone = replace(client, train=client.train[:1], labelled=client.labelled[:1])
    return replace(dataset, clients=(alone,))
