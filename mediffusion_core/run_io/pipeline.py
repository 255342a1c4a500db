"""A trained model as a pipeline of diffusers: it samples, classifies and explains."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils import is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target_by_name import class_indices, target_for
from mediffusion_core.data.drawn_masks import DrawnMask
from mediffusion_core.diffusion.process import CLEAN
from mediffusion_core.diffusion.samplers import denoise
from mediffusion_core.diffusion.scheduler import EvenDDIMScheduler, build_scheduler
from mediffusion_core.evaluation.counterfactual_panel import Counterfactuals, make_counterfactuals
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.models import Autoencoder, JointUNet, LatentCodec
from mediffusion_core.models.unet import head_widths
from mediffusion_core.run_io.exported_head import ExportedHead
from mediffusion_core.run_io.picture_input import Pictures, batch_of, editable_of
from mediffusion_core.settings import CounterfactualSettings, Settings

BATCH = 64


class JointDiffusionPipeline(DiffusionPipeline):
    """One network that samples images, classifies them and makes counterfactuals.

    ```python
    pipe = JointDiffusionPipeline.from_pretrained("exported")
    images = pipe(num_images=4, generator=torch.Generator().manual_seed(0)).images
    probabilities = pipe.classify(images)  # (4, classes), in the order of pipe.classes
    changed = pipe.explain(images, "Effusion")
    ```

    Probabilities and counterfactuals are those of `TrainedModel` with the same weights. The sampler
    is the scheduler; any other scheduler of diffusers can replace it.
    """

    _works_on: torch.device | None = None
    """The accelerator, where the networks rest on the CPU between calls."""

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DModel,
        head: ExportedHead,
        scheduler: EvenDDIMScheduler,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Takes the components, and the settings of the run as plain JSON values.

        Args:
            vae: On patches of pixels as channels; its configuration has the latents' scale.
            unet: The denoiser, whose encoder the head reads.
            head: The classifier, with the names of the classes.
            scheduler: Any scheduler of diffusers, with the noise process of the training.
            settings: `Settings.shared()`. It has a default since diffusers takes parameters
                without one for components, but it is not optional.

        Raises:
            UserError: without settings.
        """
        super().__init__()
        if settings is None:
            raise UserError("JointDiffusionPipeline needs the settings of the run")
        self.register_modules(vae=vae, unet=unet, head=head, scheduler=scheduler)
        self.register_to_config(settings=settings)

    @classmethod
    def of(cls, model: TrainedModel, settings: Settings | None = None) -> "JointDiffusionPipeline":
        """The pipeline of a trained model, whose weights it shares.

        Args:
            model: The model.
            settings: Settings to write; the model's own by default.
        """
        settings = settings or model.settings
        vae = model.codec.autoencoder.kl
        scale = {"mean": model.codec.mean, "std": model.codec.std}
        vae.register_to_config(
            **{f"latents_{name}": value.flatten().tolist() for name, value in scale.items()}
        )
        layers = settings.model.head
        head = ExportedHead(
            widths=head_widths(settings.model.unet, layers, settings.latent_shape[0]),
            classes=list(model.classes),
            multi_label=model.multi_label,
            temperature=model.temperature,
            **layers.model_dump(exclude={"latent_statistics"}),
            moments=layers.latent_statistics,
        )
        head.layers = model.joint.head
        scheduler = build_scheduler(settings.diffusion)
        return cls(vae, model.joint.unet, head.eval(), scheduler, settings.shared())

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "JointDiffusionPipeline":
        """Opens a folder that `save_pretrained` or `fed-mediffusion export` has written.

        Args:
            folder: The folder, or the name of a repository on a model hub.
            options: Of `DiffusionPipeline.from_pretrained`.
        """
        # Otherwise diffusers warns three times that accelerate is not installed.
        options.setdefault("low_cpu_mem_usage", is_accelerate_available())
        pipeline: JointDiffusionPipeline = super().from_pretrained(folder, **options)
        # Weights in a mapped file may be unaligned, and kernels round differently there, which
        # guidance amplifies to visible differences.
        for module in (pipeline.vae, pipeline.unet, pipeline.head):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.clone()
        return pipeline

    @classmethod
    def load_config(cls, folder: str | Path, **options: Any) -> Any:
        """The index of a folder, which names the class and the module of each component.

        For the head they are not taken from the index, since folders of earlier versions name a
        former module.
        """
        index = super().load_config(folder, **options)
        if isinstance(index, dict) and "head" in index:
            index["head"] = [ExportedHead.__module__, ExportedHead.__name__]
        return index

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes a folder that this class opens.

        It says where the class is, so that `DiffusionPipeline`, which knows its own alone, refuses
        the folder with the name of what to import.

        Args:
            folder: The folder.
            options: Of `DiffusionPipeline.save_pretrained`.
        """
        super().save_pretrained(folder, **options)
        index = Path(folder, self.config_name)
        described = json.loads(index.read_text(encoding="utf-8"))
        described["_class_name"] = f"{__name__}.{type(self).__name__}"
        index.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keeps the networks on the CPU, and on the accelerator only while a method works.

        It needs no other package: diffusers' own way hooks `forward`, and the classifier reads the
        inside of the UNet.

        Args:
            gpu_id: Number of the accelerator.
            device: Its type, for example `cuda`; by default the one that PyTorch finds.

        Raises:
            UserError: If there is no accelerator.
        """
        found = torch.accelerator.current_accelerator()
        if device is None and found is None:
            raise UserError("enable_model_cpu_offload: PyTorch finds no accelerator here")
        kind = torch.device(device) if device is not None else found
        assert kind is not None
        self._works_on = kind if gpu_id is None else torch.device(kind.type, gpu_id)
        self.to("cpu")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The networks on the accelerator, where they rest on the CPU."""
        if self._works_on is None:
            yield
            return
        self.to(self._works_on)
        try:
            yield
        finally:
            self.to("cpu")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return tuple(self.head.config.classes)

    @property
    def trained(self) -> TrainedModel:
        """The same networks as a `TrainedModel`.

        Raises:
            UserError: if they are in another precision than the one they were trained in.
        """
        if self.dtype != torch.float32:
            raise UserError(f"the pipeline works in torch.float32, not in {self.dtype}")
        settings = Settings.model_validate(dict(self.config.settings))
        scale = self.vae.config
        codec = LatentCodec(
            Autoencoder.of(self.vae, settings.model.autoencoder.patch_size),
            torch.tensor(scale.latents_mean),
            torch.tensor(scale.latents_std),
        )
        return TrainedModel(
            settings,
            self.classes,
            self.head.config.multi_label,
            codec.to(self.device),
            JointUNet.of(self.unet, self.head.layers),
            self.head.config.temperature,
        )

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        num_inference_steps: int = 20,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws images; with the same generator's state the same ones.

        Args:
            num_images: N.
            num_inference_steps: Denoising steps.
            generator: Of the noise, and of what a scheduler adds to it at each step.
            output_type: `pil` for a list of Pillow's images, `pt` for a tensor (N, C, H, W) in
                [0, 1], `np` for an array (N, H, W, C).
            return_dict: Whether to name the result `images`.

        Raises:
            UserError: fewer than 1 image or step, another output type, or an untrained denoiser.
        """
        for name, value in (("images", num_images), ("inference_steps", num_inference_steps)):
            if value < 1:
                raise UserError(f"num_{name}={value}: allowed are 1 and more")
        if output_type not in ("pil", "pt", "np"):
            raise UserError(f"output_type={output_type!r}: allowed are pil, pt, np")
        with self._at_work():
            images = self._drawn(num_images, num_inference_steps, generator)
        made = _as_asked(images, output_type)
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def _drawn(self, num_images: int, steps: int, generator: torch.Generator | None) -> Tensor:
        """New images (N, C, H, W) in [0, 1], on the CPU."""
        model = self.trained
        model.refuse_to_draw()
        shape = (num_images, *model.settings.latent_shape)
        noise = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        noise = noise * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(steps, device=self.device)
        parts = list(noise.split(BATCH))
        with self.progress_bar(total=len(parts) * len(self.scheduler.timesteps)) as bar:
            latents = [self._denoise(model.joint, part, generator, bar) for part in parts]
        return model.decode(torch.cat(latents))

    def classify(self, images: Pictures) -> Tensor:
        """Calibrated probabilities (N, classes) of images, on the CPU.

        Raises:
            UserError: if the images are not of the model's size and channels, or not in [0, 1], or
                if the classifier was not trained.
        """
        with self._at_work():
            model = self.trained
            return model.classify(batch_of(images, model.settings))

    def explain(
        self,
        images: Pictures,
        target: str | Sequence[str],
        present: bool | None = None,
        guidance: CounterfactualSettings | None = None,
        edit: DrawnMask | Sequence[DrawnMask] | None = None,
        keep: DrawnMask | Sequence[DrawnMask] | None = None,
    ) -> Counterfactuals:
        """Counterfactuals: near images that the model classifies as the target.

        Args:
            images: N images.
            target: The class of the counterfactuals. Of independent classes it may be several,
                which change at once while the others are preserved.
            present: Whether findings are to be present; by default each is removed where its
                probability is at least 0.5, and added elsewhere.
            guidance: Settings of the guidance; those of the run by default.
            edit: A mask, white where an image may change; one for all, or one for each.
            keep: A mask, white where an image must not change; with both, `edit` without `keep`.

        Returns:
            `images`, the counterfactuals (N, C, H, W) in [0, 1]; `sources`, the images; their
            probabilities `after` and `before` (N, classes); which have `flipped` (N,); a `note` if
            a target's confidence was not reached within a mask.

        Raises:
            UserError: as `classify`; if the denoiser was not trained; if the target is no class,
                names one twice or several that exclude each other, or if an exclusive one is to be
                absent; if a mask cannot be read or has another aspect, or nothing may change.
        """
        with self._at_work():
            model = self.trained
            names = [target] if isinstance(target, str) else target
            indices = class_indices(names, self.classes, model.multi_label)
            batch = batch_of(images, model.settings)
            editable = editable_of(images, edit, keep, model.settings)
            asked = target_for(indices, model.classify(batch), model.multi_label, present)
            guidance = guidance or model.settings.evaluation.counterfactual
            return make_counterfactuals(model, batch, asked, guidance, editable)

    def _denoise(
        self, joint: JointUNet, latents: Tensor, generator: torch.Generator | None, bar: Any
    ) -> Tensor:
        """One batch (B, c, h, w) from noise to latents."""
        takes_generator = "generator" in signature(self.scheduler.step).parameters
        options = {"generator": generator} if takes_generator else {}
        # A scheduler of higher order still has the last steps of another batch.
        self.scheduler.set_timesteps(self.scheduler.num_inference_steps, device=self.device)

        def predict(current: Tensor, timestep: Any) -> Tensor:
            scaled = self.scheduler.scale_model_input(current, timestep)
            return joint.denoise(scaled, timestep.expand(len(current)))

        def step(current: Tensor, output: Tensor, timestep: Any, _after: Any) -> Tensor:
            bar.update()
            stepped = self.scheduler.step(output, timestep, current, return_dict=False, **options)
            reached: Tensor = stepped[0]
            return reached

        return denoise(predict, step, latents, [*self.scheduler.timesteps, CLEAN])


def _as_asked(images: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return images
    pixels = images.permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
    if output_type == "np":
        return pixels
    whole = (pixels * 255).round().astype(np.uint8)
    return [Image.fromarray(one.squeeze(-1) if one.shape[2] == 1 else one) for one in whole]
