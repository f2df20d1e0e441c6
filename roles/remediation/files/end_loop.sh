#!/bin/sh
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# End the hung reconfigure loop of this container, so that supervisord starts it anew.
# $1: process id of the loop when it was seen to hang; $2: how old it was then, in seconds. Status: 0 it was ended and a
# new one runs; 1 no new one came; 2 not called so; 3 the process is another one by now, and nothing was done.
set -u

loop=${1:-} least=${2:-}
for number in "$loop" "$least"; do
  case $number in '' | *[!0-9]*) echo "usage: end_loop.sh PID SECONDS" >&2; exit 2 ;; esac
done

# Whether a process runs the loop's script: an interpreter whose first argument is that file.
is_loop() {
  tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | sed -n 2p | grep -Eq '(^|/)reconfigure\.sh$'
}

# Seconds since a process began. Its id may have gone to another one meanwhile, which is younger than that was.
age_of() {
  read -r up _ </proc/uptime && read -r stat <"/proc/$1/stat" 2>/dev/null || return
  set -f
  # shellcheck disable=SC2086
  set -- ${stat##*\) }
  echo $((${up%.*} - ${20} / $(getconf CLK_TCK || echo 100)))
}

parent_of() {
  read -r stat <"/proc/$1/stat" 2>/dev/null || return
  set -f
  # shellcheck disable=SC2086
  set -- ${stat##*\) }
  echo "$2"
}

# The processes below it, which would else go on without it: its aws call may hang for ever.
below() {
  for directory in /proc/[0-9]*; do
    child=${directory#/proc/}
    if [ "$(parent_of "$child")" = "$1" ]; then
      echo "$child"
      below_of "$child"
    fi
  done
}
below_of() { (below "$1"); }

age=$(age_of "$loop")
if ! is_loop "$loop" || [ "${age:-0}" -lt "$((least - 1))" ]; then
  echo "process $loop is no reconfigure loop any more" >&2
  exit 3
fi
started_by=$(parent_of "$loop")
children=$(below "$loop")
# SIGKILL: a process that is stopped does not hear a milder signal. The loop first, or it would go on without its call.
kill -KILL "$loop"
for child in $children; do kill -KILL "$child" 2>/dev/null; done

tries=0
while [ "$tries" -lt 20 ]; do
  for directory in /proc/[0-9]*; do
    new=${directory#/proc/}
    if [ "$new" != "$loop" ] && is_loop "$new" && [ "$(parent_of "$new")" = "$started_by" ]; then
      echo "ended $loop, now runs $new"
      exit 0
    fi
  done
  tries=$((tries + 1))
  sleep 1
done
echo "ended $loop, and supervisord started no new loop in 20 s" >&2
exit 1
