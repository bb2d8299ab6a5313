"""The check of signatures that conftest.py installs is on, and sees what it is for."""

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation

from minigpt_jax.data.batch import Batch
from minigpt_jax.ops import attention
from minigpt_jax.rng import words
from minigpt_jax.train.metrics import LossSums


def arrays(keys: int = 3, values: int = 3, dtype: type = np.float32) -> list[np.ndarray]:
    shapes = (2, 3, 4, 8), (2, keys, 4, 8), (2, values, 4, 8)
    return [*(np.ones(shape, dtype) for shape in shapes), np.ones((2, 3, keys), bool)]


def test_axes_of_one_letter_have_one_length() -> None:
    assert attention.attend(*arrays()).shape == (2, 3, 4, 8)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'v_BSKH'"):
        attention.attend(*arrays(keys=5))


def test_the_type_of_an_arrays_entries_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'q_BTNH'"):
        attention.attend(*arrays(dtype=np.int32))


def test_plain_types_are_checked() -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter seed='7'"):
        words("7")  # pyright: ignore[reportArgumentType]


def test_numpys_numbers_pass_for_pythons() -> None:
    assert words(np.int64(7)).tolist() == words(7).tolist()
    assert LossSums(np.float32(6.0), np.int64(3), 9).loss == 2.0


def test_the_result_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        _ = Batch(np.zeros((2, 3, 4), np.uint16), np.zeros(2, np.int32), np.zeros(2, np.int32)).features
