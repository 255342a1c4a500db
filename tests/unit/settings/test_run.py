"""Configurations: all of them compose, and a mistake is one line that helps."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from configs.compose import FOLDER, MAPPINGS, change, compose, flatten, groups, quoted, split
from mediffusion_core.common.errors import UserError
from mediffusion_core.models import Autoencoder, pooled_width
from mediffusion_core.settings import Settings, defaults, did_you_mean, validate
from mediffusion_core.settings.site_file import SiteFile

EXPERIMENTS = groups()["experiment"]
CHOICES = [
    (group, choice)
    for group, choices in groups().items()
    for choice in choices
    if group != "experiment"
]


def refusal(*overrides: str, config_name: str = "config") -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(UserError) as error:
        compose(config_name, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_configuration_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text((FOLDER / "config.yaml").read_text())
    outside = os.path.relpath(tmp_path / "outside", FOLDER)
    for name in (outside, str(tmp_path / "outside"), "model/tiny", "model/../config", "", "\0"):
        assert refusal(config_name=name).startswith(f"no configuration {name!r}; allowed: config")


@pytest.mark.parametrize("override", ["=1", "+=1", "~=", "++ =a"])
def test_a_value_without_a_key_is_refused(override: str) -> None:
    assert "is not of the form key=value" in refusal(override)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    settings = compose("config", [f"{group}={choice}", "data.image_size=64"])
    assert settings.model_dump()["seed"] == 0


def written(path: Path) -> dict[str, Any]:
    """Settings in one file of a group, by their dotted names."""
    group = path.parent.name
    content = yaml.safe_load(path.read_text())
    return flat(content if group == "experiment" else {group: content})


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        nested = isinstance(value, dict) and value and f"{prefix}{key}" not in MAPPINGS
        values |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(FOLDER.glob("*/*.yaml"))
        if path.parent.name != "experiment" and path.stem != "off"
    ],
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_a_file_of_a_group_holds_only_differences_from_the_defaults(path: Path) -> None:
    default = flat(defaults(Settings, required=None))
    same = [name for name, value in written(path).items() if default[name] == value]
    assert not same


def test_a_setting_that_no_file_names_can_be_changed() -> None:
    assert not any("grace_period" in path.read_text() for path in FOLDER.rglob("*.yaml"))
    settings = compose("config", ["federation.grace_period=3", "federation.num_rounds=2"])
    assert (settings.federation.grace_period, settings.federation.num_rounds) == (3, 2)


def test_a_group_without_a_choice_leaves_settings_missing() -> None:
    assert refusal("~data=phantom") == "setting data.channels is missing"
    assert "data=null: no such choice; allowed: chestxray14" in refusal("data=null")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    assert isinstance(compose("config", [f"experiment={experiment}"]), Settings)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_the_command_that_runs_it(experiment: str) -> None:
    second = (FOLDER / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    program, command, *overrides = shlex.split(second.removeprefix("# "))
    assert (program, command) == ("fed-mediffusion", "simulate")
    assert f"experiment={experiment}" in overrides
    named = compose("config", overrides)
    alone = compose("config", [f"experiment={experiment}"])
    assert named.fingerprint() == alone.fingerprint()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.image_sizes=32", ["data.image_sizes", "did you mean data.image_size"]),
        ("sead=1", ["sead", "did you mean seed"]),
        ("+training.joint.lamda=1", ["training.joint.lamda"]),
        ("seed=one", ["seed", "'one'", "integer"]),
        ("data.channels=2", ["data.channels", "2", "1 or 3"]),
        ("training.precision=fp16", ["training.precision", "'fp16'", "'fp32'", "'bf16'"]),
        ("data.test_fraction=0", ["data.test_fraction", "0", "greater than 0"]),
        ("model.unet.channels=[32,0,64]", ["model.unet.channels.1", "0", "greater than"]),
        ("data=isic", ["data=isic", "allowed", "phantom", "did you mean isic2019"]),
        ("data.source=isic", ["data.source=isic", "allowed: phantom,", "did you mean isic2019?"]),
        ("model=huge", ["model=huge", "allowed", "tiny", "paper"]),
        ("experiment=isic", ["experiment=isic", "isic2019_4centres"]),
        ("seed", ["'seed'", "key=value"]),
        ("data.image_size=72", ["data.image_size", "72", "multiple of 32", "model=tiny"]),
        ("federation.num_sites=4", ["federation.num_sites", "4", "patients_per_site", "3"]),
        ("seed=[1", ["seed=[1: this value can't be read", "allowed are numbers"]),
        ("seed=a b(", ["seed=a b(: this value can't be read"]),
        ("federation.num_sites=3;4", ["federation.num_sites=3;4: this value can't be read"]),
        ("Nodule]", ["'Nodule]'", "key=value", "blanks"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override: str, parts: list[str]) -> None:
    text = refusal(override)
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.unet.norm_groups=48", ["model.unet", "32", "48"]),
        ("model.autoencoder.norm_groups=48", ["model.autoencoder", "32", "48"]),
    ],
)
def test_a_width_that_does_not_fit_names_its_network(override: str, parts: list[str]) -> None:
    text = refusal(override)
    for part in parts:
        assert part in text, text


def test_a_joint_stage_without_any_loss_is_refused() -> None:
    text = refusal("training.joint.diffusion_weight=0", "training.joint.classification_weight=0")
    assert "diffusion_weight and training.joint.classification_weight are both 0" in text


def test_guidance_that_ends_above_the_classifiers_trained_noise_is_refused() -> None:
    given = (
        "evaluation.counterfactual.strength=0.5",
        "evaluation.counterfactual.num_inference_steps=1",
    )
    assert "num_inference_steps=1 from strength=0.5: the last step starts above" in refusal(*given)
    compose("config", [*given, "training.joint.noised_fraction=0"])
    fits = compose("config", [*given[:1], "evaluation.counterfactual.num_inference_steps=2"])
    # A model that was made with them opens all the same: it classifies.
    blind = fits.model_dump(mode="json")
    blind["evaluation"]["counterfactual"]["num_inference_steps"] = 1
    assert Settings.model_validate(blind).evaluation.counterfactual.num_inference_steps == 1


@pytest.mark.parametrize("name", ["consistency.weight", "alignment.distillation_weight"])
def test_a_loss_of_the_classifier_without_a_classifier_is_refused(name: str) -> None:
    given = (f"training.joint.{name}=1", "training.joint.classification_weight=0")
    assert f"{name} is relative to training.joint.classification_weight" in refusal(*given)


def test_an_unknown_configuration_lists_the_known() -> None:
    assert "allowed: config" in refusal(config_name="konfig")


def test_missing_settings_are_named() -> None:
    with pytest.raises(UserError, match="setting data is missing"):
        validate({})


def test_a_hint_is_given_only_where_one_is_near() -> None:
    assert did_you_mean("efusion", ["Effusion", "Mass"]) == ", did you mean Effusion?"
    assert did_you_mean("xyz", ["Effusion", "Mass"]) == ""


@pytest.mark.parametrize(
    "override",
    ["data.root=/elsewhere", "data.store=/elsewhere", "device=cpu", "run.folder=/elsewhere"],
)
def test_where_things_lie_is_not_hashed(override: str) -> None:
    assert compose("config", [override]).fingerprint() == compose("config", []).fingerprint()


def test_where_weights_lie_is_not_hashed_either() -> None:
    """A path differs from machine to machine; what it holds is the same."""
    here = compose("config", ["evaluation.inception_weights=/here/weights.pth"])
    there = compose("config", ["evaluation.inception_weights=/there/weights.pth"])
    assert here.fingerprint() == there.fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.labelled_fraction=0.5",
        "data.use_unlabelled=false",
        "+data.labelled_fraction_by_site.site-0=0.1",
        "data.phantom.patients_per_site=[900,900,901]",
        "model=small",
        "diffusion.timesteps=500",
        "training.joint.classification_weight=0.1",
        "federation.ema_decay=0.5",
        "evaluation.counterfactual.guidance_scale=3",
        "federation.compression=int8",
    ],
)
def test_settings_that_change_results_are_hashed(override: str) -> None:
    assert compose("config", [override]).fingerprint() != compose("config", []).fingerprint()


def test_a_sites_share_of_labels_can_be_given_as_a_mapping() -> None:
    settings = compose("config", ["data.labelled_fraction_by_site={site-0: 0.1}"])
    assert settings.data.labelled_fraction_by_site["site-0"] == 0.1


def test_the_hash_does_not_depend_on_how_a_number_is_written() -> None:
    written = compose("config", ["training.joint.learning_rate=0.0005", "data=phantom"])
    other = compose("config", ["training.joint.learning_rate=5e-4"])
    assert written.fingerprint() == other.fingerprint()


def test_shared_settings_can_be_read_back() -> None:
    settings = compose("config", ["data.root=/elsewhere", "device=cpu"])
    again = Settings.model_validate(settings.shared())
    assert again.fingerprint() == settings.fingerprint()
    assert again.data.root is None and again.device == "auto"


def test_folders_of_former_runs_are_read() -> None:
    settings = compose("config", [])
    former = settings.model_dump(mode="json")
    federation, privacy = former["federation"], former["privacy"]
    federation["participation"] = federation.pop("fraction_train")
    federation["min_replies"] = federation.pop("min_sites")
    for server in federation["server"].values():
        server["adaptivity"] = server.pop("tau")
    privacy["mode"] = privacy.pop("grad_sample_mode")
    privacy["ledger_heads"] = privacy.pop("ledger_tips")
    head = former["model"]["head"]
    head["moments"] = head.pop("latent_statistics")
    former["diffusion"] |= {"beta_start": 0.0015, "beta_end": 0.0195}
    former["training"]["joint"] |= {"class_balance": "none", "min_snr_gamma": None}
    assert Settings.model_validate(former) == settings


def test_a_removed_setting_of_a_former_run_is_read_only_at_its_fixed_value() -> None:
    assert "unknown setting diffusion.beta_start" in refusal("+diffusion.beta_start=0.1")


def test_a_former_name_is_unknown_beside_the_new_one() -> None:
    assert "unknown setting privacy.mode" in refusal("+privacy.mode=ghost")
    assert "did you mean privacy.grad_sample_mode?" in refusal("privacy.mode=ghost")
    assert "federation.server.unet.tau?" in refusal("federation.server.unet.adaptivity=1")


def test_every_setting_is_described() -> None:
    def without(model: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += without(inner, f"{prefix}{name}.")
            if not field.description:
                found.append(f"{prefix}{name}")
        return found

    assert [*without(Settings, ""), *without(SiteFile, "site.")] == []


def test_settings_cannot_be_changed() -> None:
    settings = compose("config", [])
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 1  # type: ignore[misc]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_overrides_survive_the_way_as_one_string(overrides: list[str]) -> None:
    assert split(flatten(overrides)) == overrides


def test_an_open_quotation_mark_is_a_mistake() -> None:
    with pytest.raises(UserError, match="seed='1"):
        split("seed='1")


@pytest.mark.parametrize(
    "path", ["/data/a b", "/data/it's", '/data/"x"', "/data/é=1,2[3]{4}", "/data/a\\b", "/d/$x"]
)
def test_any_path_survives_the_way_into_the_run(path: str) -> None:
    from configs import quoted

    settings = compose("config", split(flatten([f"data.root={quoted(Path(path))}"])))
    assert settings.data.root == Path(path)


@pytest.mark.parametrize("name", groups()["model"])
def test_every_preset_builds_and_fits_its_latents(name: str) -> None:
    import torch

    from mediffusion_core.inference.joint_model import build_joint

    settings = compose("config", [f"model={name}", "data.image_size=64"])
    with torch.device("meta"):
        joint = build_joint(settings, 5)
        autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
        images = torch.empty(2, settings.data.channels, 64, 64)
        latents = autoencoder.encode(images).mode()
        assert latents.shape == (2, *settings.latent_shape)
        noise_pred, logits = joint(latents, torch.zeros(2, dtype=torch.long))
    assert noise_pred.shape == latents.shape
    assert logits.shape == (2, 5)
    assert joint.head[2].in_features == pooled_width(settings.model.unet)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_setting_can_be_changed_on_the_command_line(group: str, name: str) -> None:
    choice = [f"{group}={name}"]
    composed = compose("config", choice).model_dump(mode="json")
    # Without its data set, a setting of phantoms means nothing.
    left_out = "none" if composed["data"]["source"] == "phantom" else "data.phantom."
    overrides = [
        f"{key}={json.dumps(value, separators=(',', ':')).replace(chr(34), '')}"
        for key, value in flat(composed).items()
        if not key.startswith(left_out)
    ]
    # Hydra refuses a setting that is not in its base.
    assert compose("config", [*choice, *overrides]).model_dump(mode="json") == composed


def test_uncertain_findings_are_given_as_in_the_readme() -> None:
    chexpert = ["data=chexpert", "data.root=/data"]
    settings = compose("config", [*chexpert, "data.uncertain_by_finding={Edema: ones}"])
    assert settings.data.uncertain_by_finding == {"Edema": "ones"}
    settings = compose("config", [*chexpert, "data.uncertain_by_finding.Edema=zeros"])
    assert settings.data.uncertain_by_finding == {"Edema": "zeros"}


@pytest.mark.parametrize("given", ["[]", "[0.0,1.5]", "[-0.1]"])
def test_noise_levels_are_fractions_and_at_least_one(given: str) -> None:
    with pytest.raises(UserError, match=r"^setting evaluation\.noise_levels"):
        compose("config", [f"evaluation.noise_levels={given}"])


def test_labelled_fractions_by_site_replace_those_of_the_file() -> None:
    two = ["federation.num_sites=2", "data.phantom.patients_per_site=[60,60]"]
    for value, expected in (("{}", {}), ("{site-1:0.5}", {"site-1": 0.5})):
        settings = compose("config", [*two, f"data.labelled_fraction_by_site={value}"])
        assert settings.data.labelled_fraction_by_site == expected
    both = compose("config", ["data.labelled_fraction_by_site.site-1=0.5"])
    assert both.data.labelled_fraction_by_site == {"site-1": 0.5, "site-2": 0.0}


PATHS = [
    "/data/archive (1)", "/data/Müller", "/data/数据", "/data/a=b", "/data/a,b", "/data/lab#2",
    "/data/it's", '/data/"x"', "/data/a b", "/data/[x]", "/data/{x}", "/data/x:y", "/data/123",
         "C:\\new\\", "/data/a\\'b", "/d/${HOME}", "/d/\\${x}",
    "~nobody-here/x", "123", "true", "a;b", "архив", "/data/🩻", "(1)", "-x", "*",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is_given(path: str) -> None:
    for override in (f"data.root={path}", f"data.root={quoted(path)}"):
        assert compose("config", ["data=folder", override]).data.root == Path(path)
    [again] = split(flatten([f"data.root={path}"]))
    assert compose("config", ["data=folder", again]).data.root == Path(path)


@hypothesis.settings(max_examples=25)  # each one composes all settings
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12))
def test_any_text_can_name_a_column(name: str) -> None:
    asked = ["data=folder", f"data.columns.image={quoted(name)}"]
    assert compose("config", asked).data.columns.image == name


@pytest.mark.parametrize("given", ["", "''", '""'])
def test_a_path_that_the_shell_left_empty_is_not_the_present_folder(given: str) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*: no path is given; data\.root=\. is"):
        compose("config", ["data=folder", f"data.root={given}"])


@pytest.mark.parametrize(
    "override",
    ["data.window=40,400", "data.window=(1", "data.max_bad_fraction=0,05", "seed=[1",
     "data.labelled_fraction_by_site={Müller=0.5}", "evaluation.noise_levels=[0.0,(]"],
)  # fmt: skip
def test_a_value_that_is_none_is_named_in_the_words_of_the_user(override: str) -> None:
    with pytest.raises(UserError) as error:
        compose("config", ["data=folder", override])
    assert str(error.value).startswith(f"{override}: this value can't be read; allowed are ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.separator=;", "separator", ";"),
        ("data.separator=,", "separator", ","),
        ("data.separator= ", "separator", " "),
        ("data.separator=~", "separator", "~"),
        ("data.separator='|'", "separator", "|"),
        ("data.classes=[0,1]", "classes", ("0", "1")),
        ("data.classes=0,1", "classes", ("0", "1")),
        ("data.classes=[unauffällig,肺炎]", "classes", ("unauffällig", "肺炎")),
        ("data.classes=[no finding, 'a, b', \"c\"]", "classes", ("no finding", "a, b", "c")),
        ("data.classes=null", "classes", None),
    ],
)
def test_a_text_needs_no_quotation_marks(override: str, key: str, value: Any) -> None:
    assert getattr(compose("config", ["data=folder", override]).data, key) == value


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("[0,1]", ("0", "1")),
        ("label (0=no, 1=ill)", "label (0=no, 1=ill)"),
        ("[Pleural Effusion,肺炎]", ("Pleural Effusion", "肺炎")),
        ("1", "1"),
    ],
)
def test_columns_may_be_called_anything(given: str, label: object) -> None:
    composed = compose("config", ["data=folder", f"data.columns.label={given}"])
    assert composed.data.columns.label == label


def test_a_list_that_the_shell_has_split_is_joined() -> None:
    given = ["data=folder", "data.columns.label=[Pleural", "Effusion,", "Nodule]"]
    assert compose("config", given).data.columns.label == ("Pleural Effusion", "Nodule")


@pytest.mark.parametrize("name", ["Müller", "St. Anna", "site-2", "数据", "a b"])
def test_sites_and_findings_may_be_called_anything(name: str) -> None:
    composed = compose("config", ["data=folder", f"data.labelled_fraction_by_site.{name}=0.5"])
    assert composed.data.labelled_fraction_by_site == {name: 0.5}


def test_changes_on_top_are_taken_as_they_are_given() -> None:
    settings = compose("config", ["data=folder"])
    assert change(settings, ["data.separator=;"]).data.separator == ";"
    with pytest.raises(UserError, match=r"seed=\[1: this value can't be read"):
        change(settings, ["seed=[1"])
