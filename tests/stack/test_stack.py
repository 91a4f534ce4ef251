"""The promises of this package: nothing is left behind, data survives a crash, a missing server says what to do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.stack import NotOwned, Server, Stack, StartFailed, Unavailable, artifacts
from tests.stack.endpoints import Endpoint, KafkaEndpoint, MinioEndpoint, OpenSearchEndpoint, RedisEndpoint
from tests.stack.native.redis import RedisServer
from tests.stack.process import Guarded

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "STORES_KAFKA_BOOTSTRAP": "kafka.test:9092",
    "STORES_OPENSEARCH_URL": "http://opensearch.test:9200",
    "STORES_S3_ENDPOINT": "http://s3.test:9000",
    "STORES_S3_ACCESS_KEY": "access",
    "STORES_S3_SECRET_KEY": "secret",
    "STORES_S3_BUCKET": "models",
    "STORES_REDIS_URL": "redis://:password@redis.test:6379/0",
}


def wait_until(condition: Callable[[], bool], *, limit: timedelta = timedelta(seconds=15)) -> None:
    deadline = time.monotonic() + limit.total_seconds()
    while not condition():
        assert time.monotonic() < deadline, f"not so within {limit}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether it is alive; a dead orphan that a container's first process has not reaped yet is not."""
    try:
        os.kill(pid, 0)
        if sys.platform == "linux":
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def serves(endpoint: Endpoint) -> bool:
    try:
        endpoint.probe()
    except Exception:
        return False
    return True


def run_python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


