"""The filter of system calls, read by an interpreter of its own, and against the kernel's list."""

import errno
import pathlib
import re
import struct

import pytest

from offpolicy_rl.sandbox import seccomp

HEADER = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
ALLOW, DENIED, MISSING, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000


def verdict(number: int, first: int = 0, architecture: int = 0xC000003E) -> int:
  """Interprets the filter as linux/filter.h describes it."""
  data = struct.pack("=IIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
  code, value, at = list(struct.iter_unpack("=HBBI", seccomp.program())), 0, 0
  while True:
    kind, yes, no, k = code[at]
    at += 1
    if kind == 0x20:
      [value] = struct.unpack_from("=I", data, k)
    elif kind == 0x06:
      return k
    else:
      holds = {0x15: value == k, 0x25: value > k, 0x45: bool(value & k)}[kind]
      at += yes if holds else no


def test_denied_calls_fail_and_others_pass():
  assert {verdict(number) for number in seccomp.DENIED.values()} == {DENIED}
  others = set(range(463)) - set(seccomp.DENIED.values()) - {56, 435}
  assert {verdict(number) for number in others} == {ALLOW}


def test_calls_that_are_newer_do_not_exist():
  assert {
    verdict(number) for number in (435, 463, 470, 1000, 0x40000000, 0x40000039, 2**32 - 1)
  } == {MISSING}


def test_clone_makes_threads_only():
  thread = 0x3D0F00  # as glibc's pthread_create
  assert verdict(56, thread) == ALLOW
  assert verdict(56, thread | 7 << 32) == ALLOW
  assert {verdict(56, flags) for flags in (17, 0x1200011, 0x10000000, 0x4111)} == {DENIED}


def test_programs_for_another_architecture_are_killed():
  assert verdict(0, architecture=0x40000003) == KILL  # 32 bits: int 0x80 has other numbers


def test_numbers_are_the_kernels():
  if not HEADER.exists():
    pytest.skip("no kernel headers here")
  known = {n: int(k) for n, k in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}
  for name, number in seccomp.DENIED.items():
    assert known.get(name, number) == number, name
  assert len(set(seccomp.DENIED.values())) == len(seccomp.DENIED)
  assert known["clone"] == 56 and known["clone3"] == 435
