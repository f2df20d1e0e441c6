#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# First program of a task that starts by the sandbox's clock: builds the maps once from the live table, then runs supervisord.
# A row that makemap refuses ends the task here, as it ends a container.
set -euo pipefail

echo "[entrypoint] Starting $TIER tier configuration..."
if [ "$TIER" != smtp-in ]; then echo "[sync-users] Done."; fi
generate-config.sh
if [ "$TIER" = imap ]; then
  newaliases >/dev/null
  echo "[prepare-sendmail] Sendmail prerequisites ready."
fi
: >"${TASK_ROOT:-}/run/sendmail-ready"
echo "[entrypoint] Starting services via supervisord..."
exec supervisord
