"""Every scheduler that fewstep reads, as a plan: it ends where diffusers' own loop ends, around a network that bends."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.models.schedulers import make_scheduler, parametrisation_of, plan_for, plan_name, scheduler_plan, with_steps
from fewstep.models.tracing import HandedNoise, steps_of, trace
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.sampling.plan import sample

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
TRAINED = {"trained_betas": np.linspace(0.001, 0.03, 500).tolist(), "num_train_timesteps": 500}
SHAPE = (2, 3, 4, 4)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("PNDM", {"skip_prk_steps": True, "steps_offset": 1, **STABLE}),
    ("PNDM", {**STABLE}),
    ("PNDM", {"skip_prk_steps": True, **STABLE, **V}),
    ("DDIM", {**STABLE}),
    ("DDIM", {"clip_sample_range": 2.0}),
    ("DDIM", {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}),
    ("DDIM", {"clip_sample": False, **TRAINED}),
    ("DDPM", {}),
    ("DDPM", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}),
    ("LMSDiscrete", {**STABLE}),
    ("EulerDiscrete", {"timestep_spacing": "leading", "steps_offset": 1, **STABLE}),
    ("EulerDiscrete", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, **STABLE, **V}),
    ("EulerDiscrete", {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min", **STABLE}),
    ("EulerAncestralDiscrete", {"timestep_spacing": "trailing", **STABLE}),
    ("HeunDiscrete", {"clip_sample": True, **STABLE}),
    ("HeunDiscrete", {"use_karras_sigmas": True, **STABLE, **V}),
    ("KDPM2Discrete", {**STABLE}),
    ("KDPM2AncestralDiscrete", {**STABLE}),
    ("DPMSolverMultistep", {"use_karras_sigmas": True, **STABLE}),
    ("DPMSolverMultistep", {"solver_order": 3, "use_lu_lambdas": True, **STABLE, **V}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", **STABLE}),
    ("DPMSolverMultistep", {**FLOW}),
    ("DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True, **STABLE}),
    ("UniPCMultistep", {"use_karras_sigmas": True, **STABLE}),
    ("UniPCMultistep", {"solver_order": 3, **FLOW}),
    ("DEISMultistep", {**STABLE}),
    ("SASolver", {**STABLE}),
    ("LCM", {**STABLE}),
    ("TCD", {**STABLE}),
    ("EDMEuler", {"sigma_data": 0.5}),
    ("EDMDPMSolverMultistep", {"sigma_data": 0.5, "solver_order": 3}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "shift_terminal": 0.02}),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "stochastic_sampling": True}),
    ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}),
    ("FlowMatchLCM", {"shift": 3.0}),
]


def network(x: Tensor, t: Any) -> Tensor:
    """Bends what it is given, and listens to the timestep."""
    return torch.tanh(1.5 * x.roll(1, -1)) + 0.3 * x + 0.2 * torch.sin(torch.as_tensor(t, dtype=torch.float32) / 50)


def noise(count: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value))
@pytest.mark.parametrize("steps", [7, 20])
def test_a_plan_ends_where_diffusers_does(name: str, settings: dict[str, Any], steps: int) -> None:
    config = {"_class_name": f"{name}Scheduler"} | settings
    mu = 0.6 if settings.get("use_dynamic_shifting") else None
    parametrisation = parametrisation_of(config, mu=mu)
    theirs = copy.deepcopy(with_steps(make_scheduler(config), steps, mu))
    start = noise(0)  # before noise is handed out
    with HandedNoise(SHAPE, lambda count: noise(1 + count)):
        *_, expected = steps_of(theirs, start.clone(), network)
    plan, drawn = trace(with_steps(make_scheduler(config), steps, mu), parametrisation)

    def denoise(x: Tensor, sigma: float, timestep: float | None = None) -> Tensor:
        scales = parametrisation.scales(sigma).told(timestep)
        return scales.skip * x + scales.out * network(scales.into * x, scales.timestep)

    made = sample(denoise, plan.begin(noise(0)), plan, [noise(1 + count) for count in drawn])
    assert float((made - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert np.abs(plan.consistency()).max() < 1e-3 or settings.get("prediction_type") == "v_prediction"


def test_what_a_table_has_besides_where_a_scheduler_needs_it() -> None:
    plan = scheduler_plan(make_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}), Eps(), 4)
    assert (plan.start, plan.timesteps, plan.clip, plan.draws) == (1.0, None, None, 1)
    assert [round(Eps().scales(float(sigma)).timestep) for sigma in plan.sigmas[:-1]] == [750, 500, 250, 0]
    stable = scheduler_plan(
        make_scheduler({"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}), Eps(), 4
    )
    assert [round(Eps().scales(float(sigma)).timestep) for sigma in stable.sigmas[:-1]] == [751, 501, 501, 251, 1]
    rounded = scheduler_plan(make_scheduler({"_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": True}), Eps(), 4)
    assert rounded.timesteps is not None
    assert (rounded.timesteps == rounded.timesteps.round()).all()  # diffusers rounds them, the levels lie between
    clipped = scheduler_plan(make_scheduler({"_class_name": "DDPMScheduler", "clip_sample_range": 1.5}), Eps(), 4)
    assert clipped.clip_range == 1.5
    assert not clipped.b.any()  # DDPM reads what was cut alone
    assert (clipped.draws, clipped.guided) == (4, False)
    shifted = scheduler_plan(
        make_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}), Flow(shift=3.0), 4
    )
    np.testing.assert_allclose(shifted.sigmas, [1, 0.858, 0.602, 0.009, 0], atol=1e-3)  # it shifts the last one twice


def test_guidance_is_by_the_level_of_a_row() -> None:
    made = make_scheduler({"_class_name": "HeunDiscreteScheduler"})
    plan = scheduler_plan(made, Eps(), 6, Guidance(3.0, 0.5, 5.0))
    levels = plan.sigmas[:-1] / plan.alphas[:-1]
    assert plan.guidance.tolist() == np.where((levels > 0.5) & (levels <= 5.0), 3.0, 1.0).tolist()
    assert 0 < (plan.guidance != 1).sum() < plan.rows


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Edm(sigma_data=0.5), "UniPCMultistepScheduler"),
        (Edm(sigma_data=0.5), "DPMSolverMultistepScheduler"),
        (Edm(sigma_data=0.5), "EDMEulerScheduler"),
        (Eps(), "UniPCMultistepScheduler"),
        (Velocity(betas=Betas(zero_snr=True)), "EulerDiscreteScheduler"),
        (Flow(shift=3.0), "UniPCMultistepScheduler"),
        (Flow(shift=3.0), "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_scheduler_for_a_network_that_was_not_made_for_it_converges_to_the_same_image(
    network: Parametrisation, name: str
) -> None:
    """On data that is one Gaussian, solved exactly: more steps come nearer, in the coordinates of the network."""
    errors = []
    for steps in (10, 40):
        plan, called = plan_for(network, name, steps)
        assert called.endswith(str(steps))

        def denoise(x: np.ndarray, sigma: float, timestep: float = 0.0) -> np.ndarray:
            alpha, mean, spread = network.alpha(sigma), 0.3, 0.6
            return mean + spread**2 * alpha / (alpha**2 * spread**2 + sigma**2) * (x - alpha * mean)

        unit = np.linspace(-2, 2, 9)
        x, level = plan.begin(unit), plan.sigmas[0] / max(plan.alphas[0], 1e-9)
        made = sample(denoise, x, plan)
        start = x / plan.alphas[0] if plan.alphas[0] else unit * level
        exact = 0.3 + 0.6 / np.hypot(0.6, level) * (start - 0.3)
        errors.append(float(np.abs(made - exact).max()))
    assert errors[1] < 0.4 * errors[0]
    assert errors[1] < 0.1


def test_a_scheduler_that_is_no_table_is_refused_in_words() -> None:
    scheduler = diffusers.DDIMScheduler(thresholding=True)
    scheduler.set_timesteps(5)
    with pytest.raises(
        ValueError, match=r"this DDIMScheduler (is no table: its steps depend on the images|walks other levels)"
    ):
        trace(scheduler, Eps())


def test_a_scheduler_of_another_network_is_told_by_its_levels() -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="walks other levels or estimates than a network of eps has"):
        trace(scheduler, Eps())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"clip_sample": "yes"}, "sets clip_sample to 'yes', where DDIMScheduler has true or false"),
        ({"beta_end": "0.02"}, "sets beta_end to '0.02', where DDIMScheduler has a number"),
        ({"beta_schedule": "sigmoid"}, "DDIMScheduler"),
        ({"_class_name": "KarrasVeScheduler"}, "the scheduler is a KarrasVeScheduler; fewstep reads DDPMScheduler"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "of EDM networks, fewstep drives 'epsilon'"),
        ({"thresholding": True}, "has thresholding True, which is refused"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "has timestep_type 'continuous'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "has invert_sigmas True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "by the number of image tokens"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 100}, "has num_train_timesteps 100"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "has variance_type 'learned_range'"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "of a flow has prediction_type 'epsilon'"),
        ({"no_such_key": 3}, "sets no_such_key to 3, which DDIMScheduler of diffusers"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_exponential_sigmas": True},
            "makes no Euler",
        ),
    ],
)
def test_what_a_scheduler_says_and_fewstep_has_no_word_for(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parametrisation_of({"_class_name": "DDIMScheduler"} | config)


def test_settings_that_say_something_else_of_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"another network than this one, of v in place of eps; leave out of its settings"):
        plan_for(Eps(), "DDIMScheduler", 5, config={"prediction_type": "v_prediction"})
    with pytest.raises(ValueError, match=r"start 0\.001 in place of 0\.0001, end 0\.01 in place of 0\.02; leave out"):
        plan_for(Eps(), "DDIMScheduler", 5, config={"beta_start": 0.001, "beta_end": 0.01})
    saved = dict(diffusers.PNDMScheduler(skip_prk_steps=True).config)
    with pytest.raises(ValueError, match="kind 'linear' in place of 'trained'") as caught:
        plan_for(Edm(sigma_data=0.5), "PNDMScheduler", 4, config=saved)
    assert len(str(caught.value)) < 400  # the network's levels are a thousand numbers
    with pytest.raises(ValueError, match="a DDIMScheduler samples other networks than this one, of flow"):
        plan_for(Flow(), "DDIMScheduler", 5)
    with pytest.raises(ValueError, match=r"scheduler is one of DDPMScheduler, .* got 'UniPC'"):
        plan_for(Eps(), "UniPC", 5)
    with pytest.raises(ValueError, match=r"PNDMScheduler takes no 3 steps"):
        plan_for(Eps(), "PNDMScheduler", 3)


def test_the_settings_of_the_imported_scheduler_are_kept_and_may_be_changed() -> None:
    own = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading"}
    for name in ("PNDMScheduler", "EulerDiscreteScheduler"):
        plan, _ = plan_for(Eps(), name, 4, own=own)
        told = plan.timesteps if plan.timesteps is not None else [Eps().scales(float(s)).timestep for s in plan.sigmas[:-1]]
        assert round(float(told[0])) == 751
    plan, called = plan_for(Eps(), "EulerDiscreteScheduler", 4, own=own, config={"timestep_spacing": "trailing"})
    assert round(Eps().scales(float(plan.sigmas[0])).timestep) == 999
    assert called == "euler4"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm20_w7.5"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_ancestral20_w7.5"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "dpmsolver_karras20_w7.5"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmsolver_sde20_w7.5"),
        ({"_class_name": "UniPCMultistepScheduler"}, "unipc20_w7.5"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow_match_euler20_w7.5"),
    ],
)
def test_plans_are_named_after_scheduler_and_steps(config: dict[str, Any], name: str) -> None:
    assert plan_name(make_scheduler(config), 20, Guidance(7.5)) == name


@pytest.mark.parametrize(
    "settings", [STABLE, {"beta_schedule": "squaredcos_cap_v2"}, TRAINED, {"rescale_betas_zero_snr": True}]
)
def test_levels_are_those_of_diffusers(settings: dict[str, Any]) -> None:
    config = {"_class_name": "DDIMScheduler", **V, **settings}
    betas = parametrisation_of(config).betas  # type: ignore[union-attr]
    theirs = make_scheduler(config).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(betas.signal(), theirs, rtol=1e-4, atol=1e-9)
    for t in (0, 17, 499, betas.steps - 1):
        alpha, sigma = betas.at(t)
        np.testing.assert_allclose([alpha**2, sigma**2], [theirs[t], 1 - theirs[t]], rtol=1e-4, atol=1e-7)  # theirs are float32
        assert abs(betas.timestep(sigma, alpha) - t) < 1e-6
