"""Every key, its environment variable, its range; every mistake in one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.config import Settings, keys, load
from pnode.config.keys import env_name
from pnode.config.units import seconds, size_bytes
from pnode.errors import ConfigError

# A valid value that differs from the default, for each key.
OTHER = {
    "role": "orchestrator",
    "device": "cpu",
    "node.uuid": "7a1f3c2e-0d4b-4b64-9f6d-1f2e3d4c5b6a",
    "node.host": "127.0.0.2",
    "node.data_dir": "/tmp/else where",
    "tls.mode": "on",
    "rpc.addresses": "any",
    "rpc.compression": "zstd",
    "orchestrator.address": "127.0.0.1:1234",
    "orchestrator.host": "127.0.0.2",
    "orchestrator.spread": "true",
    "orchestrator.pins": "stage1=7a1f3c2e-0d4b-4b64-9f6d-1f2e3d4c5b6a",
    "driver.data_dir": "/tmp/driver",
    "store.url": "file:///tmp/x",
    "store.s3.bucket": "bucket",
    "store.s3.prefix": "elsewhere",
    "store.s3.endpoint": "http://127.0.0.1:8333",
    "store.s3.region": "eu-central-1",
    "limits.memory": "3GiB",
    "limits.message": "1MiB",
    "limits.whole": "2MiB",
    "limits.disk": "2GiB",
    "limits.in_flight": "64MiB",
    "limits.disk_free": "1GiB",
    "sandbox.require": "[seccomp,landlock]",
    "devnet.kill": "17",
    "devnet.faults": "drop:0.05,kill:0.01",
    "devnet.placement": "one-three",
    "devnet.folder": "elsewhere",
    "devnet.reference": "false",
    "job.profile": "torch",
    "job.lr": "0.01",
    "job.memory": "1GiB",
    "log.level": "debug",
    "log.format": "json",
}
FIXED = {"job.name"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in keys():
        monkeypatch.delenv(env_name(key.name), raising=False)
    monkeypatch.delenv("PNODE_JOB", raising=False)


def flat(settings: Settings) -> dict[str, object]:
    """Every key with its value."""
    content = settings.model_dump()

    def at(key: str) -> object:
        value: object = content
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        return value

    return {key.name: at(key.name) for key in keys()}


@pytest.mark.parametrize("left_out", ["store.url", "store.s3.bucket"], ids=["bucket", "url"])
def test_every_key_has_its_environment_variable_and_obeys_it(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, but for the two that exclude each other."""
    given = [key for key in keys() if key.name not in (*FIXED, left_out)]
    default = flat(load())
    by_hand = flat(load([f"{key.name}={OTHER.get(key.name, '7')}" for key in given]))
    for key in given:
        monkeypatch.setenv(key.env, OTHER.get(key.name, "7"))
    by_environment = flat(load())
    for key in given:
        assert key.env == env_name(key.name)
        assert key.help, f"{key.name} does not say what it is for"
        assert by_hand[key.name] != default[key.name], f"{key.name}: the test's other value is the default"
        assert by_environment[key.name] == by_hand[key.name], f"{key.env} does not set {key.name}"


def test_the_names_that_people_know() -> None:
    names = {key.name: key.env for key in keys()}
    assert names["node.uuid"] == "PNODE_UUID"
    assert names["node.port"] == "PNODE_PORT"
    assert names["orchestrator.address"] == "ORCHESTRATOR_ADDRESS"
    assert names["store.s3.bucket"] == "S3_BUCKET"
    assert len(set(names.values())) == len(names)


def test_heartbeats_come_every_30_seconds_unless_told_otherwise() -> None:
    assert load().orchestrator.heartbeat_s == 30.0


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("node: {port: 2}\n")
    monkeypatch.setenv("PNODE_PORT", "1")
    assert load().node.port == 1
    assert load([], str(file)).node.port == 2
    assert load(["node.port=3"], str(file)).node.port == 3
    assert load(["+node.port=3"]).node.port == 3


