"""The format of numbers, durations and settings in a report."""

from typing import Any

from minigpt_jax.report.runs import is_finite

NOTHING = "–"


def number(value: Any, decimals: int) -> str:
    """The number with this many decimals and with thousands separators, or a dash if it is missing or not finite."""
    return f"{value:,.{decimals}f}" if is_finite(value) else NOTHING


def duration(seconds: Any) -> str:
    """A duration such as 9.8 s, 2 min 5 s or 1 h 3 min."""
    if not is_finite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def setting(value: Any, digits: int = 6) -> str:
    """The value of a field. Floats have at most this many significant digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={setting(inner, digits)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(repr(item) if isinstance(item, str) else setting(item, digits) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "none" if value is None else str(value)
