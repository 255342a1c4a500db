"""The rounds of one run, from census to judgement; every round ends with a checkpoint."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from math import nan
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.calibration import best_temperature
from mediffusion_core.evaluation.classification import (
    auc_from_counts,
    macro,
    macro_draws,
    macro_interval,
)
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODING,
    EMA,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    JOINT,
    LABEL_COUNTS,
    UNET,
)
from mediffusion_core.models import LatentCodec, scale_from_sums
from mediffusion_core.reporting.pictures import (
    save_counterfactual_panel,
    save_curves,
    save_reconstructions,
    save_sample_grid,
    save_sites,
)
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from mediffusion_core.training.label_counts import LabelCounts
from server.messages import Census, Reply, SiteError
from server.privacy import (
    SCALE,
    known_heads,
    nothing_pooled,
    promised,
    sums_deviation,
    told_heads,
)
from server.selection import Judged, select
from server.sites import Sites
from server.state import SERVER, RunState
from server.strategy.aggregation import aggregate, mean_metric, moving_average
from server.strategy.client_level import ClientLevelPrivacy
from server.strategy.scaffold import corrections, remembered
from server.strategy.server_optimizers import server_step

StateDict = Mapping[str, Tensor]

LOSSES = ("loss", "diffusion_loss", "classification_loss", "consistency_loss", "pseudo_labelled")


class FederatedRun:
    """One run: takes it up where its state stands, and ends with the figures."""

    def __init__(
        self,
        settings: Settings,
        federation: Sites,
        judge: Evaluator,
        folder: RunFolder,
        state: RunState,
        classes: tuple[str, ...],
        multi_label: bool,
        device: torch.device,
    ) -> None:
        """Takes the sites, the judge, where to write, and where the run stands."""
        self._settings = settings
        self._hash = settings.fingerprint()
        self._federation = federation
        self._judge = judge
        self._folder = folder
        self._state = state
        self._classes = classes
        self._multi_label = multi_label
        self._device = device
        server = settings.federation.server
        self._optimizers = {
            AUTOENCODER: server.autoencoder,
            UNET: server.unet,
            HEAD: server.head,
        }
        self._client_level = None
        if settings.federation.client_level.enabled:
            self._client_level = ClientLevelPrivacy(
                settings.federation.client_level,
                self._asked_of(settings.num_participants),
                folder.path,
            )
        self._census: dict[str, Census] = {}
        self._encoded: set[str] = set()
        self._begun = time.monotonic() - state.seconds

    def execute(self) -> dict[str, Any]:
        """Runs what is left, and returns the figures of the selected model."""
        self._take_census()
        while self._state.autoencoder_rounds < self._settings.autoencoder_rounds:
            self._autoencoder_round()
        self._share_latent_scale()
        if self._state.judged < 0:
            self._judge_model(0)
            self._save("joint")
        while self._state.joint_rounds < self._settings.federation.num_rounds:
            self._joint_round()
        return self._figures()

    def _take_census(self) -> None:
        self._let_in(self._federation.census())
        if not self._folder.history():
            self._record("census", 1, 1, sites=self._named_census())
        save_sites(self._named_census(), self._folder.pictures / "sites.png")

    def _let_in(self, replies: Sequence[Reply]) -> None:
        """Takes in sites by their census. A site that comes back may have lost its latents."""
        # A ledger's head from before goes to its site first, so that an older ledger shows.
        self._state.components = told_heads(replies) | self._state.components
        self._census |= {reply.site: reply.census for reply in replies}
        self._encoded -= {reply.site for reply in replies}

    def _named_census(self) -> dict[str, dict[str, Any]]:
        """The census by site, with counts by the names of the classes."""
        named: dict[str, dict[str, Any]] = {}
        for site, counts in self._census.items():
            named[site] = {name: n for name, n in counts.items() if name != "known_per_class"}
            per_class = counts.get("per_class")
            if isinstance(per_class, list):  # not with differential privacy
                named[site]["per_class"] = dict(zip(self._classes, per_class, strict=True))
        return named

    def _start_round(self) -> dict[str, Any]:
        """Lets newcomers take part; returns what the round's record says of them."""
        newcomers = self._federation.newcomers()
        self._let_in(newcomers)
        return {"joined": [reply.site for reply in newcomers]} if newcomers else {}

    def _autoencoder_round(self) -> None:
        state = self._state
        number, total = state.autoencoder_rounds + 1, self._settings.autoencoder_rounds
        joined = self._start_round()
        replies = self._ask(
            protocol.TRAIN_AUTOENCODER,
            number,
            {name: state.components[name] for name in AUTOENCODING},
            self._participants(AUTOENCODER, number),
        )
        self._take(AUTOENCODER, number, AUTOENCODING, replies)
        state.autoencoder_rounds = number
        codec = state.codec(self._settings).to(self._device)
        psnr = self._reconstruction(codec)
        self._record("autoencoder", number, total, psnr=psnr, **_losses(replies), **joined)
        self._save(AUTOENCODER)

    def _share_latent_scale(self) -> None:
        """Forms the global latent scale once, and lets the sites encode their images with it."""
        state = self._state
        scaling = SCALE not in state.components and self._client_level is None
        if scaling:
            state.components[SCALE] = self._latent_scale()
        untrained = not self._settings.autoencoder_rounds and state.judged < 0
        figures = {}
        if untrained:
            codec = state.codec(self._settings).to(self._device)
            figures["psnr"] = self._reconstruction(codec)
        if scaling or untrained:
            self._record("latents", 1, 1, **figures)
        self._encode(self._federation.sites)

    def _reconstruction(self, codec: LatentCodec) -> float:
        """The autoencoder's PSNR on test images; draws some of them."""
        psnr, shown = self._judge.reconstruction(codec)
        path = self._folder.pictures / "reconstructions.png"
        save_reconstructions(shown.images, shown.made, shown.psnr.numpy(), path)
        return psnr

    def _latent_scale(self) -> dict[str, Tensor]:
        """Mean and deviation of each latent channel, from the sites' sums."""
        codec = {AUTOENCODER: self._state.components[AUTOENCODER]}
        replies = self._ask(protocol.LATENT_CENSUS, 1, codec)
        if not replies:
            raise SiteError("every site's privacy budget is spent, and there are no latents")
        sums = [reply.components[protocol.COUNTS] for reply in replies]
        total, squares = sum(s["total"] for s in sums), sum(s["squares"] for s in sums)
        count = sum(float(s["count"]) for s in sums)
        assert isinstance(total, Tensor) and isinstance(squares, Tensor)
        uncertainty = sums_deviation(self._settings, len(replies))
        mean, std = scale_from_sums(total, squares, count, uncertainty)
        return {"mean": mean, "std": std}

    def _encode(self, sites: Collection[str]) -> None:
        """Lets those sites encode that have not: all at first, then whoever was away.

        Until then a site has no latents, and is asked for nothing that needs them.
        """
        waiting = set(sites) - self._encoded
        if waiting:
            codec = {AUTOENCODER: self._state.codec(self._settings).state_dict()}
            replies = self._ask(protocol.ENCODE, 1, codec, waiting)
            self._encoded |= {reply.site for reply in replies}

    def _joint_round(self) -> None:
        state, federation = self._state, self._settings.federation
        number = state.joint_rounds + 1
        teaching = self._settings.training.joint.needs_average
        names = (*JOINT, EMA_UNET, EMA_HEAD) if teaching else JOINT
        joined = self._start_round()
        sent = {name: state.components[name] for name in names} | self._label_counts()
        sites = self._participants("joint", number)
        self._encode(sites)
        sites = [site for site in sites if site in self._encoded]
        own = corrections(state.components, sites)
        replies = self._ask(protocol.TRAIN_JOINT, number, sent, sites, own)
        self._take("joint", number, JOINT, replies)
        state.components |= remembered(state.components, replies)
        for component in (UNET, HEAD):
            state.components[EMA + component] = moving_average(
                state.components[EMA + component],
                state.components[component],
                federation.ema_decay,
                number,
            )
        state.joint_rounds = number
        self._record("joint", number, federation.num_rounds, **_losses(replies), **joined)
        if number % self._settings.evaluation.every == 0 or number == federation.num_rounds:
            self._judge_model(number)
        self._save("joint")

    def _label_counts(self) -> dict[str, StateDict]:
        """How often each class occurs at all sites, where the objective needs it."""
        if not self._settings.training.joint.needs_label_counts:
            return {}
        return {LABEL_COUNTS: LabelCounts.of_census(self._census.values()).arrays()}

    def _judge_model(self, number: int) -> None:
        """Judges the averaged global model, and keeps it if the sites' patients prefer it."""
        # First of all, since the sites' patients also say at which temperature it is judged.
        pooled, draws, temperature = self._pooled()
        model = self._state.model(
            self._settings, self._classes, self._multi_label, self._device, temperature
        )
        pictures = self._folder.pictures / "rounds" / f"{number:04d}"
        pictures.mkdir(parents=True, exist_ok=True)
        generation, samples = self._judge.generation(model)
        if samples is not None:
            save_sample_grid(samples, pictures / "samples.png")
        figures = {**self._judge.classification(model), **pooled, **generation}
        if number:
            figures["counterfactual"], rows = self._judge.counterfactuals(model)
            if rows:
                save_counterfactual_panel(rows, pictures / "counterfactuals.png")
        total = self._settings.federation.num_rounds
        self._record("judgement", number, total, **figures)
        self._state.judged = number
        if number:
            self._select(number, model, figures, draws)
        save_curves(self._folder.history(), self._folder.pictures / "curves.png")

    def _select(
        self, number: int, model: TrainedModel, figures: Mapping[str, Any], draws: Tensor
    ) -> None:
        # A classifier that is not trained has no say.
        classifies = bool(self._settings.training.joint.classification_weight)
        latest = Judged(number, figures["auc_pooled"] if classifies else nan, draws.tolist())
        self._state.selection = select(self._state.selection, latest)
        if self._state.selection.kept != number:
            return
        model.save(self._folder.model)
        for picture in (self._folder.pictures / "rounds" / f"{number:04d}").iterdir():
            shutil.copyfile(picture, self._folder.pictures / picture.name)

    def _pooled(self) -> tuple[dict[str, Any], Tensor, float]:
        """Figures over all sites' validation patients.

        Returns:
            The figures, the macro AUC of each bootstrap (B,), and the best temperature.
        """
        if self._settings.privacy.enabled or self._client_level is not None:
            return nothing_pooled(self._classes)
        sent = {name: self._state.components[EMA + name] for name in (UNET, HEAD)}
        self._encode(self._federation.sites)
        number = max(self._state.joint_rounds, 0)
        replies = self._ask(protocol.EVALUATE, number, sent, self._encoded)
        sent_back = [reply.components[protocol.COUNTS] for reply in replies]
        counts = [one["counts"] for one in sent_back]
        draws = auc_from_counts(
            torch.stack([one["bootstraps"] for one in sent_back]).sum(dim=0)
        )  # (B, C)
        losses = torch.stack([one["temperature_losses"] for one in sent_back]).sum(dim=0)
        pooled = auc_from_counts(torch.stack(counts).sum(dim=0))
        figures = {
            "auc_pooled": macro(pooled),
            "auc_pooled_interval": macro_interval(pooled, draws),
            "auc_pooled_per_class": dict(zip(self._classes, pooled.tolist(), strict=True)),
            "auc_pooled_per_site": {
                reply.site: macro(auc_from_counts(one))
                for reply, one in zip(replies, counts, strict=True)
            },
        }
        return figures, macro_draws(pooled, draws), best_temperature(losses)

    def _ask(
        self,
        kind: str,
        number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
    ) -> list[Reply]:
        """Asks the sites; where the run is private, the heads of their ledgers go along."""
        heads = known_heads(self._state.components, self._federation.sites)
        given = own or {}
        both = {site: {**heads.get(site, {}), **given.get(site, {})} for site in {*heads, *given}}
        replies = self._federation.ask(kind, number, components, sites, both)
        self._state.components |= told_heads(replies)
        return replies

    def _take(self, stage: str, number: int, names: Collection[str], replies: list[Reply]) -> None:
        """Steps to the mean of what the sites sent; what nobody trained stays as it is."""
        components = self._state.components
        for component, mean in self._means(stage, number, names, replies).items():
            if component not in self._optimizers:
                components[component] = mean
                continue
            memory = components.get(SERVER + component, {})
            components[component], memory = server_step(
                self._optimizers[component], components[component], mean, memory
            )
            if memory:
                components[SERVER + component] = memory

    def _means(
        self, stage: str, number: int, names: Collection[str], replies: list[Reply]
    ) -> Mapping[str, StateDict]:
        """The means of a stage's components; with client-level privacy of its weights alone."""
        if self._client_level is not None:
            sent = {
                name: self._state.components[name] for name in names if name in self._optimizers
            }
            return self._client_level.means(stage, number, sent, replies)
        metrics = [reply.metrics for reply in replies]
        by = self._settings.federation.weighting
        means = {
            name: aggregate(name, [reply.components[name] for reply in replies], metrics, by)
            for name in names
        }
        return {name: mean for name, mean in means.items() if mean is not None}

    def _participants(self, stage: str, number: int) -> list[str]:
        """The sites that train in a round: all, or a share of them drawn by the run's seed."""
        sites = self._federation.sites
        seed = derive_seed(self._settings.seed, "participants", stage, number)
        order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))
        chosen = order[: self._asked_of(len(sites))]
        return [sites[index] for index in chosen.tolist()]

    def _asked_of(self, sites: int) -> int:
        """How many of so many sites train in a round; never more of fewer."""
        return max(1, round(self._settings.federation.participation * sites))

    def _figures(self) -> dict[str, Any]:
        history, census = self._folder.history(), self._named_census()
        judged = {line["round"]: line for line in history if line["stage"] == "judgement"}
        assert self._state.selection is not None
        selected = judged[self._state.selection.kept]
        dropped = {"stage", "round", "rounds", "time"}
        private = self._settings.privacy.enabled
        psnr = [line["psnr"] for line in history if "psnr" in line][-1]
        components = self._state.components
        return {
            **{name: value for name, value in selected.items() if name not in dropped},
            "psnr": psnr,
            "fid_untrained": judged[0]["fid"],
            "kid_untrained": judged[0]["kid"],
            "selected_round": self._state.selection.kept,
            "rounds": self._state.joint_rounds,
            "autoencoder_rounds": self._state.autoencoder_rounds,
            "seconds": self._elapsed(),
            "census": census,
            "set_aside": _set_aside(history),
            **({"privacy": promised(self._settings, census)} if private else {}),
            **({"client_level": self._client_level.spent()} if self._client_level else {}),
            "parameters": {
                name: sum(tensor.numel() for tensor in components[name].values())
                for name in (AUTOENCODER, UNET, HEAD)
            },
        }

    def _record(self, stage: str, number: int, rounds: int, **figures: Any) -> None:
        if set_aside := self._federation.take_set_aside():
            figures["set_aside"] = [asdict(one) for one in set_aside]
        self._folder.record(
            stage=stage, round=number, rounds=rounds, time=self._elapsed(), **figures
        )

    def _save(self, stage: str) -> None:
        self._state.seconds = self._elapsed()
        self._state.save(self._folder, self._hash, stage)

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._begun, 3)


def _losses(replies: list[Reply]) -> dict[str, Any]:
    metrics = [reply.metrics for reply in replies]
    means = {
        name: mean_metric(
            metrics, name, "labelled_seen" if name.startswith("classification") else "images_seen"
        )
        for name in LOSSES
        if any(name in site for site in metrics)
    }
    return {
        **means,
        "sites": {reply.site: reply.metrics for reply in replies},
        "traffic": {reply.site: reply.traffic for reply in replies},
    }


def _set_aside(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each reply that did not count: stage, round, site, kind of message and reason."""
    return [
        {"stage": line["stage"], "round": line["round"], **one}
        for line in history
        for one in line.get("set_aside", ())
    ]
