"""Who is let in: TLS, client certificates, token, health checking, and what is said to the rest."""

import logging
import pathlib
import shutil
import subprocess
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.transport import (
  checksum,
  client,
  diagnosis,
  interceptors,
  protocol,
  receiver,
  security,
  server,
)
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from tests.conftest import ROOT
from tests.transport.learners import LAYOUT, Learner, answer, ticket

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
MAKE = str(ROOT / "launch" / "make_certs.sh")
OTHER_TOKEN = "another-token-of-good-length"


@pytest.fixture(scope="session")
def certs(tmp_path_factory) -> pathlib.Path:
  """What launch/make_certs.sh makes, a foreign authority's, and what no good one would make."""
  folder = tmp_path_factory.mktemp("certs")
  for name in (folder, folder / "foreign"):
    subprocess.run([MAKE, str(name), "learner.example"], check=True, capture_output=True)
  extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth"
  (folder / "ext").write_text(extensions)
  for arguments in (
    "req -new -key server.key -subj /CN=late -out late.csr",
    "x509 -req -in late.csr -days -1 -CA ca.pem -CAkey ca.key -set_serial 7 -extfile ext "
    "-out expired.pem",
    "ec -in server.key -aes128 -passout pass:secret -out locked.key",
  ):
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
  (folder / "other_token").write_text(OTHER_TOKEN)
  (folder / "nonsense").write_text("not PEM\n")
  return folder


def credentials(certs: pathlib.Path, **files: str | None) -> security.Credentials:
  """Credentials with files of `certs`; server_name is taken as it is."""
  paths = {k: v if k == "server_name" or v is None else str(certs / v) for k, v in files.items()}
  return security.Credentials(**paths)


SERVER = {"cert": "server.pem", "key": "server.key"}
CLIENT = {"cert": "client.pem", "key": "client.key", "ca": "ca.pem"}
# what the learner is given -> what a good sampler is given
PROTECTIONS = {
  "TLS": (SERVER, {"ca": "ca.pem"}),
  "TLS and token": (SERVER | {"token_file": "token"}, {"ca": "ca.pem", "token_file": "token"}),
  "client certificates": (SERVER | {"ca": "ca.pem"}, CLIENT),
  "everything": (
    SERVER | {"ca": "ca.pem", "token_file": "token"},
    CLIENT | {"token_file": "token"},
  ),
  "token on loopback": ({"token_file": "token"}, {"token_file": "token"}),
}


def work(learner: Learner, own: security.Credentials, name: str, patience: float = 20.0) -> None:
  """A whole round of a sampler that has these credentials."""
  learner.book.add([ticket(name)])
  wire = client.LearnerClient(learner.address, "me", reconnect_seconds=patience, credentials=own)
  try:
    wire.hello()
    assert [t.ticket_id for t in wire.lease(1)] == [name]
    assert wire.pull_weights(0, 0, receiver.Receiver(LAYOUT))[0] == 0
    assert wire.push([answer(name)])[0].status is types.PushStatus.ACCEPTED
    wire.heartbeat({"tokens_per_second": 1.0}, {})
  finally:
    wire.close()


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_sampler_with_the_right_credentials_works(certs, name):
  theirs, ours = PROTECTIONS[name]
  security.check_learner(credentials(certs, **theirs))
  security.check_sampler(credentials(certs, **ours))
  learner = Learner(credentials=credentials(certs, **theirs))
  work(learner, credentials(certs, **ours), "a")
  learner.stop()


