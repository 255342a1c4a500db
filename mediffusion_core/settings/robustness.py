"""Checks that the settings of robust aggregation have an effect."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediffusion_core.settings import Settings

UNWEIGHTED = ("median", "trimmed_mean", "krum", "multi_krum")
"""Rules of aggregation that give each site the same weight."""
KRUM = ("krum", "multi_krum")


def refuse_void_robustness(settings: "Settings") -> None:
    """Checks that the run's rules tolerate as many malicious sites as it assumes.

    Raises:
        ValueError: naming the first setting that has no effect or too few sites.
    """
    federation = settings.federation
    malicious = federation.num_malicious_sites
    rules = {
        f"federation.server.{name}.aggregation={one.aggregation}": one.aggregation
        for name, one in federation.server
        if one.aggregation in UNWEIGHTED
    }
    checks = [f"federation.norm_bound={federation.norm_bound:g}"] if federation.norm_bound else []
    if federation.agreement_bound is not None:
        checks.append(f"federation.agreement_bound={federation.agreement_bound:g}")
    if not malicious:
        for given in (*rules, *checks):
            raise ValueError(
                f"{given} needs federation.num_malicious_sites, the number of sites that may be "
                "malicious; it must be at least 1"
            )
        return
    needed = {f"federation.num_malicious_sites={malicious}": 2 * malicious + 1}
    needed |= {given: 2 * malicious + 3 for given, rule in rules.items() if rule in KRUM}
    training = federation.asked_of(settings.num_participants)
    for given, sites in needed.items():
        if training < sites:
            raise ValueError(
                f"{given} needs {sites} sites in each round for {malicious} malicious ones, and "
                f"{training} train"
            )
    if rules and federation.weighting == "steps":
        raise ValueError(
            f"{next(iter(rules))} has no weights, so federation.weighting=steps has no effect; "
            "allowed: federation.weighting=rounds"
        )
