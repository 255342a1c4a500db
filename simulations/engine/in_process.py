"""A federation within one process: the same apps without Flower's processes between them.

Each site answers through its real ClientApp, one after the other, so that a run takes one core and
no more memory than its largest site. Its figures are those of `flwr run`, and a study can keep one
such run a core.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import ArrayRecord, Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from torch import Tensor

from client.client_app import app
from configs.compose import compose, flatten
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Compression, Settings
from server.messages import Reply, array_records, request
from server.reply_contract import ReplyContract
from server.server_app import serve
from server.sites import Receive, Records, Sites

StateDict = Mapping[str, Tensor]

RUN = 1
SERVER = 1
FIRST_SITE = 2


def run_in_process(config_name: str, overrides: Sequence[str]) -> RunFolder:
    """Runs a federation to its end; resumes the run whose checkpoints stand in the folder.

    Args:
        config_name: Name of a file in `configs/`, without `.yaml`.
        overrides: As `fed-mediffusion simulate` takes them; `run.folder` must be among them.

    Returns:
        The folder of the run.

    Raises:
        UserError: for a mistake in settings or data.
        SiteError: if too few sites answer.
    """
    settings = compose(config_name, overrides)
    if settings.run.folder is None:
        raise UserError("a run in this process needs a run.folder")
    folder = RunFolder(settings.run.folder)
    serve(lambda c: SitesHere(config_name, overrides, settings, c), settings, folder)
    return folder


class SitesHere(Sites):
    """The sites of one run, asked one after the other in this process."""

    def __init__(
        self,
        config_name: str,
        overrides: Sequence[str],
        settings: Settings,
        contract: ReplyContract,
        answered: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """Takes what each site composes its settings of, and what the server composed of it.

        `answered` is called with the kind of message after each answer.
        """
        super().__init__(settings, contract)
        self._answered = answered
        self._run_config = {"config-name": config_name, "overrides": flatten(overrides)}
        self._hash = settings.fingerprint()
        self._participants = settings.num_participants

    def newcomers(self) -> list[Reply]:
        """Asks those for their census again whose last one did not count."""
        replies: list[Reply] = []
        for index in set(range(self._participants)) - set(self._nodes.values()):
            content = self._answer(protocol.CENSUS, 0, index, {})
            self._count(protocol.CENSUS, index, content, self._admit, replies.append)
        return replies

    def _wait(self) -> list[int]:
        return list(range(self._participants))

    def _exchange(
        self, kind: str, round_number: int, records: Records, receive: Receive, needed: int
    ) -> None:
        for index, sent in records.items():
            receive(index, self._answer(kind, round_number, index, sent))

    def _may_have(self, node: int, name: str) -> bool:
        return self._nodes.get(name, node) == node

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        message = _order(kind, self._hash, records, index, round_number)
        content = answer(message, index, self._participants, self._run_config).content
        self._answered(kind)
        return content


def order(
    kind: str,
    settings_hash: str,
    components: Mapping[str, StateDict],
    index: int = 0,
    round_number: int = 1,
    method: Compression = "none",
) -> Message:
    """The server's message of one kind to one site."""
    return _order(kind, settings_hash, array_records(components, method), index, round_number)


def _order(
    kind: str,
    settings_hash: str,
    records: Mapping[str, ArrayRecord],
    index: int,
    round_number: int,
) -> Message:
    # Spelled out, since Flower otherwise takes it from a task that runs in this process.
    metadata = Metadata(
        run_id=RUN,
        message_id="message",
        src_node_id=SERVER,
        dst_node_id=FIRST_SITE + index,
        reply_to_message_id="",
        group_id=str(round_number),
        created_at=time.time(),
        ttl=3600.0,
        message_type=kind,
    )
    # Records of its own for each site, which takes the arrays out of them as it decodes them.
    own = {name: ArrayRecord(dict(record)) for name, record in records.items()}
    content = request(settings_hash, round_number, own)
    return make_message(metadata, content=content)


def answer(message: Message, index: int, num_sites: int, run_config: Mapping[str, str]) -> Message:
    """The reply of one site's ClientApp."""
    context = Context(
        run_id=RUN,
        node_id=FIRST_SITE + index,
        node_config={"partition-id": index, "num-partitions": num_sites},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    return app(message, context)
