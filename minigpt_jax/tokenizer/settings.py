"""The settings that are saved in a tokenizer's folder, beside the file of its pieces."""

import json
from pathlib import Path
from typing import Any

_FILE = "tokenizer.json"


def write_settings(folder: str | Path, **settings: Any) -> None:
    """Writes the settings as JSON."""
    Path(folder, _FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Reads what `write_settings` wrote. Callers have to handle OSError and ValueError."""
    return json.loads(Path(folder, _FILE).read_text(encoding="utf-8"))
