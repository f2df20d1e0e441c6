# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the project's packages importable the way Ansible makes them importable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ansible.module_utils

REPO = Path(__file__).resolve().parents[1]

os.environ.setdefault("ANSIBLE_CONFIG", str(REPO / "ansible.cfg"))
ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, str(REPO / "module_utils")]))
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from tests.browser import chromium  # noqa: F401
