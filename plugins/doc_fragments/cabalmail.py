# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the modules of this project have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Use as C(cabalmail.aws), C(cabalmail.deadline), C(cabalmail.work_dir)."""

    AWS = r"""
options:
  assume_role_arn:
    description:
      - ARN of a role to act as. It is assumed with the credentials that the other options lead to, once, at the
        first call to AWS.
    type: str
"""

    DEADLINE = r"""
options:
  deadline:
    description:
      - Seconds after which the module returns what it has, with C(partial) or
        C(unavailable), whatever is still under way.
    type: float
"""

    WORK_DIR = r"""
options:
  work_dir:
    description:
      - The run's private directory (mode 0700). Mail addresses in clear are written only there, to files of mode
        0600, and never returned.
    type: path
"""
