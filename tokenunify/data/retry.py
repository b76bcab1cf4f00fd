"""Try again after faults that pass: how often, how long to wait, and what is said in the end."""

import email.utils
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import requests

from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
BACKOFF_SECONDS = 2.0
"""Pause after the first failed attempt; it doubles each time."""
LONGEST_PAUSE_SECONDS = 900.0
"""A server that asks for a longer pause is asked again after this one."""
TIMEOUT_SECONDS = 60
LASTING = (400, 401, 403, 404, 405, 410)
"""Answers of a server that trying again does not change."""
BUSY = (429, 503)
"""Answers that may tell when to come back."""
RETRY = "check the address and the network, then run snakemake again: what has arrived is kept"
ADVICE = {
    401: "it needs a login or an accepted licence: download it by hand and give it as `path`",
    403: "it needs a login or an accepted licence: download it by hand and give it as `path`",
    404: "the server has nothing at this address: correct it",
    410: "the server has nothing at this address any more: find the new one",
    429: "the server asks for fewer requests: set download.max_mb_per_second, or run snakemake again later",
    500: "the server has a fault of its own: run snakemake again later, what has arrived is kept",
    503: "the server is busy: run snakemake again later, what has arrived is kept",
}


def without_queries(error: Exception) -> str:
    """What the error says, without the queries of addresses: a redirect's holds the key to the file."""
    return re.sub(r"\?[^\s'\")]+", "", str(error))


class Attempts:
    """The attempts at one address; `action` is what the last message says cannot be done: fetched, read."""

    def __init__(self, address: str, action: str, said: Callable[[Exception], str] = without_queries):
        self.address, self.action, self.said = address, action, said
        self.number = 0

    def failed(self, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt; after `progress` attempts are counted anew.

        Raises InputError after the last attempt, and for answers that trying again does not change.
        """
        self.number = 1 if progress else self.number + 1
        response = getattr(error, "response", None)
        answer = getattr(response, "status_code", 0)
        if answer in LASTING or self.number == ATTEMPTS:
            raise InputError(
                f"{self.address} cannot be {self.action} after {self.number} attempts ({self.said(error)}); "
                f"{ADVICE.get(answer, RETRY)}"
            ) from None
        seconds = pause(response, self.number)
        logger.warning(
            "%s: attempt %d failed (%s), again in %g s", self.address, self.number, self.said(error), seconds
        )
        time.sleep(seconds)


def pause(response: requests.Response | None, attempt: int) -> float:
    """Seconds until the next attempt: what a busy server asks for, or longer each time."""
    default = BACKOFF_SECONDS * 2 ** (attempt - 1)
    if response is None or response.status_code not in BUSY:
        return default
    asked = response.headers.get("Retry-After", "")
    if asked.isdigit():
        seconds = float(asked)
    else:
        try:
            seconds = (email.utils.parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return default
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
