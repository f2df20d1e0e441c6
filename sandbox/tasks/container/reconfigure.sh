#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The reconfigure loop of a mail task: regenerates the maps when an address changes, and every RECONFIGURE_INTERVAL seconds anyway.
# The first start of a task that the sandbox puts into a declared state (RESUMED set) says nothing: its start lies in the past.
set -euo pipefail

interval="${RECONFIGURE_INTERVAL:-900}"
poll=20
ready="${TASK_ROOT:-}/run/sendmail-ready"

say() { printf '[reconfigure] %s\n' "$*"; }

ping_healthchecks() {
  case "${HEALTHCHECK_PING_URL:-}" in
    http*) ;;
    *) return 0 ;; # a placeholder: no ping, no line
  esac
  if curl -fsS -m 10 -o /dev/null "$HEALTHCHECK_PING_URL" 2>/dev/null; then
    say "Healthchecks ping sent."
  else
    say "Healthchecks ping failed (ignored)."
  fi
}

regenerate() {
  say "Regenerating configs from DynamoDB..."
  generate-config.sh
  if [ "$TIER" = imap ]; then newaliases >/dev/null; fi
  say "Killing sendmail; supervisord will restart it..."
  pkill -x sendmail 2>/dev/null || true
  if [ "$TIER" = smtp-out ]; then pkill -HUP -x opendkim 2>/dev/null || true; fi
  say "Done."
  ping_healthchecks
}

# Sets handles to the receipt handles of up to $1 messages after waiting up to $2 seconds; to nothing when there is none.
# A queue that can't be reached is silent, as in the deployment; the pause keeps it from spinning.
receive() {
  handles="$(exec aws sqs receive-message --queue-url "$SQS_QUEUE_URL" --max-number-of-messages "$1" --wait-time-seconds "$2" \
    --query 'Messages[].ReceiptHandle' --output text 2>/dev/null)" || { handles=""; sleep "$2"; }
  if [ "$handles" = None ]; then handles=""; fi
}

delete() { aws sqs delete-message --queue-url "$SQS_QUEUE_URL" --receipt-handle "$1" 2>/dev/null || true; }

# Deletes what came in meanwhile; a message for a change made after the scan goes with it, as in the deployment.
drain() {
  local handle drained=""
  while receive 10 0 && [ -n "$handles" ]; do
    for handle in $handles; do delete "$handle"; done
    drained=1
  done
  if [ -n "$drained" ]; then say "Drained stale SQS messages."; fi
}

# A task that is declared stopped stops before it does anything. Under a tracer (proot) the signal has no effect: it then waits here
# for the SIGCONT that would continue it.
if [ "${RESUMED:-}" = stopped ]; then
  trap 'RESUMED=continued' CONT
  kill -STOP $$
  until [ "$RESUMED" = continued ]; do read -r -t 1 _ <>"${TASK_ROOT:-}/run/idle" || true; done
  trap - CONT
fi

if [ -z "${RESUMED:-}" ]; then
  say "Starting config watch loop (tier: $TIER)"
  if [ -n "${SQS_QUEUE_URL:-}" ]; then
    say "SQS mode: polling $SQS_QUEUE_URL"
  else
    say "WARNING: SQS_QUEUE_URL not set, running in periodic-only mode"
  fi
fi
resumed="${RESUMED:-}"
unset RESUMED

if [ "$TIER" = imap ] && [ ! -e "$ready" ]; then
  say "Waiting for startup sendmail prep (/run/sendmail-ready)..."
  until [ -e "$ready" ]; do sleep 1; done
  say "Startup sendmail prep done."
fi

# How long ago the last pass wrote the text maps: a loop that has run for hours has its clock from there.
last_pass_age() {
  local file
  for file in relay-domains masq-domains; do
    file="${TASK_ROOT:-}/etc/mail/$file"
    if [ -e "$file" ]; then
      echo $(($(date +%s) - $(stat -c %Y "$file")))
      return
    fi
  done
  echo 0
}

# A task that is declared to hang does so in the middle of a pass whose first lines are in the past as well.
if [ "$resumed" = regenerating ]; then regenerate >/dev/null; fi

last=$SECONDS
if [ -n "$resumed" ]; then last=$((SECONDS - $(last_pass_age))); fi
while :; do
  if [ -z "${SQS_QUEUE_URL:-}" ]; then
    sleep "$interval"
    say "Periodic regeneration (every ${interval}s)..."
    regenerate
    continue
  fi
  receive 1 "$poll"
  if [ -n "$handles" ]; then
    say "SQS message received, triggering regeneration..."
    delete "$handles"
    regenerate
    drain
    last=$SECONDS
  elif [ $((SECONDS - last)) -ge "$interval" ]; then
    say "Periodic fallback regeneration (every ${interval}s)..."
    regenerate
    last=$SECONDS
  fi
done
