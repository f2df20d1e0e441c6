#!/bin/sh
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Says what is true inside one mail container, in one pass. It only reads: no file is made, no process signalled.
# What it prints is read by module_utils/cabalmail/probe.py, which documents each record:
#
#   cabalmail-probe 1                 first line: format and version
#   <keyword> <field> ...             one fact a line, free text last
#   begin <kind> <gzip|none> <path>   a large or private section: base64 lines, its last line is "<TAB>#status <n>"
#   end <kind>
#   cabalmail-probe end               last line: without it the output is cut
#
# Never the environment, never an argument of a process (both hold secrets), and no mail text in clear: a session may
# be logged to the very group in which the alert's metric filter looks for its pattern.
# A tool that is missing costs its own facts and nothing else.

LC_ALL=C
export LC_ALL
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
exec 2>/dev/null

say() { printf '%s\n' "$*"; }
have() { command -v "$1" >/dev/null; }

# A command that may wait for a dead file system gets this long.
limit() {
  if have timeout; then timeout "$@"; else shift && "$@"; fi
}

# section KIND PATH COMMAND...: what the command prints, packed, with its exit status as the last line.
section() {
  kind=$1 path=$2
  shift 2
  if have gzip; then pack=gzip; else pack=none; fi
  say "begin $kind $pack $path"
  {
    "$@" 2>&1
    printf '\n\t#status %s\n' "$?"
  } | if [ "$pack" = gzip ]; then gzip -c; else cat; fi | base64
  say "end $kind"
}

clock() { say "clock $(date +%s)"; }

# Log level and maps that sendmail's configuration names.
configuration() {
  [ -r /etc/mail/sendmail.cf ] || return
  say "cf /etc/mail/sendmail.cf"
  while IFS= read -r line; do
    case $line in
    'O LogLevel='*) say "loglevel ${line#*=}" ;;
    'O AliasFile='*) say "cfmap aliases hash ${line#*=}" ;;
    K[a-z]*)
      set -f
      # shellcheck disable=SC2086
      set -- ${line#K}
      set +f
      name=$1 type=$2
      while [ $# -gt 1 ]; do shift; done
      say "cfmap $name $type $1"
      ;;
    esac
  done </etc/mail/sendmail.cf
}

text_files='/etc/mail/access /etc/mail/virtusertable /etc/mail/mailertable /etc/mail/local-host-names
/etc/mail/relay-domains /etc/mail/masq-domains /etc/aliases /etc/aliases.dynamic
/etc/opendkim/KeyTable /etc/opendkim/SigningTable /etc/opendkim/TrustedHosts'
map_files='/etc/mail/access.db /etc/mail/virtusertable.db /etc/mail/mailertable.db /etc/aliases.db'

files() {
  # shellcheck disable=SC2086
  stat -c 'file %Y %s %n' $text_files $map_files /etc/mail/sendmail.cf /run/sendmail-ready
  for file in $text_files; do
    [ -r "$file" ] && say "lines $(wc -l <"$file") $file"
  done
  # shellcheck disable=SC2086
  sha256sum $text_files $map_files | while read -r sum file; do say "sum $sum $file"; done
}

# The script a process runs, and the words of the aws sub-command: of a command line nothing else is printed.
# Reads the arguments, one a line.
program() {
  script=- words=- expect=first skip=
  while IFS= read -r arg; do
    base=${arg##*/}
    case $expect:$arg in
    first:*)
      case $base in
      sh | bash | dash | ash | busybox | python*) expect=script ;;
      aws) script=aws expect=words ;;
      *) break ;;
      esac
      ;;
    script:--*) ;;
    script:-*c*) break ;;
    script:-* | script:sh | script:bash | script:ash) ;;
    script:*)
      script=$base
      [ "$base" = aws ] || break
      expect=words
      ;;
    words:--*=* | words:--no-* | words:--debug) ;;
    words:--*) skip=1 ;;
    words:*)
      if [ -n "$skip" ]; then
        skip=
      else
        case $arg in *[!a-z0-9-]* | '') break ;; esac
        if [ "$words" = - ]; then words=$arg; else words=$words.$arg && break; fi
      fi
      ;;
    esac
  done
  case $script in *[!A-Za-z0-9._-]* | '') script=- ;; esac
  printf '%s %s' "$script" "$words"
}

