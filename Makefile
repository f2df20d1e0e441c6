# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Where make was started, and who may write there, makes no difference.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
export ANSIBLE_CONFIG := $(ROOT)/ansible.cfg
export PATH := $(ROOT)/.venv/bin:$(PATH)

SCENARIO ?=
ARGS ?=
# A folder is looked for where make was started; what is none there is a scenario's name.
scenario = $(if $(SCENARIO),--scenario '$(or $(realpath $(SCENARIO)),$(SCENARIO))')

.PHONY: help triage test lint bench sandbox-up sandbox-down setup

help:
	@echo 'make triage [SCENARIO=name-or-folder] [ARGS="-e ..."]   triage an incident on the embedded sandbox'
	@echo 'make test [ARGS="..."]    the linters and all tests (ARGS: only pytest, with these)'
	@echo 'make lint                 every linter'
	@echo 'make bench                the figures of the benchmarks'
	@echo 'make sandbox-up [SCENARIO=...], make sandbox-down'
	@echo 'make setup                only the virtual environment'

setup:
	@$(ROOT)/scripts/setup

triage: setup
	@cd $(ROOT) && python -m sandbox run $(scenario) -- ansible-playbook triage.yml $(ARGS)

sandbox-up: setup
	@cd $(ROOT) && python -m sandbox up $(scenario)

sandbox-down: setup
	@cd $(ROOT) && python -m sandbox down

# Half of the time a test waits (for an agent, a deadline), so there is one worker more than cores.
# A part of the tests (ARGS) is for whoever works on it; all of them include the linters.
test: setup
	@$(if $(ARGS),:,$(ROOT)/scripts/lint)
	@cd $(ROOT) && python -m pytest --numprocesses $$(($$(nproc) + 1)) --dist worksteal $(ARGS)

lint: setup
	@$(ROOT)/scripts/lint

bench: setup
	@cd $(ROOT) && python -m benchmarks $(ARGS)
