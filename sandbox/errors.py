# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two kinds of failure: one that a client of the API sees, one that the person at the terminal sees."""

from __future__ import annotations


class ApiError(Exception):
    """An AWS error answer: its code, sentence and HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class SandboxError(Exception):
    """Something the person who starts the sandbox must put right; its text is one sentence."""
