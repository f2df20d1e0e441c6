# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare each role's defaults with its argument specification; prints what differs and exits 1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"


def differences(role: Path) -> list[str]:
    """What of a role's two lists of options does not agree."""
    defaults: dict[str, Any] = _load(role / "defaults" / "main.yml")
    options: dict[str, Any] = _load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    said = [f"{name} has a default and no specification" for name in sorted(set(defaults) - set(options))]
    for name, option in options.items():
        if not option.get("description"):
            said.append(f"{name} has no description")
        if name not in defaults and not option.get("required"):
            said.append(f"{name} is specified, not required, and has no default")
        if name in defaults and "default" in option and option["default"] != defaults[name]:
            said.append(f"{name} is {defaults[name]!r} by default, and {option['default']!r} in the specification")
        if not name.startswith(f"{role.name}_"):
            said.append(f"{name} does not begin with the role's name")
    return [f"roles/{role.name}: {sentence}." for sentence in said]


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def main() -> int:
    """Check all roles."""
    said = [sentence for role in sorted(ROLES.iterdir()) if role.is_dir() for sentence in differences(role)]
    print("\n".join(said) or "Role defaults and argument specifications agree.")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
