#!/bin/bash
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Stands in for a daemon that only has to be there, under the name that it is called by (opendkim, dovecot, rsyslogd, opendmarc).
set -u
trap '' HUP
# Nobody ever writes to this pipe: a wait that needs no second process.
read -r _ <>"${TASK_ROOT:-}/run/idle"