# --- the guardian


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_parent_that_is_ended_by_a_signal_leaves_no_process_and_no_folder(
    ending: signal.Signals, tmp_path: Path
) -> None:
    """INVARIANT: would break if cleaning up relied on a handler in the parent, or reached only the leader."""
    code = (
        "import time; from tests.stack.process import Guarded; g = Guarded('test');"
        "g.run(['sh', '-c', 'sleep 600 & echo $! > child; exec sleep 600']); print(g.pid, flush=True); time.sleep(600)"
    )
    parent = run_python(code, TMPDIR=str(tmp_path))
    assert parent.stdout is not None
    leader = int(parent.stdout.readline())
    (folder,) = tmp_path.iterdir()
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text().endswith("\n"))
    child = int((folder / "child").read_text())

    parent.send_signal(ending)
    parent.communicate()

    wait_until(lambda: not is_running(leader) and not is_running(child) and not list(tmp_path.iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child's life to its parent's")
def test_killed_guardian_takes_its_command_along() -> None:
    """INVARIANT: would break without the parent-death signal, and the folder would stay without a second sweep."""
    guarded = Guarded("test")
    guarded.run(["sleep", "600"])
    command = guarded.pid
    assert command is not None

    guarded._guardian.kill()

    wait_until(lambda: guarded.pid is None and not is_running(command))
    guarded.close()
    assert not guarded.folder.exists()


def test_command_that_ends_leaves_no_member_of_its_group() -> None:
    guarded = Guarded("test")
    try:
        guarded.run(["sh", "-c", "sleep 600 & echo $! > child; exit 3"])

        code = guarded.wait(timedelta(seconds=10))

        assert code == 3
        wait_until(lambda: not is_running(int((guarded.folder / "child").read_text())))
    finally:
        guarded.close()
    assert not guarded.folder.exists()


def test_command_that_cannot_be_executed_is_named() -> None:
    guarded = Guarded("test")
    try:
        with pytest.raises(StartFailed, match="cannot execute /no/such/program"):
            guarded.run(["/no/such/program"])
    finally:
        guarded.close()


# --- the cache


def make_artifact(path: Path, script: str, *, tool: str = "sh") -> artifacts.Artifact:
    return artifacts.Artifact(
        name="thing 1",
        path=path,
        tool=tool,
        hint="install a shell",
        commands=lambda folder: ([tool, "-c", script], {"FOLDER": str(folder)}),
    )


def test_two_runs_fetch_an_artifact_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    artifact = make_artifact(tmp_path / "thing-1", f"echo run >> {log}; sleep 0.3; touch $FOLDER/program")
    runs = [threading.Thread(target=artifact.fetch) for _ in range(3)]

    for run in runs:
        run.start()
    for run in runs:
        run.join()

    assert log.read_text() == "run\n"
    assert [path.name for path in artifact.path.iterdir()] == ["program"]


def test_failed_fetch_leaves_nothing_and_quotes_the_tool(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "thing-1", "touch $FOLDER/half; echo no network; exit 1")

    with pytest.raises(Unavailable, match="no network"):
        artifact.fetch()

    assert [path.name for path in tmp_path.iterdir()] == [".thing-1.lock"]


def test_missing_tool_says_how_to_get_it(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "thing-1", "", tool="no-such-tool")

    with pytest.raises(Unavailable, match=r"`no-such-tool` is not on PATH: install a shell"):
        artifact.fetch()


def test_too_old_java_is_named_with_the_way_out() -> None:
    with pytest.raises(Unavailable, match=r"JDK 999 or newer is needed, found: .*JAVA_HOME"):
        artifacts.java(999, compiler=True)


# --- discovery


def test_endpoints_in_the_environment_are_used_and_nothing_is_started(tmp_path: Path) -> None:
    stack = Stack(environ=EVERYTHING)

    stack.start()

    assert stack.environment() == {"STORES_COLUMN": "real", **EVERYTHING}
    assert {stack.server(name).origin for name in ("kafka", "opensearch", "minio", "redis")} == {"environment"}
    with pytest.raises(NotOwned, match="cannot kill kafka"):
        stack.kafka.kill()


def test_half_an_endpoint_in_the_environment_does_not_count() -> None:
    assert MinioEndpoint.from_environment({**EVERYTHING, "STORES_S3_SECRET_KEY": ""}) is None


def test_an_endpoint_does_not_show_its_secrets() -> None:
    endpoints = MinioEndpoint.from_environment(EVERYTHING), RedisEndpoint.from_environment(EVERYTHING)

    assert "secret" not in repr(endpoints)
    assert "password" not in repr(endpoints)


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [({}, "2 skipped"), ({"MODELWORKS_REQUIRE_STACK": "1"}, "2 errors"), ({"CI": "true"}, "2 errors")],
)
def test_missing_server_skips_with_its_reason_and_fails_where_it_is_required(
    environment: dict[str, str], outcome: str, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text("def test_a(redis_server): ...\ndef test_b(minio): ...\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STORES_", "CI", "MODELWORKS_"))}
    nothing = {"PATH": "/no/such/folder", "XDG_CACHE_HOME": str(tmp_path), "DOCKER_HOST": "tcp://127.0.0.1:1"}

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.stack.plugin", "-p", "no:cacheprovider", "-rsE", tmp_path],
        env={**kept, **nothing, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome in run.stdout
    assert "redis-server is not on PATH: `apt-get install redis-server`" in run.stdout
    assert "`go` is not on PATH: install Go" in run.stdout


# --- the real servers


@pytest.mark.real
def test_stack_describes_four_servers_that_serve(stack: Stack) -> None:
    environment = stack.environment()

    assert environment.keys() == {"STORES_COLUMN", *EVERYTHING}
    for kind in (KafkaEndpoint, OpenSearchEndpoint, MinioEndpoint, RedisEndpoint):
        endpoint = kind.from_environment(environment)
        assert endpoint is not None
        endpoint.probe()


@pytest.mark.real
def test_servers_refuse_whoever_lacks_their_credentials(
    minio: Server[MinioEndpoint], redis_server: Server[RedisEndpoint]
) -> None:
    _, _, address = redis_server.endpoint.url.rpartition("@")

    with redis.Redis.from_url(f"redis://{address}") as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    assert httpx.get(f"{minio.endpoint.url}/{minio.endpoint.bucket}", trust_env=False).status_code == 403


async def publish(endpoint: KafkaEndpoint, topic: str, count: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=endpoint.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=endpoint.bootstrap, acks="all") as producer:
        for number in range(count):
            await producer.send_and_wait(topic, str(number).encode())


async def end_offset(endpoint: KafkaEndpoint, topic: str) -> int:
    async with AIOKafkaConsumer(bootstrap_servers=endpoint.bootstrap) as consumer:
        partition = TopicPartition(topic, 0)
        offsets: dict[TopicPartition, int] = await consumer.end_offsets([partition])
        return offsets[partition]


@pytest.mark.real
async def test_killed_kafka_comes_back_on_its_port_with_its_offsets(kafka: Server[KafkaEndpoint]) -> None:
    await publish(kafka.endpoint, "stack.killed", 3)
    before = kafka.endpoint

    kafka.kill()
    assert not serves(before)
    kafka.restart()

    assert kafka.endpoint == before
    assert await end_offset(kafka.endpoint, "stack.killed") == 3


@pytest.mark.real
async def test_kafka_makes_no_topic_by_itself(kafka: Server[KafkaEndpoint]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.endpoint.bootstrap)
    await admin.start()
    try:
        await admin.describe_topics(["stack.misspelt"])

        assert "stack.misspelt" not in await admin.list_topics()
    finally:
        await admin.close()


@pytest.mark.real
def test_killed_opensearch_comes_back_with_its_documents(opensearch: Server[OpenSearchEndpoint]) -> None:
    url = f"{opensearch.endpoint.url}/stack-killed/_doc/1"
    httpx.put(url, json={"kept": True}, trust_env=False, timeout=30).raise_for_status()

    opensearch.kill()
    opensearch.restart()

    assert httpx.get(url, trust_env=False, timeout=30).json()["_source"] == {"kept": True}


@pytest.mark.real
def test_paused_server_is_silent_until_it_is_resumed(redis_server: Server[RedisEndpoint]) -> None:
    with redis.Redis.from_url(redis_server.endpoint.url, socket_timeout=0.5, retry=None) as client:
        client.set("stack", "kept")

        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("stack")
        redis_server.resume()

        assert client.get("stack") == b"kept"


@pytest.mark.real
@pytest.mark.parametrize("harm", ["kill", "pause"])
def test_server_that_a_test_left_broken_is_healed(harm: str, redis_server: Server[RedisEndpoint]) -> None:
    stack = Stack(native_only=True)
    try:
        stack.start("redis")
        getattr(stack.redis, harm)()

        stack.heal()

        assert serves(stack.redis.endpoint)
    finally:
        stack.stop()


@pytest.mark.real
def test_failed_start_quotes_the_log_and_leaves_nothing(
    redis_server: Server[RedisEndpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Misconfigured(RedisServer):
        def configure(self, folder: Path) -> RedisEndpoint:
            endpoint = super().configure(folder)
            with (folder / "redis.conf").open("a") as config:
                config.write("no-such-setting 1\n")
            return endpoint

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Misconfigured()

    with pytest.raises(StartFailed, match=r"redis ended by itself(.|\n)*no-such-setting"):
        server.start()

    assert server.pid is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_up_leaves_no_server_and_no_folder_however_it_ends(
    stack: Stack, ending: signal.Signals, tmp_path: Path
) -> None:
    lines = tmp_path / "stack.env"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    up = subprocess.Popen(
        [sys.executable, "-m", "tests.stack", "up", "--env-file", str(lines)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: lines.exists() and len(lines.read_text().splitlines()) == 8, limit=timedelta(seconds=150))
        assert lines.stat().st_mode & 0o777 == 0o600
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines.read_text().splitlines())
        names = ("STORES_KAFKA_BOOTSTRAP", "STORES_OPENSEARCH_URL", "STORES_S3_ENDPOINT")
        ports = [int(exports[name].rpartition(":")[2]) for name in names]
        assert len(list(temporary.iterdir())) == 4
    finally:
        up.send_signal(ending)
        up.communicate(timeout=60)

    wait_until(lambda: not list(temporary.iterdir()))
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
    if ending == signal.SIGINT:
        assert up.returncode == 0
        assert not lines.exists()
