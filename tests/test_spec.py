"""Conditions: the tensors they are made of."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fewstep.artifact.manifest import Condition


def test_a_condition_names_its_tensors_in_order() -> None:
    assert Condition(kind="none").inputs() == ()
    assert Condition(kind="labels", classes=3).inputs() == (("labels", (), "int64"),)
    text = Condition(kind="embeddings", tokens=77, width=768)
    assert text.inputs() == (("embeddings", (77, 768), "float32"),)
    pooled = Condition(kind="embeddings", tokens=77, width=768, pooled=64)
    assert pooled.inputs() == (("embeddings", (77, 768), "float32"), ("pooled", (64,), "float32"))


def test_only_embeddings_bring_what_means_none_with_them() -> None:
    assert Condition(kind="none").null_inputs() == Condition(kind="labels", classes=3).null_inputs() == ()
    nulls = Condition(kind="embeddings", tokens=77, width=768, pooled=64).null_inputs()
    assert nulls == (("null_embeddings", (77, 768), "float32"), ("null_pooled", (64,), "float32"))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"kind": "labels"}, "'labels' does not go with 0 classes"),
        ({"kind": "none", "classes": 2}, "'none' does not go with 2 classes"),
        ({"kind": "none", "pooled": 2}, "'none' does not go with 2 pooled"),
        ({"kind": "labels", "classes": 2, "width": 4}, "'labels' does not go with 4 width"),
        ({"kind": "embeddings", "tokens": 2}, "'embeddings' does not go with 0 width"),
        ({"kind": "embeddings", "tokens": 2, "width": 4, "classes": 1}, "'embeddings' does not go with 1 classes"),
    ],
)
def test_sizes_that_do_not_go_with_the_kind_are_refused(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Condition(**condition)
