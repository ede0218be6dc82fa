"""What SiD cannot distil is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.bundle import Bundle, Draft
from fewstep.manifest import Condition, ImageSpec, NetworkEntry
from fewstep.parametrisation import Edm, Flow, Parametrisation
from fewstep.trainer.sid import SidConfig, distill

TEXT = Condition(kind="embeddings", tokens=2, width=3)


@pytest.mark.parametrize(
    ("parametrisation", "condition", "message"),
    [
        (Flow(), Condition(kind="none"), "SiD distils EDM networks, 'teacher' is one of flow"),
        (Edm(sigma_data=0.5), TEXT, "SiD draws its conditions at random, which embeddings do not allow"),
    ],
)
def test_other_parametrisations_and_embeddings_are_refused(
    parametrisation: Parametrisation, condition: Condition, message: str, tmp_path: Path
) -> None:
    with Draft.create(tmp_path / "a.bundle", image=ImageSpec(channels=1, height=8, width=8), condition=condition) as draft:
        draft.manifest.networks["teacher"] = NetworkEntry(directory=None, parametrisation=parametrisation)
    with pytest.raises(ValueError, match=message):
        distill(Bundle.load(tmp_path / "a.bundle"), "student", SidConfig())