# the learner's protection, a bad sampler's files, what that sampler is told
REFUSALS = {
  "no token": ("TLS and token", {"ca": "ca.pem"}, "authorization: missing, expected the learner's"),
  "wrong token": (
    "everything",
    CLIENT | {"token_file": "other_token"},
    "authorization: got another token than the learner's",
  ),
  "wrong token without TLS": (
    "token on loopback",
    {"token_file": "other_token"},
    "authorization: got another token",
  ),
  "no client certificate": (
    "everything",
    {"ca": "ca.pem", "token_file": "token"},
    "--tls_client_ca",
  ),
  "foreign client certificate": (
    "client certificates",
    {"cert": "foreign/client.pem", "key": "foreign/client.key", "ca": "ca.pem"},
    "signed by another authority",
  ),
  "expired client certificate": (
    "client certificates",
    {"cert": "expired.pem", "key": "server.key", "ca": "ca.pem"},
    "expired",
  ),
  "plain text on a TLS port": ("TLS", {}, "the learner speaks TLS; give the sampler --tls_ca"),
  "TLS on a plain port": (
    "token on loopback",
    {"ca": "ca.pem", "token_file": "token"},
    "the learner does not speak TLS",
  ),
  "foreign learner": ("TLS", {"ca": "foreign/ca.pem"}, "the learner's certificate is not accepted"),
  "another learner's name": (
    "TLS",
    {"ca": "ca.pem", "server_name": "evil.example"},
    "Hostname mismatch, certificate is not valid for 'evil.example'",
  ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_sampler_with_wrong_credentials_is_refused_and_disturbs_nobody(certs, name, caplog):
  caplog.set_level(logging.WARNING)
  protection, bad, expected = REFUSALS[name]
  theirs, ours = PROTECTIONS[protection]
  learner, good = Learner(credentials=credentials(certs, **theirs)), credentials(certs, **ours)
  work(learner, good, "before")
  for _ in range(2):
    wire = client.LearnerClient(
      learner.address, "bad", reconnect_seconds=20, credentials=credentials(certs, **bad)
    )
    with pytest.raises(client.Refused, match=expected):
      wire.hello()
    wire.close()
  work(learner, good, "after")
  assert len(learner.book.take(["before", "after"], timeout=0)) == 2
  assert learner.book.audit()["added"] == 2
  learner.stop()
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == ("token" in name)  # once; refused handshakes are logged by gRPC itself
  assert OTHER_TOKEN not in caplog.text


@pytest.mark.parametrize("key", ["gone.key", "ca.key"])
def test_files_that_change_meanwhile_do_not_end_a_sampler_that_waits(certs, key):
  """Its channel has read them at the start; someone may be replacing them just now."""
  given = credentials(certs, **CLIENT | {"key": key})
  assert diagnosis.lasting_problem("127.0.0.1:1", given) is None
  assert diagnosis.lasting_problem("127.0.0.1:1", credentials(certs, ca=key)) is None


def test_an_expired_learner_is_refused_by_its_samplers(certs):
  theirs = credentials(certs, cert="expired.pem", key="server.key")
  with pytest.raises(security.CredentialsError, match="--tls_cert: .*this one has expired"):
    security.check_learner(theirs)
  learner = Learner(credentials=theirs)  # expired while it ran
  with pytest.raises(client.Refused, match="certificate has expired"):
    work(learner, credentials(certs, ca="ca.pem"), "a")
  learner.stop()


WRONG_FILES = {
  "no such file": (SERVER | {"cert": "none.pem"}, r"--tls_cert: got '.*none.pem', expected a file"),
  "not PEM": (SERVER | {"cert": "nonsense"}, "--tls_cert: got .*expected certificates in PEM"),
  "key of another": (SERVER | {"key": "client.key"}, "--tls_key: .*expected the private key of"),
  "encrypted key": (SERVER | {"key": "locked.key"}, "--tls_key: .*that is not encrypted"),
  "key not PEM": (SERVER | {"key": "nonsense"}, "--tls_key: .*expected a private key in PEM"),
  "a sampler's": (
    {"cert": "client.pem", "key": "client.key"},
    r"--tls_cert: .*for a learner \(serverAuth\)",
  ),
  "no key": ({"cert": "server.pem"}, "--tls_key: missing, expected because --tls_cert is given"),
  "no certificate": ({"key": "server.key"}, "--tls_cert: missing, expected because --tls_key"),
  "only an authority": ({"ca": "ca.pem"}, "--tls_cert: missing, expected because --tls_client_ca"),
  "a host as authority": (SERVER | {"ca": "client.pem"}, "--tls_client_ca: .*of an authority"),
  "a folder": ({"token_file": "foreign"}, "--token_file: got .*expected a file that can be read"),
  "a short token": (
    {"token_file": "short"},
    "--token_file: got 5 bytes .*expected one token of 16",
  ),
  "two tokens": ({"token_file": "nonsense"}, "--token_file: got 7 bytes"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_files_of_no_use_are_refused_before_anything_starts(certs, name):
  files, expected = WRONG_FILES[name]
  (certs / "short").write_text("12345\n")
  with pytest.raises(security.CredentialsError, match=expected):
    security.check_learner(credentials(certs, **files))


def test_a_sampler_that_shows_a_certificate_needs_an_authority(certs):
  with pytest.raises(security.CredentialsError, match="--tls_ca: missing"):
    security.check_sampler(credentials(certs, cert="client.pem", key="client.key"))


def test_secrets_that_everybody_can_read_are_warned_about(certs, caplog):
  token = certs / "open_token"
  token.write_text("secret-0123456789abcdef\n")
  token.chmod(0o644)
  security.check_learner(security.Credentials(token_file=str(token)))
  assert f"every user of this machine can read {token}" in caplog.text
  assert "secret-" not in caplog.text


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:5", "[::1]:0", "127.8.8.8:1"])
def test_loopback_needs_no_permission(listen):
  security.check_listen_address(listen)
  assert security.describe(security.NONE, listen) == "loopback only, no credentials"


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:5", "learner.example:5", ":5"])
def test_other_addresses_need_protection_or_insecure(listen):
  with pytest.raises(ValueError, match="--listen: got .* or add --insecure"):
    security.check_listen_address(listen)
  security.check_listen_address(listen, insecure=True)
  assert security.describe(security.NONE, listen) == "NOT ENCRYPTED, no credentials"


@pytest.mark.parametrize(
  ("given", "missing"),
  [
    (security.Credentials(), "add --tls_cert and --tls_key, and --token_file or --tls_client_ca;"),
    (security.Credentials(token_file="t"), "add --tls_cert and --tls_key;"),
    (security.Credentials(cert="c", key="k"), "add --token_file or --tls_client_ca;"),
    (security.Credentials(cert="c", key="k", token_file="t"), None),
    (security.Credentials(cert="c", key="k", ca="a"), None),
  ],
)
def test_beyond_loopback_tls_and_a_way_to_know_samplers_are_needed(given, missing):
  if missing is None:
    security.check_listen_address("0.0.0.0:1", given)
    assert security.describe(given, "0.0.0.0:1").startswith("TLS, ")
    return
  with pytest.raises(security.CredentialsError) as error:
    security.check_listen_address("0.0.0.0:1", given)
  assert missing in str(error.value)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["learner", "--listen=0.0.0.0:0"], "--listen: got '0.0.0.0:0', expected a loopback address"),
    (["local", "--listen=0.0.0.0:0"], "--listen: got '0.0.0.0:0', expected a loopback address"),
    (["learner", "--tls_cert=/none.pem"], "--tls_key: missing"),
    (["learner", "--token_file=/none"], "--token_file: got '/none', expected a file"),
  ],
)
def test_the_command_line_refuses_wrong_protection(tmp_path, arguments, message, capsys):
  run_dir = tmp_path / "run"
  assert main.main([*arguments, "--config=configs/test.py", f"--run_dir={run_dir}"]) == 2
  assert message in capsys.readouterr().err
  assert not run_dir.exists()


def test_the_command_line_of_a_sampler_refuses_wrong_protection(capsys):
  assert main.main(["sampler", "--learner=127.0.0.1:1", "--tls_ca=/none.pem"]) == 2
  assert "--tls_ca: got '/none.pem', expected a file" in capsys.readouterr().err


def test_make_certs_keeps_what_is_there(certs):
  done = subprocess.run([MAKE, str(certs)], capture_output=True, text=True)
  assert done.returncode == 1 and "exists; remove it" in done.stderr
  assert (certs / "server.key").stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- health, reflection, bounds


def test_probes_need_no_token_but_everything_else_does(certs):
  learner = Learner(credentials=credentials(certs, token_file="token"))
  with grpc.insecure_channel(learner.address) as channel:
    probe = health_pb2_grpc.HealthStub(channel)
    for name in ("", protocol.SERVICE):
      reply = probe.Check(health_pb2.HealthCheckRequest(service=name))
      assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
      next(probe.Watch(health_pb2.HealthCheckRequest()))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stub = rpc.LearnerStub(checksum.Channel(channel))
    request = pb.LeaseRequest(session="one", sampler_id="me")
    for call in (stub.Lease, stub.Hello, stub.Leave, lambda r: next(stub.PullWeights(r))):
      with pytest.raises(grpc.RpcError) as error:
        call(request)
      assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    learner.server.say_not_serving()
    reply = probe.Check(health_pb2.HealthCheckRequest(service=protocol.SERVICE))
    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
  learner.stop()


@pytest.mark.parametrize("reflection", [True, False])
def test_services_are_described_on_request_only(reflection):
  learner = Learner(reflection=reflection)
  ask = reflection_pb2.ServerReflectionRequest(list_services="")
  with grpc.insecure_channel(learner.address) as channel:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    if reflection:
      reply = next(stub.ServerReflectionInfo(iter([ask])))
      names = {service.name for service in reply.list_services_response.service}
      assert {protocol.SERVICE, "grpc.health.v1.Health"} <= names
    else:
      with pytest.raises(grpc.RpcError) as error:
        next(stub.ServerReflectionInfo(iter([ask])))
      assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
  learner.stop()


def test_notices_are_given_once_and_their_memory_is_bounded(caplog):
  notices = interceptors.RefusalLog()
  for port in range(5):
    notices.warn(f"ipv4:10.0.0.1:{port}", "no token")
  notices.warn("ipv4:10.0.0.2:1", "no token")
  notices.warn("ipv4:10.0.0.1:1", "something else")
  assert len(caplog.records) == 3
  for i in range(2000):
    notices.warn(f"ipv6:[::{i:x}]:1", "no token")
  assert len(notices._seen) == 1024


def test_calls_beyond_the_places_are_refused_and_tried_again():
  learner, places = Learner(max_samplers=1), 5 + server.MAX_WATCHERS
  with grpc.insecure_channel(learner.address) as channel:
    stub = rpc.LearnerStub(checksum.Channel(channel))
    request = pb.LeaseRequest(session="one", sampler_id="slow", credits=1, wait_seconds=3)
    waiting = [stub.Lease.future(request) for _ in range(places)]
    time.sleep(1)  # all have arrived by now; a call of ours must not be in their way
    with pytest.raises(grpc.RpcError) as error:
      stub.Hello(pb.HelloRequest(protocol=protocol.PROTOCOL, sampler_id="me"))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    wire = client.LearnerClient(learner.address, "me", reconnect_seconds=20)
    wire.hello()  # waits for a place
    wire.close()
    assert all(call.exception() is None for call in waiting)
  learner.stop()


def test_an_unsealed_message_gets_no_answer_without_the_token(certs):
  """Whoever does not know the token learns nothing about the messages."""
  learner = Learner(credentials=credentials(certs, token_file="token"))
  with grpc.insecure_channel(learner.address) as channel:
    with pytest.raises(grpc.RpcError) as error:
      channel.unary_unary(f"/{protocol.SERVICE}/Lease")(b"\x0a\xff")
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
  learner.stop()
