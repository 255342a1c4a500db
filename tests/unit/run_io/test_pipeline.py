"""The exported pipeline: the run's own model, without anything of federation."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from helpers.untrained import untrained_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.data.store.images import fit
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.diffusion.samplers import ddim_step, denoise, sampling_levels
from mediffusion_core.diffusion.scheduler import build_scheduler
from mediffusion_core.evaluation.counterfactual_panel import make_counterfactuals
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.reporting.model_card import model_card
from mediffusion_core.run_io import pipeline
from mediffusion_core.run_io.export import export_run
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from mediffusion_core.settings import DiffusionSettings, Prediction

ROOT = Path(__file__).parents[3]
CLASSES = ("Effusion", "Mass", "Nodule")
SUMMARY = {
    "status": "completed",
    "auc_macro": 0.8765,
    "auc_macro_interval": [0.81, 0.92],
    "auc_per_class": {"Mass": {"auc": 0.9, "interval": [0.8, 0.95], "positives": 12}},
    "auc_per_site": {"st-anna": 0.8},
    "census": {
        "st-anna": {"images": 1000, "patients": 90, "labelled": 20},
        "mercy": {"images": 234, "patients": 9, "labelled": 0},
    },
    "calibration": {"temperature": 1.3, "ece": 0.02, "brier": 0.1},
    "fid": float("nan"),
    "seed": 1,
    "commit": "0123456789abcdef",
    "settings_hash": "fedcba98",
}


def make_run(folder: Path, tiny: tuple[str, ...], *changes: str, several: bool = True) -> Path:
    """The folder of a run whose networks are as they were drawn."""
    named = "data.labelled_fraction_by_site.st-anna=0.1"
    settings = compose("config", [*tiny, f"+{named}", *changes])
    model = replace(untrained_model(settings, CLASSES, several), temperature=1.3)
    model.codec.mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]).reshape(1, -1, 1, 1))
    model.codec.std.copy_(torch.tensor([0.7, 1.1, 0.9, 1.3]).reshape(1, -1, 1, 1))
    for parameter in model.joint.head.parameters():  # queries start at zero
        nn.init.normal_(parameter, std=0.3)
    model.save(RunFolder(folder).model)
    write_json(folder / "summary.json", SUMMARY)
    return folder


def images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, size, size, generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), tiny)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("out") / "exported")


@pytest.fixture(scope="module")
def pipe(exported: Path) -> JointDiffusionPipeline:
    opened = JointDiffusionPipeline.from_pretrained(exported)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return TrainedModel.load(run / "model", torch.device("cpu"))


# The scheduler


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 7, 30, 1000])
def test_the_scheduler_is_our_sampler(prediction: Prediction, steps: int) -> None:
    """With diffusers' own beta schedule, and its name for the network's target."""
    settings = DiffusionSettings(prediction=prediction)
    process = DiffusionProcess.of(settings)

    def network(latents: Tensor, timestep: int) -> Tensor:
        return 0.5 * latents.tanh() * (1 - timestep / 2000)

    def noise_pred(latents: Tensor, timestep: int) -> Tensor:
        return process.noise_pred(network(latents, timestep), latents, timestep)

    noise = torch.randn(2, 4, 3, 3, generator=generator(0))
    levels = sampling_levels(1000, steps)
    expected = denoise(noise_pred, partial(ddim_step, process), noise, levels)
    scheduler = build_scheduler(settings)
    torch.testing.assert_close(scheduler.alphas_cumprod, process.alphas_cumprod, rtol=1e-4, atol=0)
    scheduler.set_timesteps(steps)
    latents = noise
    for timestep in scheduler.timesteps:
        output = network(latents, int(timestep))
        latents = scheduler.step(output, timestep, latents).prev_sample
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_from_one_timestep_to_the_next_it_steps_as_diffusers_own(prediction: Prediction) -> None:
    ours = build_scheduler(DiffusionSettings(prediction=prediction))
    theirs = DDIMScheduler.from_config(ours.config)
    ours.set_timesteps(1000)
    theirs.set_timesteps(1000)
    latents, output = torch.randn(2, 2, 4, 3, 3, generator=generator(0))
    for timestep in (999, 400, 2):
        expected = theirs.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(ours.step(output, timestep, latents).prev_sample, expected)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    assert int((ours.timesteps - theirs.timesteps).abs().max()) == 1


# Messages and cards


@pytest.mark.parametrize("steps", [4, 7])
def test_samples_are_those_of_the_run(
    pipe: JointDiffusionPipeline, model: TrainedModel, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH", 3)
    drawn = pipe(5, steps, generator=generator(5), output_type="pt").images
    expected = model.sample(5, steps, 5)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    assert float(expected.std()) > 0.05


def test_the_same_generator_gives_the_same_images(pipe: JointDiffusionPipeline) -> None:
    first, again = (pipe(2, 2, generator=generator(3), output_type="np").images for _ in range(2))
    assert np.array_equal(first, again)
    [one, _] = pipe(num_images=2, num_inference_steps=2, generator=generator(3)).images
    assert one.mode == "L" and one.size == (32, 32)
    assert np.array_equal(np.asarray(one), (first[0, :, :, 0] * 255).round().astype(np.uint8))
    (tuple_form,) = pipe(2, 2, generator=generator(3), output_type="np", return_dict=False)
    assert np.array_equal(tuple_form, first)


def test_probabilities_are_those_of_the_run(
    pipe: JointDiffusionPipeline, model: TrainedModel
) -> None:
    probabilities = pipe.classify(images(9))
    assert torch.equal(probabilities, model.classify(images(9)))
    assert probabilities.std(dim=0).min() > 0
    assert pipe.classes == CLASSES


@pytest.mark.parametrize("present", [None, True, False])
def test_explanations_are_those_of_the_run(
    pipe: JointDiffusionPipeline, model: TrainedModel, present: bool | None
) -> None:
    given = images(4)
    made = pipe.explain(given, "Mass", present)
    wanted = (
        model.classify(given)[:, 1] < 0.5 if present is None else torch.full((4,), bool(present))
    )
    target = Target(torch.full((4,), 1), wanted, True)
    expected = make_counterfactuals(model, given, target, model.settings.evaluation.counterfactual)
    assert torch.equal(made.images, expected.images)
    assert torch.equal(made.after, expected.after)
    assert not torch.equal(made.images, made.sources)


def test_masks_hold_as_they_do_for_the_run(
    pipe: JointDiffusionPipeline, model: TrainedModel
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), dtype=np.uint8)
    left, top = (np.zeros((40, 70), np.uint8) for _ in range(2))
    left[:, :35], top[:20] = 255, 255  # the crop is of the columns 15 to 55
    pictures = [Image.fromarray(one) for one in pixels]
    masks = [Image.fromarray(top)] * 2
    made = pipe.explain(pictures, "Mass", True, edit=Image.fromarray(left), keep=masks)
    given = torch.from_numpy(np.stack([fit(one, 32, 1) for one in pixels])).permute(0, 3, 1, 2)
    given = given.float() / 255
    editable = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    editable[:, :, 16:, :16] = True
    target = Target(torch.full((2,), 1), torch.ones(2, dtype=torch.bool), True)
    guidance = model.settings.evaluation.counterfactual
    expected = make_counterfactuals(model, given, target, guidance, editable)
    assert torch.equal(made.images, expected.images) and made.note == expected.note
    assert torch.equal(made.images[~editable], given[~editable])
    assert not torch.equal(made.images, given)
    whole = Image.new("L", (64, 64), 255)
    free, unmasked = pipe.explain(given, "Mass", edit=whole), pipe.explain(given, "Mass")
    assert torch.equal(free.images, unmasked.images)
    with pytest.raises(UserError, match="a list of masks has one for each image"):
        pipe.explain(given, "Mass", edit=[whole, None])  # type: ignore[list-item]
    with pytest.raises(UserError, match="3 masks for 2 images: allowed are 1 and 2"):
        pipe.explain(given, "Mass", edit=[whole] * 3)


@pytest.mark.parametrize(
    "changes",
    [
        ("model.head.pooling=attention", "model.head.normalised=true"),
        ("model.head.latent_statistics=true", "model.head.hidden=0"),
        ("data.augmentation=dermoscopy", "evaluation.noise_levels=[0,0.1]"),
        ("data.channels=3", "data.source=isic2019", "federation.num_sites=2"),
    ],
)
def test_a_model_is_exported_with_its_settings(
    changes: tuple[str, ...], tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    run = make_run(tmp_path / "run", tiny, *changes, several=False)
    opened = JointDiffusionPipeline.from_pretrained(export_run(run, tmp_path / "deep" / "out"))
    model = TrainedModel.load(run / "model", torch.device("cpu"))
    given = images(3).repeat(1, model.settings.data.channels, 1, 1)
    assert torch.equal(opened.classify(given), model.classify(given))
    assert torch.equal(
        opened.trained.decode(model.encode(given)), model.decode(model.encode(given))
    )
    made = opened.explain(given, "Nodule")
    target = Target(torch.full((3,), 2), torch.ones(3, dtype=torch.bool), False)
    expected = make_counterfactuals(model, given, target, model.settings.evaluation.counterfactual)
    assert torch.equal(made.images, expected.images)


def test_pictures_of_any_size_are_cropped_as_for_training(pipe: JointDiffusionPipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    fitted = torch.from_numpy(fit(pixels, 32, 1).copy()).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(pipe.classify(Image.fromarray(pixels)), pipe.classify(fitted))
    assert pipe.classify([Image.fromarray(pixels)] * 3).shape == (3, 3)


def test_another_scheduler_of_diffusers_may_draw(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH", 3)
    pipe = JointDiffusionPipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    slow = pipe(5, 40, generator=generator(0), output_type="pt").images
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    fast = pipe(5, 15, generator=generator(0), output_type="pt").images
    assert float((fast - slow).abs().mean()) < 0.1 * float(slow.std())


def test_the_generator_rules_a_scheduler_that_adds_noise(exported: Path) -> None:
    opened = JointDiffusionPipeline.from_pretrained(exported)
    opened.scheduler = DDPMScheduler.from_config(opened.scheduler.config)
    first, again, other = (
        opened(2, 3, generator=generator(seed), output_type="pt").images for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_parts_open_with_diffusers_alone(exported: Path, model: TrainedModel) -> None:
    vae = AutoencoderKL.from_pretrained(exported / "vae")
    assert vae.config.latents_mean == pytest.approx([0.1, -0.2, 0.3, 0.4])
    unet = UNet2DModel.from_pretrained(exported / "unet")
    latents = torch.randn(2, *model.settings.latent_shape, generator=generator(0))
    with torch.no_grad():
        expected = model.joint.denoise(latents, torch.tensor([7, 7]))
        torch.testing.assert_close(unet(latents, 7).sample, expected)
    assert DDIMScheduler.from_pretrained(exported / "scheduler").config.clip_sample is False


def test_it_works_where_nothing_of_federation_is_installed(
    exported: Path, pipe: JointDiffusionPipeline
) -> None:
    code = (
        "import sys\n"
        "for name in ('flwr', 'ray', 'hydra', 'omegaconf', 'typer', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from mediffusion_core.run_io.pipeline import JointDiffusionPipeline\n"
        "pipe = JointDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "drawn = pipe(num_images=2, num_inference_steps=2, output_type='pt',\n"
        "             generator=torch.Generator().manual_seed(0)).images\n"
        "made = pipe.explain(drawn, 'Effusion')\n"
        "print(pipe.classify(drawn).tolist(), made.images.shape[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "accelerate" not in done.stderr
    drawn = pipe(2, 2, generator=generator(0), output_type="pt").images
    assert done.stdout.split() == f"{pipe.classify(drawn).tolist()} 2".split()


# The folder


def test_the_folder_is_a_diffusers_pipeline_with_a_card(
    exported: Path, model: TrainedModel
) -> None:
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == "mediffusion_core.run_io.pipeline.JointDiffusionPipeline"
    assert {path.suffix for path in exported.rglob("*") if path.is_file()} == {
        ".json",
        ".md",
        ".safetensors",
    }
    assert len({path.stat().st_mode for path in exported.rglob("*") if path.is_file()}) == 1
    unet = load_file(exported / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet.keys() == model.joint.unet.state_dict().keys()
    card = (exported / "README.md").read_text()
    for text in ("without differential privacy", "Not a medical device", "0.876", "0.810 to 0.920"):
        assert text in card
    assert "| images | 1,234 |" in card
    assert "| FID | not measured |  |" in card


def test_a_folder_opens_that_names_the_head_by_its_former_module(
    exported: Path, pipe: JointDiffusionPipeline, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "old")
    index = tmp_path / "old" / "model_index.json"
    written = json.loads(index.read_text())
    written["head"][0] = "mediffusion_core.artifacts.exported_head"
    index.write_text(json.dumps(written))
    opened = JointDiffusionPipeline.from_pretrained(tmp_path / "old")
    assert torch.equal(opened.classify(images(2)), pipe.classify(images(2)))


def test_a_head_with_statistics_beside_maps_is_of_an_earlier_version(
    exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "old")
    file = tmp_path / "old" / "head" / "config.json"
    written = json.loads(file.read_text())
    assert len(written["widths"]) > 1
    file.write_text(json.dumps({**written, "moments": True}))
    with pytest.raises(UserError, match="version; open it with the version"):
        JointDiffusionPipeline.from_pretrained(tmp_path / "old")


def test_the_card_has_the_largest_budget(tiny: tuple[str, ...]) -> None:
    private = compose("config", [*tiny, "privacy=dp"])
    sites = {"st-anna": {"epsilon": 3.456}, "mercy": {"epsilon": 7.891}}

    def card(sites: dict[str, dict[str, float | None]]) -> str:
        summary = {**SUMMARY, "privacy": {"unit": "patient", "sites": sites}}
        return model_card(summary, private, CLASSES, True)

    assert "one patient more or less" in card(sites)
    assert "at most ε = 7.89 at δ = 1e-05" in card(sites)
    assert "3.46" not in card(sites) and "without differential privacy" not in card(sites)
    unknown = {**sites, "third": {"epsilon": None}}
    assert "ε = not measured" in card(unknown)


def test_the_card_promises_and_shows_no_more_than_was_trained(tiny: tuple[str, ...]) -> None:
    def card(*given: str) -> str:
        return model_card(SUMMARY, compose("config", [*tiny, *given]), CLASSES, True)

    whole = card()
    classifier = card("training.joint.diffusion_weight=0")
    denoiser = card("training.joint.classification_weight=0")
    assert "does nothing else" not in whole
    assert "does nothing else" in classifier and "does nothing else" in denoiser
    for use, cards in (
        ("pipe(num_images=4", {whole, denoiser}),
        ("pipe.classify(images)", {whole, classifier}),
        ("pipe.explain(", {whole}),
    ):
        assert {one for one in (whole, classifier, denoiser) if use in one} == cards


def test_a_half_that_was_not_trained_is_refused(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    def exported_without(part: str) -> JointDiffusionPipeline:
        run = make_run(tmp_path / part, tiny, f"training.joint.{part}_weight=0")
        return JointDiffusionPipeline.from_pretrained(export_run(run, tmp_path / f"{part}-out"))

    classifier, denoiser = exported_without("diffusion"), exported_without("classification")
    given = images(2)
    assert len(classifier.classify(given)) == 2
    assert len(denoiser(2, 1, output_type="pt").images) == 2
    for refused in (lambda: classifier(2, 1), lambda: classifier.explain(given, CLASSES[0])):
        with pytest.raises(UserError, match="its denoiser was not trained"):
            refused()
    for refused in (
        lambda: denoiser.classify(given),
        lambda: denoiser.explain(given, CLASSES[0]),
    ):
        with pytest.raises(UserError, match="its classifier was not trained"):
            refused()


def test_the_card_has_the_client_level_guarantee(tiny: tuple[str, ...]) -> None:
    hidden = "federation.client_level.noise_multiplier=2"
    summary = {**SUMMARY, "client_level": {"epsilon": 9.104, "rounds": 5}}
    alone = model_card(summary, compose("config", [*tiny, hidden]), CLASSES, True)
    assert "spend ε = 9.10 at δ = 0.01, of 5 noised means" in alone
    assert "DP-SGD" not in alone and "without differential privacy" not in alone
    both = model_card(summary, compose("config", [*tiny, hidden, "privacy=dp"]), CLASSES, True)
    assert "ε = 9.10" in both and "one patient more or less" in both


def test_no_site_is_named(exported: Path) -> None:
    for path in exported.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert "anna" not in path.read_text() and "mercy" not in path.read_text()


# Mistakes


def test_diffusers_own_class_names_the_class_to_import(exported: Path) -> None:
    with pytest.raises(AttributeError) as error:
        DiffusionPipeline.from_pretrained(exported)
    assert "mediffusion_core.run_io.pipeline.JointDiffusionPipeline" in str(error.value)
    assert "\n" not in str(error.value)


def test_networks_rest_on_the_cpu_between_calls(
    exported: Path, pipe: JointDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = JointDiffusionPipeline.from_pretrained(exported)
    opened.set_progress_bar_config(disable=True)
    moves: list[str] = []
    monkeypatch.setattr(opened, "to", lambda place: moves.append(str(place)))
    opened.enable_model_cpu_offload(device="cpu:0")
    given = images(2)
    assert torch.equal(opened.classify(given), pipe.classify(given))
    drawn = opened(2, 2, generator=generator(0), output_type="pt").images
    assert torch.equal(drawn, pipe(2, 2, generator=generator(0), output_type="pt").images)
    assert torch.equal(opened.explain(given, "Mass").images, pipe.explain(given, "Mass").images)
    assert moves == ["cpu", *["cpu:0", "cpu"] * 3]


def test_offloading_works_with_an_accelerator_alone(exported: Path) -> None:
    opened = JointDiffusionPipeline.from_pretrained(exported)
    if torch.accelerator.is_available():
        opened.enable_model_cpu_offload()
        assert opened.classify(images(2)).shape == (2, 3)
        assert opened.device.type == "cpu"
    else:
        with pytest.raises(UserError, match="finds no accelerator"):
            opened.enable_model_cpu_offload()


def test_a_run_must_be_there_and_completed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        export_run(tmp_path / "none", tmp_path / "out")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"status not ended.*--resume"):
        export_run(run, tmp_path / "out")
    write_json(run / "summary.json", {"status": "failed"})
    with pytest.raises(UserError, match="status failed"):
        export_run(run, tmp_path / "out")
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        export_run(run, tmp_path / "out")
    write_json(run / "summary.json", SUMMARY)
    with pytest.raises(UserError, match="no trained model"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for there in (tmp_path, tmp_path / "kept"):
        with pytest.raises(UserError, match="exists; remove it, or name a folder"):
            export_run(run, there)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_several_findings_change_at_once(pipe: JointDiffusionPipeline, model: TrainedModel) -> None:
    given = images(4)
    made = pipe.explain(given, [CLASSES[2], CLASSES[0]])
    present = model.classify(given)[:, [2, 0]] < 0.5
    target = Target(torch.tensor([[2, 0]] * 4), present, True)
    expected = make_counterfactuals(model, given, target, model.settings.evaluation.counterfactual)
    assert torch.equal(made.images, expected.images)
    assert torch.equal(made.flipped, expected.flipped)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Mas", "unknown class 'Mas', did you mean Mass"),
        (["Mass", "Mass"], "a class is named twice: Mass, Mass"),
        ([], "no class is named"),
    ],
)
def test_a_target_must_be_a_class(
    pipe: JointDiffusionPipeline, target: str | list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pipe.explain(images(1), target)


def test_half_precision_is_refused(exported: Path) -> None:
    opened = JointDiffusionPipeline.from_pretrained(exported, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"works in torch\.float32, not in torch\.bfloat16"):
        opened.classify(images(1))


def test_exclusive_classes_cannot_be_removed(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", tiny, several=False)
    opened = JointDiffusionPipeline.from_pretrained(export_run(run, tmp_path / "out"))
    with pytest.raises(UserError, match="exclude each other"):
        opened.explain(images(1), "Mass", present=False)
    with pytest.raises(UserError, match="exclude each other; choose one"):
        opened.explain(images(1), list(CLASSES[:2]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(1)[0], "of shape"),
        (images(1, 16), r"takes \(N, 1, 32, 32\)"),
        (images(0), "of shape"),
        (images(1) * 255, r"in \[0, 1\]"),
        (images(1) * torch.nan, r"in \[0, 1\]"),
        ((images(1) * 255).to(torch.uint8), r"in \[0, 1\]"),
        ([], "a list of them"),
        ([np.zeros((32, 32))], "a list of them"),
        (Image.new("F", (32, 32), float("nan")), "values are not finite"),
        (Path("gone.png"), "gone.png cannot be used: no such file"),
        (["gone.dcm"], "gone.dcm cannot be used: no such file"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    pipe: JointDiffusionPipeline, given: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pipe.classify(given)


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"num_inference_steps": 0}])
def test_nothing_is_drawn_in_no_steps(pipe: JointDiffusionPipeline, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=0"):
        pipe(**wrong)
    with pytest.raises(UserError, match="allowed are pil, pt, np"):
        pipe(output_type="latent")
