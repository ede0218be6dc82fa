"""What a model is told and gives: checked, batched, and "none" by the rule of each input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fewstep.artifact.signature import ArrayInput, ArrayOutput, Axis, Column, ImageOutput, LabelInput, Signature, State

IMAGE = ImageOutput(channels=1, height=28, width=28)
DIGITS = Signature(inputs=(LabelInput(classes=3, names=("zero", "one", "two")),), output=IMAGE)
PROMPTS = Signature(inputs=(ArrayInput(name="prompt_embeds", shape=(2, 4), null="given"),), output=IMAGE)
ROBOT = Signature(
    inputs=(LabelInput(name="task", classes=5, null=False), ArrayInput(name="observation", shape=(3,), null="zeros")),
    output=ArrayOutput(axes=(Axis(name="time", size=16, unit="s"),), columns=(Column(name="x", unit="m", mean=1, std=2),)),
)


def test_tensors_are_in_order_and_what_means_none_follows() -> None:
    assert [spec.name for spec in PROMPTS.tensors(guided=False)] == ["prompt_embeds"]
    assert [spec.name for spec in PROMPTS.tensors(guided=True)] == ["prompt_embeds", "negative_prompt_embeds"]
    assert DIGITS.tensors(guided=True) == DIGITS.tensors(guided=False) == (("labels", (), "int64"),)
    assert [spec[:2] for spec in ROBOT.tensors(guided=True)] == [("task", ()), ("observation", (3,))]
    assert (DIGITS.guidable, PROMPTS.guidable, ROBOT.guidable) == (True, True, False)
    assert not Signature(output=IMAGE).guidable


def test_what_means_none() -> None:
    (labels,), (prompts,), (task, observation) = DIGITS.inputs, PROMPTS.inputs, ROBOT.inputs
    assert labels.null_constant == 3
    assert prompts.null_constant is None
    assert task.null_constant is None
    assert (observation.null_constant == np.zeros(3, np.float32)).all()
    assert (labels.checked(None, 2) == [3, 3]).all()
    assert (observation.checked(None, 2) == np.zeros((2, 3))).all()


def test_values_become_the_tensors_of_graphs() -> None:
    found = DIGITS.checked({"labels": ["two", 0]}, 2, guided=True)
    assert {name: array.tolist() for name, array in found.items()} == {"labels": [2, 0]}
    embeds = np.ones((2, 2, 4))
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds * 0}
    found = PROMPTS.checked(given, 2, guided=True)
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(given, np.float32)
    assert ROBOT.checked({"task": [4]}, 1, guided=False)["observation"].shape == (1, 3)


@pytest.mark.parametrize(
    ("signature", "given", "words"),
    [
        (DIGITS, {"labels": [1, 7]}, "a label of this bundle is zero, one, two or 0 to 2, got 7"),
        (DIGITS, {"labels": [1.5, 2.5]}, r"labels are names or whole numbers, one per seed \(2\)"),
        (DIGITS, {"labels": [1]}, "one per seed"),
        (DIGITS, {"labels": [1, 2], "text": "a fox"}, "takes labels, got text; leave that out"),
        (Signature(output=IMAGE), {"labels": [1, 2]}, "takes no inputs, got labels"),
        (ROBOT, {}, "knows no image without a class; give task, 0 to 4"),
        (ROBOT, {"task": [0, 1], "observation": np.zeros((2, 4))}, r"observation has shape \(2, 3\) for 2 seeds, got \(2, 4\)"),
        (ROBOT, {"task": [0, 1], "observation": np.full((2, 3), np.nan)}, "observation has numbers that are not finite"),
        (ROBOT, {"task": [0, 1], "observation": [["a"] * 3] * 2}, "observation holds numbers only"),
        (PROMPTS, {}, r"prompt_embeds is an array \(2, 2, 4\) for 2 seeds, and is missing"),
        (PROMPTS, {"prompt_embeds": np.zeros((2, 2, 4))}, "guided away from negative_prompt_embeds .* which is missing"),
    ],
)
def test_other_values_are_one_sentence(signature: Signature, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        signature.checked(given, 2, guided=True)


@pytest.mark.parametrize("signature", [DIGITS, PROMPTS, ROBOT])
def test_examples_are_taken_and_the_same_always(signature: Signature) -> None:
    first, again = (signature.example(3, guided=signature.guidable) for _ in range(2))
    assert first.keys() == {spec.name for spec in signature.tensors(guided=signature.guidable)}
    for name, array in signature.checked(first, 3, guided=signature.guidable).items():
        assert (array == again[name]).all()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([LabelInput(classes=2), LabelInput(classes=3)], "got 'labels'"),
        ([ArrayInput(name="noise", shape=(1,))], "got 'noise'"),
        ([ArrayInput(name="a", shape=(1,), null="given"), ArrayInput(name="negative_a", shape=(1,))], "got 'negative_a'"),
    ],
)
def test_no_two_tensors_have_one_name(inputs: list[Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Signature(inputs=tuple(inputs), output=IMAGE)


def test_shapes_of_states_and_outputs() -> None:
    assert State(channels=4, axes=(2, 3, 5)).shape == (4, 2, 3, 5)
    assert IMAGE.shape == (1, 28, 28)
    assert IMAGE.tensor == ("images", (28, 28, 1), "uint8")
    assert ROBOT.output.shape == (1, 16)
    assert ROBOT.output.tensor == ("values", (16, 1), "float32")
    for bad in ((), (0,), (1,) * 7):
        with pytest.raises(ValidationError):
            State(channels=1, axes=bad)


def test_a_signature_is_read_as_it_was_written() -> None:
    for signature in (DIGITS, PROMPTS, ROBOT):
        assert Signature.model_validate_json(signature.model_dump_json()) == signature
    with pytest.raises(ValidationError):
        Signature.model_validate_json('{"inputs": [{"kind": "smell", "name": "a"}], "output": {}}')


def test_an_image_is_its_sample_scaled_rounded_and_cut() -> None:
    image = ImageOutput(channels=2, height=1, width=2, low=0.0, high=2.0)
    sample = np.array([[[[-1.0, 0.0]], [[1.0, 3.0]]]], np.float32)
    np.testing.assert_array_equal(image.scaling.of(sample), [[[[0, 128], [0, 255]]]])  # 127.5, half to even
    assert (image.span, image.scale(sample), image.scale(sample / 10)) == (2.0, 3.0, 1.0)
    assert image.facts == {"low": "0", "high": "2"}
    with pytest.raises(ValidationError, match="low, which 0 stands for, is below high"):
        ImageOutput(channels=1, height=1, width=1, low=1.0, high=1.0)


def test_an_array_is_its_sample_in_the_units_of_its_columns() -> None:
    columns = (Column(name="x", unit="mm", mean=10.0, std=2.0), Column(name="y", mean=-1.0))
    array = ArrayOutput(axes=(Axis(name="time", size=3, unit="s"),), columns=columns)
    sample = np.array([[[0.0, 1.0, -2.0], [0.0, 0.5, 4.0]]], np.float32)
    values = array.scaling.of(sample)
    np.testing.assert_allclose(values, [[[10.0, -1.0], [12.0, -0.5], [6.0, 3.0]]])
    assert (array.span, array.scale(sample), array.scale(0 * sample)) == (2.0, 4.0, 1.0)
    np.testing.assert_allclose(array.rounding(values), [22e-5, 4e-5])  # of each column's own numbers
    assert array.facts == {"axes": "time (s)", "columns": "x (mm)\ny", "mean_std": "10 2\n-1 1"}