processes() {
  read -r up _ </proc/uptime && say "uptime $up"
  say "ticks $(getconf CLK_TCK || echo 100)"
  say "self $$"
  for directory in /proc/[0-9]*; do
    stat='' wchan=''
    read -r stat <"$directory/stat" || continue
    name=${stat#*\(}
    name=${name%\)*}
    read -r wchan <"$directory/wchan"
    case $wchan in '' | 0 | *[!A-Za-z0-9_.]*) wchan=- ;; esac
    runs=$(tr '\0' '\n' <"$directory/cmdline" | program)
    set -f
    # shellcheck disable=SC2086
    set -- ${stat##*\) }
    set +f
    say "proc ${directory#/proc/} $2 $1 ${20} $wchan ${runs:-- -} $name"
  done
}

pin() {
  while IFS= read -r line; do
    case $line in *'# cabal-hosts-pin'*) say "pin ${line%%[[:space:]]*}" ;; esac
  done </etc/hosts
}

# imap as DNS has it here, past /etc/hosts. Only where dig is: getent would answer from the pin.
names() {
  have dig || return
  answer=$(limit 5 dig +time=2 +tries=1 +short imap.cabal.internal A)
  # shellcheck disable=SC2086
  say "dns $? imap.cabal.internal" $answer
}

storage() {
  for path in /etc/mail /home /var/spool/mail /var/spool/mqueue /var/log /tmp; do
    [ -d "$path" ] || continue
    limit 5 df -P -k "$path" | while read -r _ _ _ free used mount; do
      case $used in [0-9]*%) say "disk ${used%\%} $free $path $mount" ;; esac
    done
    limit 5 df -P -i "$path" | while read -r _ _ _ _ used _; do
      case $used in [0-9]*%) say "inodes ${used%\%} $path" ;; esac
    done
  done
  while read -r _ mount type options _; do
    case $mount in
    / | /home | /etc | /etc/mail | /var/spool/mail | /var/spool/mqueue) say "mount ${options%%,*} $type $mount" ;;
    esac
  done </proc/mounts
}

memory() {
  while read -r key value _; do
    case $key in MemTotal: | MemAvailable:) say "memory ${key%:} $value" ;; esac
  done </proc/meminfo
  for file in memory.max memory.current; do
    value=
    read -r value <"/sys/fs/cgroup/$file" && say "cgroup $file $value"
  done
}

people() {
  while IFS=: read -r name _ uid gid _ home _; do
    case $uid in '' | *[!0-9]*) continue ;; esac
    [ "$uid" -ge 1000 ] && [ "$uid" -lt 65534 ] && say "user $uid $gid $name $home"
  done </etc/passwd
  say "users end"
  limit 15 stat -c 'home %u %g %f %n' /home/* /home/*/Maildir /home/*/Maildir/new
  [ -d /home ] && say "homes end"
  limit 5 stat -c 'stray %s %Y %n' /var/spool/mail/*
  [ -d /var/spool/mail ] && say "stray end"
}

# The maps as sendmail reads them, beside the text they were made from.
maps() {
  for file in $map_files; do
    [ -e "$file" ] && section db "$file" limit 20 makemap -u hash "$file"
  done
  for file in /etc/mail/access /etc/mail/virtusertable /etc/mail/mailertable /etc/aliases; do
    [ -r "$file" ] && section text "$file" cat "$file"
  done
}

# Modulus and exponent of the key that opendkim signs with: what DNS shows to everybody, and nothing of the private half.
public_half() {
  python3 -S - "$1" 2>/dev/null <<'PYTHON'
import base64, sys

pem = open(sys.argv[1], encoding="ascii").read()
der = base64.b64decode("".join(line for line in pem.splitlines() if "-" not in line and ":" not in line))

def element(at):
    size, at = der[at + 1], at + 2
    if size & 128:
        size, at = int.from_bytes(der[at : at + (size & 127)], "big"), at + (size & 127)
    return at, at + size

after_version = element(element(0)[0])[1]
if der[after_version] == 0x30:  # PKCS#8: the algorithm, then the key of PKCS#1 in an octet string
    after_version = element(element(element(element(after_version)[1])[0])[0])[1]
modulus = element(after_version)
exponent = element(modulus[1])
print(*(der[start:end].hex() for start, end in (modulus, exponent)))
PYTHON
}

signing() {
  for file in /etc/opendkim/KeyTable /etc/opendkim/SigningTable; do
    [ -r "$file" ] && section table "$file" cat "$file"
  done
  key=/etc/opendkim/keys/cabal
  [ -r "$key" ] && have python3 && section key "$key" public_half "$key"
}

say "cabalmail-probe 1"
clock
configuration
files
processes
pin
names
storage
memory
people
clock
signing
# Every task reads its queue, a shared one too: which of a tier's sessions will fail is not known, and none may cost the
# tier its queue. The verdict takes one a tier and adds none up.
have mailq && section mailq - limit 10 mailq -v
maps
clock
say "cabalmail-probe end"
