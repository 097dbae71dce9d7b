import numpy as np
import pytest

from edgemim.edge.runtime.outputs import output_of
from edgemim.errors import ModelRefused


def test_what_fits_is_given_back() -> None:
    logits = np.zeros((2, 3), np.float32)
    assert output_of({"logits": logits}, "logits", ndim=2) is logits


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"other": np.zeros((2, 3))}, "says that the model gives 'logits', it gives other"),
        ({"logits": np.zeros(3)}, r"shape \(3,\), not 2 dimensions"),
        ({"logits": np.array([[0, np.nan]])}, "not finite"),
        ({"logits": np.array([[0, np.inf]])}, "not finite"),
    ],
)
def test_what_does_not_is_one_sentence(found: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelRefused, match=message) as caught:
        output_of(found, "logits", ndim=2)
    assert "\n" not in str(caught.value)