WRONG = [
    ("node.port=abc", "node.port: expected a whole number, got 'abc'"),
    ("node.port=70000", "node.port: expected at most 65535, got 70000"),
    ("node.port=-1", "node.port: expected at least 0, got -1"),
    ("node.port=1.5", "node.port: expected a whole number, got '1.5'"),
    ("node.port=true", "node.port: expected a whole number, got 'true'"),
    ("node.port=[1,2]", "node.port: expected a whole number, got '[1,2]'"),
    ("node.port=1,2", "node.port: expected a whole number, got '1,2'"),
    ("node.port=", "node.port: expected a whole number, got nothing"),
    ("node.prt=1", "node.prt: unknown key (from the command line); did you mean node.port?"),
    ("quark=1", "quark: unknown key (from the command line)"),
    ("hydra.run.dir=x", "hydra.run.dir: unknown key"),
    ("node=1", "node: is a section"),
    ("store.s3=1", "store.s3: is a section"),
    ("~node.port", "expected key=value"),
    ("node.port", "expected key=value"),
    ("limits.memory=4 Gb", "limits.memory: expected a size as 64MiB or 4GiB, got '4 Gb'"),
    ("limits.memory=0", "limits.memory: expected at least 1, got 0"),
    ("limits.message=1KiB", "limits.message: expected at least 65536"),
    ("node.drain_s=5parsecs", "node.drain_s: expected a time as 500ms, 30s or 5min, got '5parsecs'"),
    ("node.drain_s=0", "node.drain_s: expected more than 0, got 0"),
    ("node.uuid=me", "node.uuid: expected a UUID, got 'me'"),
    ("role=boss", "role: expected node, orchestrator, devnet or selftest, got 'boss'"),
    ("device=tpu", "device: expected auto, cpu or cuda, got 'tpu'"),
    ("devnet.kill=often", "devnet.kill: expected random, none or the number of a step, got 'often'"),
    ("devnet.faults=drop", "devnet.faults: expected none, or some of drop, duplicate, delay, reorder, kill as "),
    ("devnet.faults=rain:0.1", "as drop:0.05,delay:0.1, got 'rain:0.1'"),
    ("devnet.faults=drop:0.9", "devnet.faults: expected a rate of drop from 0 to 0.5, got '0.9'"),
    ("devnet.faults=drop:nan", "devnet.faults: expected a rate of drop from 0 to 0.5, got 'nan'"),
    ("devnet.faults=kill:0.1,kill:0.2", "devnet.faults: kill is there twice"),
    ("devnet.reference=perhaps", "devnet.reference: expected true or false, got 'perhaps'"),
    ("orchestrator.pins=a", "orchestrator.pins: expected VNODE=UUID,VNODE=UUID, got 'a'"),
    ("job=letters", "job: no job 'letters'; there is digits"),
    ("job.steps=0", "job.steps: expected at least 1, got 0"),
    ("job.lr=nan", "job.lr: expected a number, got 'nan'"),
    ("job.batch=3", "job: microbatches=4 is more than the 3 rows of a batch"),
    ("log.level=loud", "log.level: expected debug, info, warning or error, got 'loud'"),
    ("node.host=${oc.env:NOT_THERE}", "node.host: Environment variable 'NOT_THERE' not found"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_a_mistake_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([override])
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNODE_PORT", "many")
    with pytest.raises(ConfigError, match=r"node\.port: .* got 'many' \(from the environment variable PNODE_PORT\)"):
        load()
    # What the command line replaced is nobody's mistake.
    assert load(["node.port=1"]).node.port == 1


def test_a_job_in_the_environment_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNODE_JOB", "letters")
    with pytest.raises(ConfigError, match=r"job: no job 'letters'.*PNODE_JOB"):
        load()


def test_an_empty_variable_leaves_an_optional_key_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("S3_BUCKET", "PNODE_UUID", "ORCHESTRATOR_ADDRESS", "PNODE_LIMITS_MEMORY"):
        monkeypatch.setenv(name, "")
    loaded = load()
    assert loaded.store.s3.bucket is None
    assert loaded.node.uuid is None
    assert loaded.orchestrator.address is None
    assert loaded.limits.memory is None


def test_two_stores_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"store: url and s3\.bucket"):
        load(["store.url=file:///x", "store.s3.bucket=b"])


FILES: dict[str, tuple[str | bytes, str]] = {
    "broken.yaml": ("node: [", "not YAML"),
    "list.yaml": ("- 1\n", "expected keys and values"),
    "unknown.yaml": ("node: {prt: 1}\n", "node.prt: unknown key (from"),
    "section.yaml": ("node: 5\n", "node: is a section"),
    "wrong.yaml": ("node: {port: x}\n", "node.port: expected a whole number, got 'x' (from"),
    "bytes.yaml": (b"\xff\xfe\x00", "not YAML"),
    "number.yaml": ("node: {host: 7}\n", "node.host: expected text (in quotes where it looks like a number), got 7"),
    "many.yaml": ("node: {port: [1, 2]}\n", "node.port: expected a single value, got [1, 2]"),
    "deep.yaml": ("[" * 5000, "not YAML"),
    "large.yaml": ("#" * (2 << 20), "larger than"),
}


@pytest.mark.parametrize("quoted", ["'a b'", '"a b"'])
def test_quotes_of_the_grammar_are_not_part_of_the_text(quoted: str) -> None:
    assert load([f"node.data_dir={quoted}"]).node.data_dir == "a b"
    assert load([f"node.data_dir={quoted}x"]).node.data_dir == f"{quoted}x"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load([], str(path))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load([], str(tmp_path / "nothing.yaml"))
    assert load([], "/dev/null") == load()


def test_settings_survive_the_way_through_a_file(tmp_path: Path) -> None:
    """The devnet hands its children their whole configuration so."""
    loaded = load([f"{key}={value}" for key, value in OTHER.items() if not key.startswith("store.url")])
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(loaded.model_dump(mode="json")))
    assert load([], str(file)) == loaded


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=30))
def test_any_text_reaches_its_key_unharmed(text: str) -> None:
    """Quotes, backslashes, commas, brackets: a path is a path."""
    try:
        assert load([f"node.data_dir=/{text}"]).node.data_dir == f"/{text}"
    except ConfigError as error:
        assert "${" in text, error  # noqa: PT017 - an interpolation of nothing


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("1B", 1), ("64MiB", 64 << 20), ("4 GiB", 4 << 30), ("1.5KiB", 1536), ("2GB", 2 * 10**9), (7, 7)],
)
def test_sizes(text: object, number: int) -> None:
    assert size_bytes(text) == number


@pytest.mark.parametrize("text", ["1.5", "1.3KiB", "GiB", "1 gib", "-1MiB x", "", True, None, "1e400"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        size_bytes(text)


@pytest.mark.parametrize(
    ("text", "number"), [("500ms", 0.5), ("30s", 30), ("5min", 300), ("1h", 3600), (2, 2), ("0.5", 0.5)]
)
def test_times(text: object, number: float) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize("text", ["5m", "5 S", "s", "", False, None, "soon"])
def test_what_is_no_time(text: object) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "layers"), [("none", ()), ("[]", ()), ("uid", ("uid",)), ("[seccomp,landlock]", ("seccomp", "landlock"))]
)
def test_required_layers_are_listed(text: str, layers: tuple[str, ...]) -> None:
    assert load([f"sandbox.require={text}"]).sandbox.required == layers


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sandbox\.require: expected"):
        load(["sandbox.require=[apparmor]"])
