"""Settings: overrides and names of a run's configuration, changes of a model's, and site files.

Composing takes Hydra about 70 ms, a change 10 ms. So one case in 25 composes, and half of the
asked cases are run: 1,000 in the tests.
"""

import os
import shutil
from pathlib import Path

import hypothesis.strategies as st

from configs.compose import FOLDER, change, compose, groups, split
from fuzz.harness import Target
from fuzz.mutations import nearly
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings.site_file import SiteFile
from mediffusion_core.settings.validation import known_keys

SITE = b"""name = "north"
[data]
source = "folder"
root = "/data/images"
table = "labels.csv"
classes = ["nevus", "melanoma"]
columns = {image = "file", label = "class", patient = "patient"}
[policy]
max_epsilon = 8.0
allowed_metrics = ["loss"]
[ledger]
folder = "/ledger"
"""
RUN = b'{"settings_hash": "0123456789abcdef", "seed": 1}'
VALUES = (
    "1", "0", "-1", "1e999", "nan", ".inf", "null", "true", "[1,2]", "[]", "{}", "{a:1}", "''",
    "'a b'", '"', "a,b", "${seed}", "${oc.env:HOME}", "${oc.decode:1}", "${", "???", "1_0", "0x1f",
    "9" * 40, "~", "~nobody/x", "/", "..", "\\", "é", "\0", "\n", "a\nb", "\ud800", "x" * 5000,
    "[" * 200, "choice(1,2)", "range(1,3)", "glob(*)", "!!python/name:os.system",
)  # fmt: skip
SIGNS = ("", "", "", "", "+", "++", "~")


def target(root: Path) -> Target:
    """Composes, changes, splits, or reads a file."""
    shutil.copy(FOLDER / "config.yaml", root.parent / "outside.yaml")
    outside = os.path.relpath(root.parent / "outside", FOLDER)
    base = compose("config", ())
    keys = [*known_keys(base.model_dump(mode="json")), *groups()]

    def run(case: tuple[str, object]) -> None:
        kind, given = case
        if kind == "split":
            split(given)
        elif kind == "change":
            change(base, given)
        elif kind == "compose":
            compose(*given)
        elif kind == "site":
            path = root / "site.toml"
            path.write_bytes(given)
            path.chmod(0o600)
            SiteFile.read(path)
        else:
            (root / "settings.json").write_bytes(given)
            RunFolder(root).refuse_others(base)

    value = st.one_of(st.sampled_from(VALUES), st.text(max_size=8), st.integers().map(str))
    key = st.one_of(*[st.sampled_from(keys)] * 5, st.text(max_size=8))
    override = st.one_of(
        st.builds("{}{}={}".format, st.sampled_from(SIGNS), key, value), st.text(max_size=12)
    )
    overrides = st.lists(override, max_size=3)
    name = st.sampled_from(("config", "config", "config", outside, "", ".", "\0", "a/../config"))
    kinds = {
        "split": st.text(max_size=20),
        "change": st.lists(override, min_size=1, max_size=2),
        "compose": st.tuples(name, overrides),
        "site": nearly([SITE]),
        "run": nearly([RUN]),
    }
    # Weights of the kinds: composing is dear.
    chosen = ["split"] * 4 + ["change"] * 10 + ["compose"] + ["site"] * 8 + ["run"] * 2
    return Target(
        root=root,
        cases=st.sampled_from(chosen).flatmap(lambda kind: st.tuples(st.just(kind), kinds[kind])),
        run=run,
        refused=(UserError,),
        share=0.5,
    )
