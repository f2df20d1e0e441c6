# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run cloudwatch_maillog_info as Ansible would, with the arguments in a file; print what it read and not the rest."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import ansible.module_utils
from ansible.module_utils.testing import patch_module_args

REPO = Path(__file__).parents[1]


def main() -> None:
    ansible.module_utils.__path__.append(str(REPO / "module_utils"))
    spec = importlib.util.spec_from_file_location("maillog_info", REPO / "library" / "cloudwatch_maillog_info.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    printed = io.StringIO()
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with patch_module_args(arguments), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main()
    result = json.loads(printed.getvalue())
    if result.get("failed") or result["status"] != "complete":
        sys.exit(result.get("msg") or " ".join(result["reasons"]))
    tiers = result["tiers"]
    # Without what two slices of the window both brought.
    events = sum(tier["coverage"]["events"] for tier in tiers["by_tier"].values())
    print(json.dumps(tiers["stats"] | {"events": events}))


if __name__ == "__main__":
    main()
