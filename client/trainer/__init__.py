"""A site's work for each kind of message, plain or private. Only sums, counts and weights leave."""

from client.site import Site
from client.trainer.base import Components, Metrics, StateDict, Trainer
from client.trainer.plain import PlainTrainer
from client.trainer.private import PrivateTrainer

__all__ = ["Components", "Metrics", "StateDict", "Trainer", "trainer_of"]


def trainer_of(site: Site) -> Trainer:
    """The trainer that the run's settings ask for."""
    return PrivateTrainer(site) if site.settings.privacy.enabled else PlainTrainer(site)
