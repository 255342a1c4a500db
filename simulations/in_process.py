"""A federation within one process: the same apps without Flower's processes between them.

Each site answers through its real ClientApp, one after the other, so that a run takes one core and
no more memory than its largest site. Its figures are those of `flwr run`, and a study can keep one
such run a core.
"""

import time
from collections.abc import Collection, Mapping, Sequence

from flwr.app import ArrayRecord, Context, Message, Metadata, RecordDict
from torch import Tensor

from client.app import app
from configs.compose import compose, flatten
from mediffusion_core import protocol
from mediffusion_core.artifacts.run_folder import RunFolder
from mediffusion_core.compression import method_for
from mediffusion_core.errors import UserError
from mediffusion_core.settings import Compression, Settings
from server.app import serve
from server.messages import (
    Reply,
    SiteError,
    array_records,
    check_success,
    is_spent,
    request,
    size_of,
)

StateDict = Mapping[str, Tensor]

RUN = 1
SERVER = 1
FIRST_SITE = 2


def run_in_process(config_name: str, overrides: Sequence[str]) -> RunFolder:
    """Runs a federation to its end, or what is left of it.

    Args:
        config_name: Name of a file in `configs/`, without `.yaml`.
        overrides: As `fed-mediffusion simulate` takes them; `run.folder` must be among them.

    Returns:
        The folder of the run.

    Raises:
        UserError: for a mistake in settings or data.
        SiteError: if a site fails.
    """
    settings = compose(config_name, overrides)
    if settings.run.folder is None:
        raise UserError("a run in this process needs a run.folder")
    folder = RunFolder(settings.run.folder)
    with folder.held():
        sites = SitesHere(config_name, overrides, settings)
        serve(sites, settings, folder)
    return folder


class SitesHere:
    """The sites of one run, asked one after the other in this process."""

    def __init__(self, config_name: str, overrides: Sequence[str], settings: Settings) -> None:
        """Takes what each site composes its settings of, and what the server composed of it."""
        self._run_config = {"config-name": config_name, "overrides": flatten(overrides)}
        self._hash = settings.fingerprint()
        self._num_sites = settings.num_participants
        self._compression = settings.federation.compression
        self._names: dict[str, int] = {}

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in order, once there was a census."""
        return sorted(self._names)

    def census(self) -> list[Reply]:
        """Asks each site for its name and its counts."""
        replies = []
        for index in range(self._num_sites):
            message = order(protocol.CENSUS, self._hash, {}, index, 0)
            content = self._content(message, index)
            if is_spent(content):
                continue
            name = str(content.config_records[protocol.IDENTITY]["site"])
            self._names[name] = index
            replies.append(Reply.of(name, content))
        if not replies:
            raise SiteError("every site's privacy budget is spent")
        return sorted(replies, key=lambda reply: reply.site)

    def ask(
        self,
        kind: str,
        round_number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
    ) -> list[Reply]:
        """Sends one kind of message to the named sites, or to all, and returns their replies.

        `own` is by site's name what goes to that site alone. A site whose privacy budget is spent
        has no reply, and is asked no more.

        Raises:
            SiteError: if a site fails, or sends a number that is none.
        """
        replies = []
        method = method_for(kind, self._compression)
        shared = array_records(components, method)
        for name in self.sites:
            if sites is not None and name not in sites:
                continue
            index = self._names[name]
            records = {**shared, **array_records((own or {}).get(name, {}))}
            message = _order(kind, self._hash, records, index, round_number)
            received = size_of(records)
            content = self._content(message, index)
            if is_spent(content):
                del self._names[name]
            else:
                replies.append(Reply.of(name, content, components, method, received))
        return replies

    def _content(self, message: Message, index: int) -> RecordDict:
        content = answer(message, index, self._num_sites, self._run_config).content
        if not is_spent(content):
            check_success(f"site {index}", message.metadata.message_type, content)
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
    return Message(content, metadata=metadata)


def answer(message: Message, index: int, num_sites: int, run_config: Mapping[str, str]) -> Message:
    """What the ClientApp of one site replies."""
    context = Context(
        run_id=RUN,
        node_id=FIRST_SITE + index,
        node_config={"partition-id": index, "num-partitions": num_sites},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    return app(message, context)
