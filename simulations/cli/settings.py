"""The command `fed-mediffusion settings`."""

import typer

from simulations.cli.arguments import ConfigName, Overrides

commands = typer.Typer()


@commands.command(epilog="Example: fed-mediffusion settings experiment=isic2019_4centres")
def settings(
    overrides: Overrides = None,
    config_name: ConfigName = "config",
) -> None:
    """Print all settings of a run in YAML. Nothing is run."""
    import yaml

    from configs import compose

    composed = compose(config_name, overrides or [])
    shown = composed.model_dump(mode="json")
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
