"""The configuration files, and their composition by Hydra."""

from configs.compose import compose, flatten, quoted

__all__ = ["compose", "flatten", "quoted"]
