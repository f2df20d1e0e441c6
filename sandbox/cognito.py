# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one question that a triage asks Cognito: does this user exist, is it confirmed, which UID has it.

Behaviour after https://docs.aws.amazon.com/cognito-user-identity-pools/latest/APIReference/API_AdminGetUser.html.
"""

from __future__ import annotations

from typing import Any

from .errors import ApiError
from .model import REGION, Scenario

POOL_ID = f"{REGION}_sandbox"


class UserPool:
    """The scenario's users that have an account."""

    def __init__(self, scenario: Scenario) -> None:
        self._created = scenario.now.timestamp() - 100 * 86_400
        self._users = {user.name: user for user in scenario.users if user.cognito != "absent"}

    def admin_get_user(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer AdminGetUser.

        :raises ApiError: as AWS answers for a pool or a user that does not exist.
        """
        pool, name = str(request.get("UserPoolId")), str(request.get("Username"))
        if pool != POOL_ID:
            raise ApiError("ResourceNotFoundException", f"User pool {pool} does not exist.")
        user = self._users.get(name)
        if user is None:
            raise ApiError("UserNotFoundException", "User does not exist.")
        return {
            "Username": user.name,
            "UserAttributes": [{"Name": "custom:osid", "Value": str(user.uid)}],
            "UserCreateDate": self._created,
            "UserLastModifiedDate": self._created,
            "Enabled": True,
            "UserStatus": user.cognito,
        }
