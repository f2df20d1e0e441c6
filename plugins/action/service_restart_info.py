# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module service_restart_info where it lies (own_python.py says why)."""

from __future__ import annotations

from ansible.plugins.loader import action_loader

ActionModule = action_loader.get("own_python", class_only=True)
