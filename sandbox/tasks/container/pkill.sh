#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# pkill [-SIGNAL] -x NAME for tasks without a process list of their own: signals processes of this task only, so that neither another
# task's sendmail nor the machine's real one is hit.
set -u
signal=TERM
case "$1" in -x) ;; *) signal="${1#-}"; shift ;; esac
name="$2" found=1
for folder in /proc/[0-9]*; do
  read -r comm 2>/dev/null <"$folder/comm" || continue
  [ "$comm" = "$name" ] || continue
  if tr '\0' '\n' 2>/dev/null <"$folder/environ" | grep -qxF "SANDBOX_TASK_ROOT=$SANDBOX_TASK_ROOT"; then
    kill -s "$signal" "${folder#/proc/}" && found=0
  fi
done
exit "$found"
