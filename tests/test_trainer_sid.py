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


def test_the_teacher_is_guided_in_the_interval_alone(digits: Bundle) -> None:
    """No levels in the interval: as without guidance; all of them: as guided everywhere; some: neither."""

    def weights(**choices: float) -> str:
        config = SidConfig(iterations=2, batch=8, **choices)
        return distill(Bundle.load(digits.root), "student", config).network_digest("student")

    plain, guided = weights(), weights(guidance=2.0)
    assert weights(guidance=2.0, lo=100.0) == plain  # levels end at 80
    assert weights(guidance=2.0, lo=0.0, hi=100.0) == guided
    assert len({plain, guided, weights(guidance=2.0, lo=0.1, hi=2.0)}) == 3
    with pytest.raises(ValueError, match="guidance needs lo < hi"):
        weights(guidance=2.0, lo=2.0, hi=1.0)
