"""The settings that are saved in a tokenizer's folder, beside the file of its pieces."""

import json
from pathlib import Path
from typing import Any

_FILE = "settings.json"
_EARLIER = "tokenizer.json"
"""The name in earlier versions. Today's file of this name is for Hugging Face."""


def write_settings(folder: str | Path, **settings: Any) -> None:
    """Writes the settings as JSON."""
    Path(folder, _FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Reads what `write_settings` wrote. Callers have to handle OSError and ValueError."""
    path, earlier = Path(folder, _FILE), Path(folder, _EARLIER)
    if not path.exists() and earlier.exists() and "fingerprint" in (settings := _read(earlier)):
        return settings
    return _read(path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
