"""The failure that leaves a site instead of a reply, and its reason, which stays at the site.

In a run with differential privacy every failure is the same record: its code is constant and its id
follows from the message. A reason would be an answer without noise: whether settings fit a site's
images tells what these are.
"""

import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.site import Site, may_give_reasons, site_log
from mediffusion_core.common.errors import AuditError, LedgerError, RefusedError, UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.common.logs import log
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.dp_sgd.gradient_check import WrongGradientError


class OtherSettingsError(Exception):
    """Server and site do not run the same settings."""


CODES: Mapping[type[Exception], str] = {
    AuditError: "audit",
    RefusedError: "refused",
    WrongGradientError: "gradients",
    OtherSettingsError: "settings",
    UserError: "data",
}
"""The code by type of error; the first match counts."""


@dataclass(frozen=True)
class Failure:
    """A failure to answer a message.

    Attributes:
        code: The reason, for the logs of the site.
        identity: Id of the failure, in the logs and in what leaves.
        leaving: The code that leaves.
    """

    code: str
    identity: str
    leaving: str

    def content(self) -> RecordDict:
        """The record that leaves."""
        record = ConfigRecord({"code": self.leaving, "id": self.identity})
        return RecordDict({protocol.FAILURE: record})


def failure(error: Exception, message: Message, context: Context, site: Site | None) -> Failure:
    """Logs an error at the site, and gives the failure that leaves in its place.

    Args:
        error: What went wrong.
        message: From the server.
        context: Of the site.
        site: None if it could not be opened.
    """
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "internal")
    if isinstance(error, LedgerError):
        code = error.code
    if may_give_reasons(context):
        found = Failure(code, uuid.uuid4().hex[:8], code)
    else:
        # The id follows from the message, so that it is the same for every failure.
        found = Failure(code, fingerprint(**asked(message))[:8], protocol.FAILED)
    _write(found, error, site)
    return found


def asked(message: Message) -> dict[str, str | int]:
    """Kind, round and settings hash of a message from the server."""
    return protocol.answered(message.metadata.message_type, instructions(message.content))


def instructions(content: RecordDict) -> dict[str, object]:
    """Settings hash and round of a message from the server; empty where it has none."""
    return dict(content.config_records.get(protocol.INSTRUCTIONS, {}))


def _write(found: Failure, error: Exception, site: Site | None) -> None:
    """Writes the reason into the site's own log."""
    try:
        if site is not None:
            site_log(site.folder).error(
                "%s %s %s\n%s", found.identity, found.code, error, traceback.format_exc()
            )
        else:
            log.error("%s %s %s", found.identity, found.code, error)
    except OSError:  # Flower would send the text of an error that is raised here
        log.error("%s %s %s", found.identity, found.code, error)
