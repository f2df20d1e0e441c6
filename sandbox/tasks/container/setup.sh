#!/bin/sh
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# setup.sh ROOT HOSTNAME PROGRAM...: first process of a task, in fresh mount, PID and UTS namespaces. Lays the host's programs
# read-only over the private tree ROOT, and becomes PROGRAM inside it. All mounts end with the namespace.
set -eu
root="$1" name="$2"
shift 2

# --rbind: a user namespace may not take a mount apart. Where read-only is refused, the caller could not write there before either.
share() {
  mount --rbind "$1" "$2"
  mount -o remount,bind,ro "$2" 2>/dev/null || :
}

hostname "$name" 2>/dev/null || echo "$name" >/proc/sys/kernel/hostname 2>/dev/null || :
share /usr "$root/usr"
share "$LOCAL_HOME" "$root/usr/local"
for folder in bin sbin lib lib32 lib64; do
  if [ -d "$root/$folder" ] && [ ! -L "$root/$folder" ]; then share "/$folder" "$root/$folder"; fi
done
if [ -d "$root/etc/alternatives" ]; then share /etc/alternatives "$root/etc/alternatives"; fi
if [ -d "$root/opt/python" ]; then share "$PYTHON_HOME" "$root/opt/python"; fi
if [ -d "$root/opt/debian" ]; then share "$DEBIAN_HOME" "$root/opt/debian"; fi
for node in null zero full random urandom tty ptmx; do mount --bind "/dev/$node" "$root/dev/$node"; done
mount --rbind /dev/pts "$root/dev/pts"
mount -t proc proc "$root/proc"
# A full disk: what the folder holds, on a file system that has not a block more. Where no mount is allowed, it stays as it is.
while read -r folder; do
  cp -a "$root$folder" "$root/tmp/full" && mount -t tmpfs -o size=1m full "$root$folder" || continue
  cp -a "$root/tmp/full/." "$root$folder/"
  rm -rf "$root/tmp/full"
  dd if=/dev/zero of="$root$folder/.filling" bs=4k 2>/dev/null || :
done <"$root/run/full-disk"
unset LOCAL_HOME PYTHON_HOME DEBIAN_HOME
cd "$root"
exec chroot . "$@"
