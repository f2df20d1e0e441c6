# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show how far a module is: it can't print while it runs, so it notes its state in a file that is watched from here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What is over sooner needs no words.
INTERVAL_SECONDS = 3.0


class Watch:
    """Shows a module's progress file every few seconds while it is entered.

    path: the file (JSON), None for none. words: puts its content into one line. say: prints a line.
    """

    def __init__(
        self, path: Path | None, words: Callable[[Mapping[str, Any]], str], say: Callable[[str], object]
    ) -> None:
        self._words = words
        self._say = say
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if path is not None:
            path.unlink(missing_ok=True)
            self._thread = threading.Thread(target=self._show, args=(path,), daemon=True)

    def __enter__(self) -> Watch:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self, path: Path) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            try:
                self._say(f"  {self._words(json.loads(path.read_text(encoding='utf-8')))}")
            except (OSError, ValueError, KeyError, TypeError):
                # Nothing was noted yet; the next look is in a few seconds.
                continue
