#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Keeps imap's address in /etc/hosts, so that smtp-in defers instead of bounces while DNS has none.
# What Cloud Map answers at present stands in /run/imap-address (empty: nothing), kept by the sandbox.
set -u
target=imap.cabal.internal
hosts="${TASK_ROOT:-}/etc/hosts"
beat=0

say() { printf '[hosts-pin] %s\n' "$*"; }
pinned() { sed -n 's/ .*# cabal-hosts-pin$//p' "$hosts"; }

[ -n "${RESUMED:-}" ] || say "daemon: target=$target"
while :; do
  read -r address <"${TASK_ROOT:-}/run/imap-address" || address=""
  pin="$(pinned)"
  if [ -z "$address" ]; then
    [ -n "${RESUMED:-}" ] || say "resolve empty; keeping pin ($pin)"
  elif [ "$address" != "$pin" ]; then
    printf '%s\n' "$(sed "s/.*# cabal-hosts-pin\$/$address $target # cabal-hosts-pin/" "$hosts")" >"$hosts"
    say "$target -> $address"
  elif [ "$beat" -ge 600 ]; then
    say "heartbeat: $target pinned to $pin"
    beat=0
  fi
  unset RESUMED
  sleep 30
  beat=$((beat + 30))
done
