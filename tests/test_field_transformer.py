"""A transformer for states of any rank and inputs of any kind: shapes, patches, and that it sees all that it is told."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import torch
from small import given
from torch import Tensor

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.signature import ArrayInput, ArrayOutput, Axis, Column, Input, LabelInput, Signature, State
from fewstep.models.denoiser import Denoiser, fresh_network, load_network, save_network
from fewstep.models.families.field_transformer import MAX_TOKENS, FieldTransformer, field_transformer
from fewstep.sampling.parametrisation import Eps

INPUTS: tuple[Input, ...] = (  # a class, a vector, a sequence of vectors, a picture of them, a number
    LabelInput(name="task", classes=3),
    ArrayInput(name="goal", shape=(4,), null="zeros"),
    ArrayInput(name="words", shape=(5, 6), null="given"),
    ArrayInput(name="camera", shape=(2, 3, 2)),
    ArrayInput(name="speed", shape=()),
)
AXES = pytest.mark.parametrize("axes", [(12,), (8, 6), (4, 2, 6)], ids=str)


def signature(axes: tuple[int, ...], inputs: tuple[Input, ...] = INPUTS) -> Signature:
    """Of two columns."""
    names = tuple(Axis(name=f"axis_{i}", size=side) for i, side in enumerate(axes))
    return Signature(inputs=inputs, output=ArrayOutput(axes=names, columns=(Column(name="x"), Column(name="y"))))


def network(axes: tuple[int, ...], inputs: tuple[Input, ...] = INPUTS, updates: int = 0, **changes: object) -> Denoiser:
    """A small one, after some updates towards noise."""
    torch.manual_seed(0)
    state = State(channels=2, axes=axes)
    small = field_transformer(state, inputs) | {"width": 16, "depth": 2, "heads": 2} | changes
    denoiser = fresh_network(small, state, inputs, parametrisation=Eps())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    x, t, told = states(axes, 6), torch.arange(6) * 150.0, given(inputs, 6, seed=1)
    target = states(axes, 6, seed=2)
    for _ in range(updates):
        optimizer.zero_grad()
        (denoiser.evaluate(x, t, *told) - target).square().mean().backward()
        optimizer.step()
    return denoiser.eval()


def states(axes: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, *axes, generator=torch.Generator().manual_seed(seed))


@AXES
def test_an_estimate_has_the_shape_of_a_state_and_begins_as_zero(axes: tuple[int, ...]) -> None:
    denoiser = network(axes)
    for batch in (1, 3):
        made = denoiser.evaluate(states(axes, batch), torch.tensor(500.0), *given(INPUTS, batch))
        assert made.shape == (batch, 2, *axes)
        assert not made.any()
    assert network(axes, ()).evaluate(states(axes, 2), torch.tensor(1.0)).shape == (2, 2, *axes)


@AXES
def test_a_bundle_keeps_it_bit_for_bit_with_its_inputs_in_their_order(axes: tuple[int, ...], tmp_path: Path) -> None:
    before, told = network(axes, updates=2), given(INPUTS, 2)
    with Draft.create(tmp_path / "a.bundle", signature(axes)) as draft:
        save_network(draft, "teacher", before)
    bundle = Bundle.load(tmp_path / "a.bundle")
    bundle.verify()
    after = load_network(bundle, "teacher")
    assert isinstance(after.net, FieldTransformer)
    assert after.takes == ("task", "goal", "words", "camera", "speed")
    config = json.loads((bundle.component("teacher") / "config.json").read_text())
    assert config["inputs"] == [["task", 4], ["goal", [4]], ["words", [5, 6]], ["camera", [2, 3, 2]], ["speed", []]]
    with torch.no_grad():
        pair = [net.evaluate(states(axes, 2), torch.tensor(300.0), *told) for net in (before, after)]
    assert torch.equal(*pair)
    assert pair[0].any()


@AXES
def test_after_a_few_updates_everything_it_is_told_changes_what_it_says(axes: tuple[int, ...]) -> None:
    """Each input, each number of the state, the time, and the order of what comes in an order."""
    denoiser, x, t, told = network(axes, updates=3), states(axes, 4), torch.tensor(300.0), list(given(INPUTS, 4))

    with torch.no_grad():
        before = denoiser.evaluate(x, t, *told)

    def apart(x: Tensor = x, t: Tensor = t, told: list[Tensor] = told) -> float:
        with torch.no_grad():
            return float((denoiser.evaluate(x, t, *told) - before).abs().max())

    assert apart() == 0
    assert apart(t=torch.tensor(310.0)) > 1e-5
    for i, each in enumerate(INPUTS):
        other = (told[i] + 1) % 3 if each.values else told[i] + 0.5
        assert apart(told=[*told[:i], other, *told[i + 1 :]]) > 1e-5, each.name
        if len(each.tensor.shape) > 1:  # in another order
            assert apart(told=[*told[:i], told[i].flip(1), *told[i + 1 :]]) > 1e-5, each.name
        for at in range(prod(each.tensor.shape) if not each.values else 0):  # every number of it
            other = told[i].clone()
            other.reshape(4, -1)[:, at] += 0.5
            assert apart(told=[*told[:i], other, *told[i + 1 :]]) > 1e-6, (each.name, at)
    for at in range(x[0].numel()):
        other = x.clone()
        other.reshape(4, -1)[:, at] += 0.5
        assert apart(x=other) > 1e-6, at
    for axis in range(2, x.ndim):  # and it does not only move along
        with torch.no_grad():
            moved = denoiser.evaluate(x.roll(1, axis), t, *told).roll(-1, axis)
        assert float((moved - before).abs().max()) > 1e-5


def test_no_sample_sees_another_and_one_time_is_the_time_of_all() -> None:
    denoiser, x, told = network((12,), updates=3), states((12,), 4), given(INPUTS, 4)
    with torch.no_grad():
        whole = denoiser.evaluate(x, torch.tensor(300.0), *told)
        torch.testing.assert_close(denoiser.evaluate(x, torch.full((4,), 300.0), *told), whole)
        each = [denoiser.evaluate(x[i : i + 1], torch.tensor(300.0), *(value[i : i + 1] for value in told)) for i in range(4)]
    torch.testing.assert_close(torch.cat(each), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("axes", "patch"),
    [((12,), (3,)), ((8, 6), (2, 3)), ((8, 6), (1, 6)), ((4, 2, 6), (2, 1, 3)), ((4, 2, 2, 6), (2, 1, 2, 2))],
    ids=str,
)
def test_a_token_is_a_patch_and_unfolding_is_folding_back(axes: tuple[int, ...], patch: tuple[int, ...]) -> None:
    net: FieldTransformer = network(axes, (), patch_size=list(patch)).net  # type: ignore[assignment]
    x = torch.arange(2 * 2 * prod(axes), dtype=torch.float32).reshape(2, 2, *axes)
    tokens = net._folded(x)
    assert tokens.shape == (2, prod(axes) // prod(patch), 2 * prod(patch))
    assert torch.equal(net._unfolded(tokens, 2), x)
    first = x[0][(slice(None), *(slice(side) for side in patch))]
    assert torch.equal(tokens[0, 0], first.flatten())
    last = x[1][(slice(None), *(slice(-side, None) for side in patch))]
    assert torch.equal(tokens[1, -1], last.flatten())


@pytest.mark.parametrize(
    ("axes", "patch"),
    [((16,), [1]), ((1024,), [1]), ((4096,), [4]), ((64, 64), [2, 2]), ((1, 4096), [1, 4]), ((16, 16, 16), [2, 2, 1])],
    ids=str,
)
def test_patches_grow_until_attention_can_be_computed(axes: tuple[int, ...], patch: list[int]) -> None:
    config = field_transformer(State(channels=1, axes=axes), ())
    found = config["patch_size"]
    assert prod(axes) // prod(found) <= MAX_TOKENS
    assert sorted(found) == sorted(patch)
    assert len(found) == len(axes)
    FieldTransformer(**{key: value for key, value in config.items() if not key.startswith("_")})


def test_sides_that_do_not_halve_are_left_whole() -> None:
    assert field_transformer(State(channels=1, axes=(3001,)), ())["patch_size"] == [1]
    assert field_transformer(State(channels=1, axes=(3, 1002)), ())["patch_size"] == [1, 2]


def test_activations_computed_twice_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        denoiser = network((12,), updates=2).train()
        if again:
            denoiser.net.enable_gradient_checkpointing()  # type: ignore[operator]
        denoiser.zero_grad()
        denoiser.evaluate(states((12,), 2), torch.tensor(10.0), *given(INPUTS, 2)).square().mean().backward()
        found.append([parameter.grad for parameter in denoiser.parameters()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"patch_size": [5]}, r"axes \(12,\) do not divide into patches of \(5,\)"),
        ({"patch_size": [1, 1]}, "FieldTransformer does not take this configuration"),
        ({"heads": 3}, "a width of 16 does not divide into 3 heads"),
        ({"in_channels": 3}, "has in_channels 3, the bundle needs 2"),
        ({"sample_size": [6]}, r"has sample_size \(6,\), the bundle needs \(12.0,\)"),
        ({"inputs": [["task", 4]]}, "takes task, the bundle has task, goal, words, camera, speed"),
        ({"inputs": [["task", 3], ["goal", [4]], ["words", [5, 6]], ["camera", [2, 3, 2]], ["speed", []]]}, "has inputs"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(config: dict[str, object], sentence: str) -> None:
    state = State(channels=2, axes=(12,))
    config = field_transformer(state, INPUTS) | {"width": 16, "depth": 2, "heads": 2} | config
    with pytest.raises(ValueError, match=sentence):
        fresh_network(config, state, INPUTS, parametrisation=Eps())
