# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""opendkim's lines whose addresses are odd, but legal (RFC 5321)."""

from __future__ import annotations

import pytest
from ansible.module_utils.maillog import taskslog


@pytest.mark.parametrize("user", ["jane", "o'brien", "'quoted'", '"a@b"', ""])
def test_a_sender_without_a_line_is_counted_whatever_the_local_part(user: str) -> None:
    match = taskslog._NO_MATCH.match(f"6AT1bFH9016237: no signing table match for '{user}@news.example.com'")
    assert match
    assert match["domain"] == "news.example.com"
