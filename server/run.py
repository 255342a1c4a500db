"""The rounds of one run, from census to the last evaluation; every round ends with a checkpoint."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.common.machine import return_freed_memory
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODING,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    JOINT,
    LABEL_COUNTS,
    LEDGER_TIP,
    UNET,
    WHITENING,
)
from mediffusion_core.models import encoder_half
from mediffusion_core.privacy.accounting.plan import refuse_dear_validation
from mediffusion_core.reporting.pictures import save_curves, save_sites
from mediffusion_core.run_io.run_folder import EVALUATION, RunFolder
from mediffusion_core.settings import Settings
from server.checkpoints import save_state
from server.evaluation_round import EvaluationRounds
from server.label_counts import label_counts
from server.latent_scale import latent_scale
from server.messages import Reply
from server.noised_validation import NoisedValidationSums
from server.pooled import CappedValidationSums, PooledValidation, ValidationSums
from server.reply_bounds import count_of
from server.secure_sum import secure_sum
from server.sites import Sites
from server.state import RunState
from server.strategy.gathering import Gathering
from server.strategy.strategy import SPOOL, Strategy
from server.summary import Promises, losses, summary
from server.whitening import whitening

StateDict = Mapping[str, Tensor]


class FederatedRun:
    """One run: continues where its state stands, and ends with the figures."""

    def __init__(
        self,
        settings: Settings,
        sites: Sites,
        evaluator: Evaluator,
        folder: RunFolder,
        state: RunState,
        device: torch.device,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the sites, the evaluator, the folder and the state of a run.

        `saved` is called after each checkpoint.
        """
        self._settings = settings
        self._sites = sites
        self._folder = folder
        self._state = state
        self._classes, self._multi_label = evaluator.classes, evaluator.multi_label
        self._evaluation = EvaluationRounds(settings, evaluator, folder, device)
        self._strategy = Strategy(settings, folder.path)
        self._secure = settings.privacy.secure_aggregation.enabled
        self._encoded: set[str] = set()
        self._saved = saved
        self._promises = Promises(settings)
        self._begun = time.monotonic() - state.seconds

    def execute(self) -> dict[str, Any]:
        """Runs the remaining rounds, and returns the figures of the selected model."""
        refuse_dear_validation(self._settings)
        self._strategy.must_extend(self._state.noised_means)
        self._evaluation.put_back(self._state)
        self._take_census()
        while self._state.autoencoder_rounds < self._settings.autoencoder_rounds:
            self._autoencoder_round()
        self._share_latent_scale()
        if self._state.evaluated < 0:
            self._evaluate(0)
            self._save("joint")
        while self._state.joint_rounds < self._settings.federation.num_rounds:
            self._joint_round()
        figures = summary(self._state, self._folder.history(), self._named_census())
        seconds = {"seconds": self._elapsed()}
        return {**figures, **self._promised(), **seconds, **self._spent()}

    def _take_census(self) -> None:
        self._let_in(self._sites.census())
        if not self._folder.history():
            self._record("census", 1, 1, sites=self._named_census(), **self._promised())
        save_sites(self._named_census(), self._folder.pictures / "sites.png")

    def _let_in(self, replies: Sequence[Reply]) -> None:
        """Takes in sites by their census. A site that comes back may have lost its latents."""
        # A tip from before goes to its site first, so that an older ledger shows.
        self._state.ledger_tips = _ledger_tips(replies) | self._state.ledger_tips
        self._state.census |= {reply.site: reply.census for reply in replies}
        self._encoded -= {reply.site for reply in replies}

    def _named_census(self) -> dict[str, dict[str, Any]]:
        """The census by site, with counts by the names of the classes."""
        named: dict[str, dict[str, Any]] = {}
        for site, counts in self._state.census.items():
            named[site] = {name: n for name, n in counts.items() if name != "known_per_class"}
            per_class = counts.get("per_class")
            if isinstance(per_class, list):  # not with differential privacy
                named[site]["per_class"] = dict(zip(self._classes, per_class, strict=True))
        return named

    def _start_round(self) -> dict[str, Any]:
        """Lets newcomers take part; returns their names for the round's record."""
        newcomers = self._sites.newcomers()
        self._let_in(newcomers)
        if not newcomers:
            return {}
        return {"joined": [reply.site for reply in newcomers], **self._promised()}

    def _promised(self) -> dict[str, Any]:
        """ε of the planned rounds for each site, where the run is private."""
        private = self._settings.privacy.enabled
        return {"privacy": self._promises.of(self._state.census)} if private else {}

    def _spent(self) -> dict[str, Any]:
        """The cost of client-level privacy so far, where it is on."""
        spent = self._strategy.spent()
        return {"client_level": spent} if spent else {}

    def _autoencoder_round(self) -> None:
        state = self._state
        number, total = state.autoencoder_rounds + 1, self._settings.autoencoder_rounds
        joined = self._start_round()
        gathered = self._strategy.gather(AUTOENCODER, number, AUTOENCODING, state)
        replies = self._ask(
            protocol.TRAIN_AUTOENCODER,
            number,
            state.shared(AUTOENCODING),
            self._participants(AUTOENCODER, number),
            take=gathered.take,
        )
        told = self._step(protocol.TRAIN_AUTOENCODER, gathered, replies)
        state.autoencoder_rounds = number
        psnr = self._evaluation.reconstruction(state)
        self._record("autoencoder", number, total, psnr=psnr, **told, **joined, **self._spent())
        self._save(AUTOENCODER)

    def _share_latent_scale(self) -> None:
        """Forms the global latent scale once, and lets the sites encode their images with it."""
        state = self._state
        scaling = state.latent_scale is None and self._strategy.spent() is None
        if scaling:
            replies = self._ask(protocol.LATENT_CENSUS, 1, state.shared((AUTOENCODER,)))
            state.latent_scale = latent_scale(replies, self._settings)
        untrained = not self._settings.autoencoder_rounds and state.evaluated < 0
        figures: dict[str, Any] = {}
        if untrained:
            figures["psnr"] = self._evaluation.reconstruction(state)
        if state.latent_scale is not None and scaling:
            figures["latent_std"] = state.latent_scale["std"].tolist()
        if scaling or untrained:
            self._record("latents", 1, 1, **figures)
        alignment = self._settings.training.joint.alignment
        if alignment.enabled and state.whitening is None:
            replies = self._ask(protocol.FEATURE_CENSUS, 1, {})
            state.whitening = whitening(replies, alignment, self._multi_label)
        self._encode(self._sites.sites)

    def _encode(self, sites: Collection[str]) -> None:
        """Lets the given sites encode their images, as far as they have not.

        Until then a site has no latents, and is asked for nothing that needs them.
        """
        waiting = set(sites) - self._encoded
        if waiting:
            sent: dict[str, StateDict] = {
                AUTOENCODER: self._state.codec(self._settings).state_dict()
            }
            if self._state.whitening is not None:
                sent[WHITENING] = self._state.whitening
            replies = self._ask(protocol.ENCODE, 1, sent, waiting)
            self._encoded |= {reply.site for reply in replies}

    def _joint_round(self) -> None:
        state, rounds = self._state, self._settings.federation.num_rounds
        number = state.joint_rounds + 1
        joined = self._start_round()
        sites = self._participants("joint", number)
        self._encode(sites)
        sites = [site for site in sites if site in self._encoded]
        train = self._train_by_sum if self._secure else self._train_by_replies
        told = train(number, sites)
        self._strategy.average(state, number)
        state.joint_rounds = number
        self._record("joint", number, rounds, **told, **joined, **self._spent())
        if number % self._settings.evaluation.every == 0 or number == rounds:
            self._evaluate(number)
        self._save("joint")

    def _train_by_replies(self, number: int, sites: list[str]) -> dict[str, Any]:
        """A joint round of local training; returns losses and sites for its record."""
        state = self._state
        averages = (EMA_UNET, EMA_HEAD) if self._settings.training.joint.needs_average else ()
        sent = state.shared((*JOINT, *averages)) | self._label_counts()
        own = self._strategy.corrections(state, sites)
        gathered = self._strategy.gather("joint", number, JOINT, state)
        replies = self._ask(protocol.TRAIN_JOINT, number, sent, sites, own, gathered.take)
        return self._step(protocol.TRAIN_JOINT, gathered, replies)

    def _train_by_sum(self, number: int, sites: list[str]) -> dict[str, Any]:
        """A joint round of secure aggregation: one step along the mean gradient of all units."""
        state = self._state
        sent = state.shared((UNET, HEAD))
        total, replies = secure_sum(self._settings, self._ask, number, sent, sites)
        # The divisor is constant, as private steps need it, whichever sites are in the sum.
        units = sum(count_of(census, "train") for census in state.census.values())
        mean = {name: value / units for name, value in total.items()}
        self._strategy.step_down(HEAD, mean, state)
        return losses(replies)

    def _step(self, kind: str, gathered: Gathering, replies: Sequence[Reply]) -> dict[str, Any]:
        """Steps to the aggregate of a round; returns losses and sites for the round's record."""
        aggregated = self._strategy.step(gathered, self._state)
        for site, reason in sorted(aggregated.set_aside.items()):
            self._sites.exclude(site, kind, reason)
        counted = [reply for reply in replies if reply.site not in aggregated.set_aside]
        robust = {"aggregated": aggregated.sites, "tolerated": aggregated.tolerated}
        return {**losses(counted), **{name: value for name, value in robust.items() if value}}

    def _label_counts(self) -> dict[str, StateDict]:
        """How often each class occurs at all sites, where the objective needs it."""
        if not self._settings.training.joint.needs_label_counts:
            return {}
        census = self._state.census.values()
        malicious = self._settings.federation.num_malicious_sites
        return {LABEL_COUNTS: label_counts(census, malicious).arrays()}

    def _evaluate(self, number: int) -> None:
        """Evaluates the averaged global model, and selects it by the sites' own patients."""
        # The sites' patients also give the temperature of the model. Those of a private run are
        # charged, so they are asked about trained models alone.
        asked = self._settings.sites_validate and (number or not self._settings.privacy.enabled)
        pooled = self._validate() if asked else PooledValidation.nothing(self._classes)
        model, figures = self._evaluation.figures(self._state, number, pooled)
        self._record(EVALUATION, number, self._settings.federation.num_rounds, **figures)
        self._state.evaluated = number
        if number:
            self._state.selection = self._evaluation.select(
                self._state.selection, model, number, pooled
            )
        save_curves(self._folder.history(), self._folder.pictures / "curves.png")
        return_freed_memory()

    def _validate(self) -> PooledValidation:
        """Figures of the averaged model over all sites' validation patients."""
        average = self._state.averages
        sent = {UNET: encoder_half(average[UNET]), HEAD: average[HEAD]}
        self._encode(self._sites.sites)
        number = self._state.joint_rounds
        sums = self._validation_sums()
        self._ask(protocol.EVALUATE, number, sent, self._encoded, take=sums.take)
        return sums.pooled()

    def _validation_sums(self) -> ValidationSums | CappedValidationSums | NoisedValidationSums:
        settings, malicious = self._settings, self._settings.federation.num_malicious_sites
        if settings.privacy.enabled:
            number, known = self._state.joint_rounds, self._validated_classes()
            return NoisedValidationSums(self._classes, self._multi_label, settings, number, known)
        if malicious:
            return CappedValidationSums(self._classes, malicious, self._folder.path / SPOOL)
        return ValidationSums(self._classes)

    def _validated_classes(self) -> list[str] | None:
        """The classes with an AUC in the run's first private validation; None before it.

        Noise decides whether a rare class has one. Models are compared on the same classes.
        """
        for line in self._folder.history():
            if line["stage"] == EVALUATION and line["round"]:
                found = line["auc_pooled_per_class"].items()
                return [name for name, auc in found if auc is not None and math.isfinite(auc)]
        return None

    def _ask(
        self,
        kind: str,
        number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
        take: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Asks the sites; where the run is private, the tips of their ledgers go along."""
        given = {site: dict(records) for site, records in (own or {}).items()}
        for site in self._sites.sites:
            if site in self._state.ledger_tips:
                given.setdefault(site, {})[LEDGER_TIP] = self._state.ledger_tips[site]
        replies = self._sites.ask(kind, number, components, sites, given, take)
        self._state.ledger_tips |= _ledger_tips(replies)
        return replies

    def _participants(self, stage: str, number: int) -> list[str]:
        """The sites that train in a round: all, or a share of them drawn by the run's seed."""
        sites = self._sites.sites
        seed = derive_seed(self._settings.seed, "participants", stage, number)
        order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))
        chosen = order[: self._settings.federation.asked_of(len(sites))]
        return [sites[index] for index in chosen.tolist()]

    def _record(self, stage: str, number: int, rounds: int, **figures: Any) -> None:
        if set_aside := self._sites.take_set_aside():
            figures["set_aside"] = [asdict(one) for one in set_aside]
        if contacts := self._sites.take_contacts():
            figures["contacts"] = contacts
        self._folder.record(
            stage=stage, round=number, rounds=rounds, time=self._elapsed(), **figures
        )

    def _save(self, stage: str) -> None:
        self._state.seconds = self._elapsed()
        self._state.noised_means = self._strategy.noised_means()
        save_state(self._state, self._folder, self._settings, stage)
        self._saved()

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._begun, 3)


def _ledger_tips(replies: Sequence[Reply]) -> dict[str, StateDict]:
    """By site, the ledger tip in its reply; none where the run is not private."""
    return {
        reply.site: reply.components[LEDGER_TIP]
        for reply in replies
        if LEDGER_TIP in reply.components
    }
