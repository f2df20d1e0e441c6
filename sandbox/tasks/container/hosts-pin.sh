#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Keeps imap's address in /etc/hosts, so that smtp-in defers instead of bounces while DNS has none.
# What Cloud Map answers at present stands in /run/imap-address (empty: nothing), kept by the sandbox.
set -u
target=imap.cabal.internal
sentinel=192.0.2.1
hosts="${TASK_ROOT:-}/etc/hosts"
beat=0

say() { printf '[hosts-pin] %s\n' "$*"; }
pinned() { sed -n 's/ .*# cabal-hosts-pin$//p' "$hosts"; }

# In place: in the deployment the file is bind-mounted.
pin_to() {
  local others
  others="$(grep -v '# cabal-hosts-pin$' "$hosts")"
  printf '%s\n%s %s # cabal-hosts-pin\n' "$others" "$1" "$target" >"$hosts"
}

[ -n "${RESUMED:-}" ] || say "daemon: target=$target"
while :; do
  read -r address <"${TASK_ROOT:-}/run/imap-address" || address=""
  pin="$(pinned)"
  if [ -z "$address" ] && [ -z "$pin" ]; then
    pin_to "$sentinel"
    say "resolve failed with no prior pin; wrote sentinel $sentinel"
  elif [ -z "$address" ]; then
    [ -n "${RESUMED:-}" ] || say "resolve empty; keeping pin ($pin)"
  elif [ "$address" != "$pin" ]; then
    pin_to "$address"
    say "$target -> $address"
  elif [ "$beat" -ge 600 ]; then
    say "heartbeat: $target pinned to $pin"
    beat=0
  fi
  unset RESUMED
  sleep 30
  beat=$((beat + 30))
done
