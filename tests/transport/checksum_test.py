"""The checksum of messages: any change is noticed, sealed messages stay protobuf."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl.transport import checksum
from offpolicy_rl.transport import trajectory_pb2 as pb

MESSAGE = pb.LeaseRequest(session="one", sampler_id="me", credits=3, wait_seconds=1.5)


@given(st.data())
def test_any_changed_lost_or_added_byte_is_noticed(data):
  sealed = bytearray(checksum.add(MESSAGE.SerializeToString()))
  place = data.draw(st.integers(0, len(sealed) - 1))
  kind = data.draw(st.sampled_from(["flip", "drop", "double"]))
  if kind == "flip":
    sealed[place] ^= data.draw(st.integers(1, 255))
  elif kind == "drop":
    del sealed[place]
  else:
    sealed.insert(place, sealed[place])
  with pytest.raises(checksum.ChecksumError):
    checksum.verify(bytes(sealed))


@pytest.mark.parametrize("data", [b"", b"\x7d", MESSAGE.SerializeToString()])
def test_a_missing_checksum_is_noticed(data):
  with pytest.raises(checksum.ChecksumError, match="missing or wrong"):
    checksum.verify(data)


def test_sealed_bytes_are_a_message_of_the_same_type():
  parsed = pb.LeaseRequest.FromString(checksum.add(MESSAGE.SerializeToString()))
  assert (parsed.session, parsed.credits) == ("one", 3)


def test_the_server_does_not_act_on_an_unsealed_message(learner):
  with grpc.insecure_channel(learner.address) as channel:
    call = channel.unary_unary("/offpolicy_rl.Learner/Heartbeat")
    good = pb.HeartbeatRequest(session="one", sampler_id="me").SerializeToString()
    with pytest.raises(grpc.RpcError) as error:
      call(good)
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert learner.beats == []
    call(checksum.add(good))
  assert learner.beats == [("me", {}, {})]
