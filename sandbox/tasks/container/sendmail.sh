#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Stands in for the sendmail daemon: says that it starts, as syslog would write it, then lives until it is told to end.
set -u
trap 'exit 0' TERM INT
if [ -z "${RESUMED:-}" ]; then
  printf '%s %s sendmail[%d]: starting daemon (8.17.1.9): SMTP+queueing@00:15:00\n' \
    "$(date -u +%Y-%m-%dT%H:%M:%S.%6N+00:00)" "$HOSTNAME" "$$" >>"${TASK_ROOT:-}/var/log/maillog"
fi
# Nobody ever writes to this pipe: a wait that needs no second process and that signals interrupt.
read -r _ <>"${TASK_ROOT:-}/run/idle"
