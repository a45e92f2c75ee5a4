"""One checkpoint of a run at a time: a record of every VNode at one version, then one manifest. Pure.

Records commit nothing. Only the manifest does, so a checkpoint may be abandoned at any moment before its commit, and
once that is under way its outcome must be awaited before the run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pnode.errors import Busy, PNodeError, StepMismatch
from pnode.orchestrator.actions import Action, Answer, Commit, Snapshot
from pnode.orchestrator.events import Committed, Stored
from pnode.orchestrator.history import History, state_records
from pnode.orchestrator.topology import Location
from pnode.storage.manifest import Record, RunManifest
from pnode.v1 import orchestrator_pb2, vnode_pb2

# A checkpoint takes about this long: a caller that finds another one under way comes back after it.
_RETRY_AFTER_S = 0.5


@dataclass
class Round:
    """The checkpoint under way."""

    version: int
    cursor: int
    generation: int
    tickets: list[int] = field(default_factory=list)
    records: dict[str, vnode_pb2.StateRecord] = field(default_factory=dict)
    committing: bool = False


class Checkpoints:
    """Of one run. `vnodes` are the ids of its VNodes in model order; `keep` newest manifests are kept."""

    def __init__(self, run: str, vnodes: Sequence[str], history: History, keep: int) -> None:
        self._run = run
        self._vnodes = tuple(vnodes)
        self._history = history
        self._keep = keep
        self._profile = ""
        self._round: Round | None = None

    @property
    def idle(self) -> bool:
        """Whether no checkpoint is under way."""
        return self._round is None

    @property
    def committing(self) -> bool:
        """Whether a commit is under way, whose outcome is not known yet."""
        return self._round is not None and self._round.committing

    def ask(
        self, ticket: int, version: int, cursor: int, generation: int, profile: str, locations: Sequence[Location]
    ) -> list[Action]:
        """Begin a checkpoint, join the one under way, or answer from the one committed last.

        Raises StepMismatch for a version before the last one, Busy while another version is under way.
        """
        base = self._history.base
        if base is not None and version <= base.manifest.version:
            if version < base.manifest.version:
                raise StepMismatch(f"version {version} is before {base.manifest.version}, which is committed")
            return [Answer((ticket,), _reply(base))]
        if self._round is None:
            return self.begin(Round(version, cursor, generation, [ticket]), profile, locations)
        if self._round.version != version:
            raise Busy(f"a checkpoint of version {self._round.version} is under way", retry_after_s=_RETRY_AFTER_S)
        self._round.tickets.append(ticket)
        return []

    def begin(self, checkpoint: Round, profile: str, locations: Sequence[Location]) -> list[Action]:
        """Ask every VNode for its record, but those whose record has come already."""
        self._round = checkpoint
        self._profile = profile
        missing = [location for location in locations if location.vnode not in checkpoint.records]
        snapshots = [Snapshot(location, checkpoint.generation, checkpoint.version) for location in missing]
        return [*snapshots, *self._commit_when_complete()]

    def snapshotted(self, action: Snapshot, record: vnode_pb2.StateRecord) -> list[Action]:
        """A VNode's record has come. One of an older round is as good: the same version is the same state."""
        if not self._is_of_round(action):
            return []
        assert self._round is not None
        self._round.records[record.vnode] = record
        return self._commit_when_complete()

    def _commit_when_complete(self) -> list[Action]:
        open_round = self._round
        if open_round is None or len(open_round.records) < len(self._vnodes):
            return []
        open_round.committing = True
        records = [open_round.records[vnode] for vnode in self._vnodes]
        manifest = RunManifest(
            run=self._run,
            version=open_round.version,
            generation=open_round.generation,
            cursor=open_round.cursor,
            profile=self._profile,
            parent=None,
            vnodes=tuple(Record(record.vnode, record.sha256, record.size_bytes) for record in records),
        )
        return [Commit(self._run, manifest, self._keep)]

    def committed(self, event: Committed) -> list[Action]:
        """The manifest stands."""
        self._history.add(event.stored)
        return self._end(_reply(event.stored))

    def failed(self, action: Snapshot | Commit, error: PNodeError) -> list[Action]:
        """A record or the commit did not come: this checkpoint is over, the run is not."""
        if isinstance(action, Snapshot) and not self._is_of_round(action):
            return []
        return self._end(error)

    def abandon(self, error: PNodeError) -> list[Action]:
        """The run moves on. A commit under way is left to end."""
        return [] if self.committing else self._end(error)

    def _is_of_round(self, action: Snapshot) -> bool:
        found = self._round
        return (
            found is not None
            and not found.committing
            and (action.generation, action.version) == (found.generation, found.version)
        )

    def _end(self, outcome: orchestrator_pb2.CheckpointReply | PNodeError) -> list[Action]:
        ended, self._round = self._round, None
        return [Answer(tuple(ended.tickets), outcome)] if ended is not None and ended.tickets else []


def _reply(stored: Stored) -> orchestrator_pb2.CheckpointReply:
    return orchestrator_pb2.CheckpointReply(manifest_sha256=stored.sha256, records=state_records(stored))
