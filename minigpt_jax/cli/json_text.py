"""JSON as commands write it."""

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """A value of dicts, lists, texts and numbers as one line of JSON, with null for numbers that JSON does not have.

    >>> dumps({"loss": float("nan"), "logprobs": [-0.5, float("-inf")]})
    '{"loss": null, "logprobs": [-0.5, null]}'
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
