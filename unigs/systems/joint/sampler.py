"""Denoising both streams together, with guidance and given streams (Sec. 3.3; diffusion -> codec).

In: conditions, noise and a resolved ``Sampling``. Out: clean streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler
from torch import Tensor

from unigs.noise import draw_noise
from unigs.records import UnigsError
from unigs.systems.joint.conditions import Conditions
from unigs.systems.joint.denoiser import denoise, spread_streams
from unigs.systems.joint.objective import given_streams
from unigs.systems.joint.towers import FrozenTowers
from unigs.systems.sampling import Sampling, Solver
from unigs.tasks import RECIPES

OnStep = Callable[[int, Tensor, Tensor], Tensor]
"""Step 0..., timestep and state -> the state to go on with."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One call of the network in a step.

    Attributes:
        conditions: what it is told.
        weight: float [1, 8, 1, 1], by which its output counts; they sum to 1 over the passes.
    """

    conditions: Conditions
    weight: Tensor


def make_solver(scheduler: Any, solver: Solver, steps: int) -> Any:
    """A sampling scheduler with the training schedule's betas and trailing timesteps.

    ``ddim`` is the paper's (200 steps); ``unipc`` is the few-step default. "Trailing" starts from
    the last training step, where samples are nearly noise, whatever the number of steps. A
    scheduler that stands in place of the training's is the solver as it is.

    Raises:
        UnigsError: steps that no solver can run.
    """
    check_steps(scheduler, solver, steps)
    if not isinstance(scheduler, DDPMScheduler):
        return type(scheduler).from_config(scheduler.config)
    kind = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler}[solver]
    return kind.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)


def check_steps(scheduler: Any, solver: Solver | None, steps: int | None) -> None:
    """Refuse what the training's schedule cannot be cut into; of a resolved ``Sampling``.

    Raises:
        UnigsError: more steps than those of training, or DDIM steps that do not divide them.
    """
    total, where = scheduler.config.num_train_timesteps, "sampling.num_inference_steps"
    if steps is None or not 1 <= steps <= total:
        raise UnigsError(f"expected 1 to {total} steps, got {steps}, at {where}")
    if isinstance(scheduler, DDPMScheduler) and solver == "ddim" and total % steps:
        raise UnigsError(f"expected DDIM steps that divide {total}, got {steps}, at {where}")


def draw_ensemble(
    seed: int, indices: Sequence[int], shape: Sequence[int], size: int
) -> Iterator[Tensor]:
    """Noise [B, *shape] of each member; the first is that of a single sample."""
    for member in range(size):
        purpose = f"sampling {member}" if member else "sampling"
        yield draw_noise(seed, indices, shape, purpose)


def plan_passes(
    task: str, towers: FrozenTowers, conditions: Conditions, sampling: Sampling
) -> list[Pass]:
    """What the network is told in each pass of a step, and how its output weighs.

    Everything; no words; neither words nor entities (Brooks et al. 2023, Eq. 3). Passes that weigh
    nothing are left out.
    """
    words = sampling.guidance_scale
    entities = sampling.entity_guidance_scale if RECIPES[task].given == "colormap" else 1.0
    colormap = sampling.colormap_guidance_scale
    assert words is not None
    assert entities is not None
    assert colormap is not None
    told = conditions
    passes = []
    for place, weights in enumerate(
        ((words, colormap), (entities - words, 1 - colormap), (1 - entities, 0.0))
    ):
        if not any(weights):
            continue
        if place == 1:
            told = silence(towers, conditions)
        elif place == 2:
            told = empty(towers, silence(towers, conditions))
        weight = torch.tensor(weights, device=conditions.context.device)
        passes.append(Pass(told, spread_streams(weight)[None]))
    return passes


def silence(towers: FrozenTowers, conditions: Conditions) -> Conditions:
    """The same without words."""
    return replace(conditions, text=towers.encode_text([""]).expand_as(conditions.text))


def empty(towers: FrozenTowers, conditions: Conditions) -> Conditions:
    """The same for a context of nothing but black."""
    context = conditions.context
    size = [towers.factor * side for side in context.shape[-2:]]
    black = torch.zeros((1, 3, *size), dtype=torch.uint8, device=context.device)
    return replace(conditions, context=towers.encode_pixels(black).expand_as(context))


def sample_streams(
    unet: Any, scheduler: Any, passes: Sequence[Pass], noise: Tensor, sampling: Sampling,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Denoise both streams from noise.

    Args:
        unet: the joint denoiser.
        scheduler: of its training.
        passes: of each step; the first knows everything.
        noise: float32 [B, 8, h, w].
        sampling: resolved.
        on_step: called behind each step.

    Returns:
        float32 [B, 8, h, w]; a stream that is clamped is its context.
    """
    steps, kind = sampling.num_inference_steps, sampling.solver
    assert steps is not None
    assert kind is not None
    solver = make_solver(scheduler, kind, steps)
    solver.set_timesteps(steps, device=noise.device)
    known = passes[0].conditions
    clamped = None
    if sampling.given_stream == "clamp":
        clamped = spread_streams(given_streams(known.task))  # [B, 8, 1, 1]

    def hold(state: Tensor, context: Tensor, t: Tensor) -> Tensor:
        """The state, a given stream clamped to its re-noised truth, which is the context."""
        if clamped is None:
            return state
        truth = solver.add_noise(torch.cat([context] * 2, 1), noise, t.expand(len(noise)))
        return torch.where(clamped, truth, state)

    state = noise * solver.init_noise_sigma
    for step, t in enumerate(solver.timesteps):
        outputs = []
        for one in passes:
            seen = solver.scale_model_input(hold(state, one.conditions.context, t), t)
            outputs.append(one.weight * _predict(unet, seen, t, one.conditions))
        state = solver.step(sum(outputs), t, state, return_dict=False)[0]
        state = state if on_step is None else on_step(step, t, state)
    return (
        state if clamped is None else torch.where(clamped, torch.cat([known.context] * 2, 1), state)
    )


def _predict(unet: Any, state: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    return denoise(unet, state.to(unet.dtype), t, conditions.to(unet.dtype)).float()
