"""At step 0 the joint model is Stable Diffusion: widening a base changes none of its pictures.

The peers are diffusers' own pipelines, with the same components, noise, words and sampler. What
they do otherwise is evened out: they sample the posterior of the context, we take its mode; they
shrink a mask by its nearest pixel, we by its largest, so masks here lie on the latent grid.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unigs.noise import draw_noise
from unigs.records import UnigsWarning
from unigs.systems.joint.base import load_components
from unigs.systems.joint.denoiser import widen_unet
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.sampler import make_solver
from unigs.systems.sampling import Sampling

STEPS, SEED, INDICES, SIZE = 5, 3, [7, 8], (32, 64)
WORDS = ["inpainting: generate star and sand.", "a red heart on grass"]


def sample_ours(pipeline, image, mask, guidance: float, solver: str) -> torch.Tensor:
    """uint8 [B, 3, H, W] of our pipeline; the only place that knows how it is called."""
    sampling = Sampling(
        num_inference_steps=STEPS, solver=solver, guidance_scale=guidance, seed=SEED
    )
    return pipeline.predict(
        "inpainting", image=image, coarse_mask=mask, prompt=WORDS, indices=INDICES,
        sampling=sampling,
    ).image  # fmt: skip


def make_unet(config, in_channels: int) -> UNet2DConditionModel:
    """A random UNet whose every input moves its output."""
    torch.manual_seed(in_channels)
    unet = UNet2DConditionModel.from_config({**config, "in_channels": in_channels}).eval()
    torch.nn.init.normal_(unet.conv_in.weight, std=0.3)
    for name, weight in unet.named_parameters():
        if "attn2" in name and name.endswith("weight"):
            torch.nn.init.normal_(weight, std=0.5)
    return unet


def write_sd2(base: Path, folder: Path) -> None:
    """The base as Stable Diffusion 2 would be: other words, heads by level, v-prediction."""
    shutil.copytree(base, folder)
    text = CLIPTextConfig.from_pretrained(base / "text_encoder")
    text.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
    text.update({"num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 16})
    torch.manual_seed(0)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    CLIPTokenizer.from_pretrained(base / "tokenizer", pad_token="!").save_pretrained(
        folder / "tokenizer"
    )
    unet = dict(UNet2DConditionModel.load_config(base / "unet"))
    unet |= {"cross_attention_dim": 32, "attention_head_dim": [2, 2, 4]}
    unet |= {"use_linear_projection": True, "upcast_attention": True}
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config |= {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    path.write_text(json.dumps(config | {"skip_prk_steps": True, "set_alpha_to_one": False}))


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def parts(base, request, tmp_path_factory):
    if request.param == "sd1":
        return load_components(base)
    folder = tmp_path_factory.mktemp("sd2") / "base"
    write_sd2(Path(base), folder)
    with pytest.warns(UnigsWarning, match="PNDMScheduler"):
        parts = load_components(str(folder))
    assert parts.scheduler.config.prediction_type == "v_prediction"
    assert parts.towers.tokenizer.pad_token == "!"
    return parts


@pytest.fixture(scope="module")
def unets(parts) -> dict[int, UNet2DConditionModel]:
    return {channels: make_unet(parts.unet.config, channels) for channels in (4, 9)}


@pytest.fixture(scope="module")
def ours(parts, unets) -> dict[int, UniGSPipeline]:
    """Our pipeline over each base, as training begins."""
    towers = parts.towers
    return {
        channels: UniGSPipeline(
            towers.vae, towers.text_encoder, towers.tokenizer, widen_unet(unet), parts.scheduler
        )
        for channels, unet in unets.items()
    }


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pictures [B, 3, H, W] and holes, bool [B, 1, H, W], on the latent grid."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(len(WORDS), 3, 4, 8, generator=generator)
    image = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")
    mask = torch.zeros(len(WORDS), 1, *SIZE, dtype=torch.bool)
    mask[0, :, 4:20, 8:40] = True
    mask[1, :, 16:32, 24:60] = True
    return (image * 255).round().to(torch.uint8), mask


@pytest.fixture
def sample_peer(parts, unets, monkeypatch):
    """A peer's call -> uint8 [B, 3, H, W], the whole picture as it was decoded."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mode())

    def sample(kind, unet, guidance: float, solver: str, **inputs) -> torch.Tensor:
        towers = parts.towers
        peer = kind(
            vae=towers.vae, text_encoder=towers.text_encoder, tokenizer=towers.tokenizer,
            unet=unet, scheduler=make_solver(parts.scheduler, solver, STEPS), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        peer.set_progress_bar_config(disable=True)
        size = [side // towers.factor for side in SIZE]
        noise = draw_noise(SEED, INDICES, (8, *size), "sampling")[:, :4]
        options = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "pt"}
        made = peer(WORDS, height=SIZE[0], width=SIZE[1], latents=noise, **options, **inputs).images
        return (made * 255).round().to(torch.uint8)

    return sample


ROUNDING = {"epsilon": 1, "v_prediction": 3}
"""Of 0..255, by what a base predicts: guidance of 4 enlarges rounding of v at every step."""


def largest_difference(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> int:
    """Of 0..255, among the pixels of a mask [B, 1, H, W]."""
    return int(((one.int() - other.int()).abs() * where).max())


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_widened_inpainting_base_paints_what_the_base_paints(
    parts, ours, unets, inputs, sample_peer, guidance, solver
):
    image, mask = inputs
    given = {"image": image / 255, "mask_image": mask.float()}
    theirs = sample_peer(StableDiffusionInpaintPipeline, unets[9], guidance, solver, **given)
    mine = sample_ours(ours[9], image, mask, guidance, solver)
    kind = parts.scheduler.config.prediction_type
    assert largest_difference(mine, theirs, mask) <= ROUNDING[kind]
    assert torch.equal(mine * ~mask, image * ~mask)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("whole", [True, False])
def test_a_widened_text_to_image_base_paints_what_the_base_paints(
    parts, ours, unets, inputs, sample_peer, guidance, solver, whole
):
    """It has no eyes for mask and context yet, so the hole shows a part of the base's picture."""
    image, mask = inputs
    mask = torch.ones_like(mask) if whole else mask
    theirs = sample_peer(StableDiffusionPipeline, unets[4], guidance, solver)
    mine = sample_ours(ours[4], image, mask, guidance, solver)
    kind = parts.scheduler.config.prediction_type
    assert largest_difference(mine, theirs, mask) <= ROUNDING[kind]


def test_the_pictures_depend_on_all_that_is_given(unets, inputs, sample_peer):
    """Without this the equalities above would hold for a network that ignores its inputs."""
    image, mask = inputs
    call = lambda image, mask, guidance: sample_peer(
        StableDiffusionInpaintPipeline, unets[9], guidance, "ddim",
        image=image / 255, mask_image=mask.float(),
    )  # fmt: skip
    made = call(image, mask, 1.0)
    others = {
        "picture": call(255 - image, mask, 1.0),
        "mask": call(image, mask.flip(-1), 1.0),
        "words": call(image, mask, 4.0),
    }
    for name, other in others.items():
        assert largest_difference(made, other, mask) > 20, name
    assert made.float().std() > 10
