#!/bin/sh
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# dig +short, for the one name that a triage asks for: imap as Cloud Map has it, kept in /run/imap-address by the sandbox.
for word; do
  case $word in
  +* | A) ;;
  imap.cabal.internal)
    read -r address <"${TASK_ROOT:-}/run/imap-address"
    [ -z "$address" ] || echo "$address"
    ;;
  *) exit 9 ;; # as without a server that answers
  esac
done
