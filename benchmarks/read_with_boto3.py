# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read log groups with boto3's own paginator, one after the other, and discard the events; print how many there were.

Arguments: start and end in milliseconds, then the groups.
"""

from __future__ import annotations

import sys

import boto3


def main() -> None:
    start, end, *groups = sys.argv[1:]
    paginator = boto3.client("logs").get_paginator("filter_log_events")
    count = 0
    for group in groups:
        for page in paginator.paginate(logGroupName=group, startTime=int(start), endTime=int(end)):
            count += len(page["events"])
    print(count)


if __name__ == "__main__":
    main()
