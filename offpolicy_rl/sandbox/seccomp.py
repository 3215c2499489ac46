"""A filter of system calls for programs in the sandbox, as bytes for `bwrap --seccomp`.

A list of what is denied: namespaces, mounts and rights already keep a program apart; the filter
keeps it to one process, takes sockets and memory that no limit counts from it, and shows it less of
the kernel. Calls that are newer than the list don't exist. Only for x86-64.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux. Format: linux/filter.h, linux/seccomp.h,
linux/audit.h, linux/sched.h.
"""

import errno
import struct
from collections.abc import Sequence

MACHINE = "x86_64"  # as platform.machine() says
_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # calls of another calling convention have numbers from here on
_NEWEST = 462  # mseal, Linux 6.10
_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x00010000

DENIED = {
  # further processes; `clone` may make threads
  **{"fork": 57, "vfork": 58},
  # the network, and other protocols that don't ask which network: vsock reaches a virtual machine's
  # host. socketpair stays: asyncio needs it.
  "socket": 41,
  # memory and objects that no limit of the process counts
  **{"memfd_create": 319, "memfd_secret": 447, "shmget": 29, "shmat": 30, "semget": 64},
  **{"msgget": 68, "mq_open": 240, "inotify_init": 253, "inotify_init1": 294},
  # other processes
  **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
  **{"pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424},
  **{"process_madvise": 440, "process_mrelease": 448},
  # namespaces, mounts, file handles
  **{"unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161},
  **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432},
  **{"fspick": 433, "mount_setattr": 442, "statmount": 457, "listmount": 458},
  **{"name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300},
  # parts of the kernel with a history
  **{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425},
  **{"io_uring_enter": 426, "io_uring_register": 427, "keyctl": 250, "add_key": 248},
  **{"request_key": 249, "modify_ldt": 154, "personality": 135, "vmsplice": 278},
  **{"move_pages": 279, "migrate_pages": 256, "mbind": 237, "set_mempolicy": 238},
  "set_mempolicy_home_node": 450,
  # the machine
  **{"init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246},
  **{"kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "syslog": 103},
  **{"acct": 163, "quotactl": 179, "quotactl_fd": 443, "settimeofday": 164, "clock_settime": 227},
  **{"adjtimex": 159, "clock_adjtime": 305, "sethostname": 170, "setdomainname": 171},
  **{"iopl": 172, "ioperm": 173, "vhangup": 153, "uselib": 134},
}


# In a pod, what namespaces and mounts of our own would keep from a program: to make files, and to
# reach the processes of the pod, of which the runtime is one.
_DENIED_IN_PODS = {
  **{"creat": 85, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mkdir": 83},
  **{"mkdirat": 258, "mknod": 133, "mknodat": 259, "rename": 82, "renameat": 264, "renameat2": 316},
  **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "truncate": 76, "tkill": 200},
  **{"setpriority": 141, "ioprio_set": 251},
}
_OPENAT2 = 437  # its flags are out of reach
_OPENING = {"open": (2, 1), "openat": (257, 2)}  # (number, place of the flags)
_WRITING = 0o3 | 0o100 | 0o1000  # O_WRONLY, O_RDWR; O_CREAT; O_TRUNC
# The first argument is a process: has to be the program's own.
_SIGNALLING = {"kill": 62, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297}
# The same, or 0, which means itself.
_LIMITING = {"prlimit64": 302, "sched_setparam": 142, "sched_setscheduler": 144}
_LIMITING |= {"sched_setaffinity": 203, "sched_setattr": 314}
OWN_PROCESS = 0x4E574F21  # stands for the program's process id in `pod_program`


def pod_program() -> bytes:
  """The filter for a pod; every OWN_PROCESS in it has to be replaced, 4 bytes of the machine's."""
  denied, allowed = _give(_ERRNO | errno.EPERM), _give(_ALLOW)
  own = (_load(_argument(0)), *_if(_EQUAL, OWN_PROCESS, allowed))
  extra = [
    *(part for number in _DENIED_IN_PODS.values() for part in _if(_EQUAL, number, denied)),
    *_if(_EQUAL, _OPENAT2, _give(_ERRNO | errno.ENOSYS)),
  ]
  for number, place in _OPENING.values():
    opens = (_load(_argument(place)), *_if(_ANY_BIT, _WRITING, denied), allowed)
    extra += _when(number, *opens)
  for number in _SIGNALLING.values():
    extra += _when(number, *own, denied)
  for number in _LIMITING.values():
    extra += _when(number, *own, *_if(_EQUAL, 0, allowed), denied)
  return program(extra)


def program(extra: Sequence[bytes] = ()) -> bytes:
  """The filter: struct sock_filter, one after the other; `extra` has the number of the call."""
  denied = _give(_ERRNO | errno.EPERM)
  missing = _give(_ERRNO | errno.ENOSYS)
  return b"".join(
    (
      _load(_AT_ARCHITECTURE),
      *_unless(_EQUAL, _ARCHITECTURE, _give(_KILL_PROCESS)),
      _load(_AT_NUMBER),
      *_if(_GREATER, _NEWEST, missing),  # x32's are among these
      *_if(_EQUAL, _CLONE3, missing),  # its flags are out of reach; glibc then takes clone
      *(part for number in DENIED.values() for part in _if(_EQUAL, number, denied)),
      *extra,
      *_unless(_EQUAL, _CLONE, _give(_ALLOW)),
      _load(_argument(0)),
      *_unless(_ANY_BIT, _CLONE_THREAD, denied),
      _give(_ALLOW),
    )
  )


_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000  # SECCOMP_RET_*
_AT_NUMBER, _AT_ARCHITECTURE = 0, 4  # in struct seccomp_data
_EQUAL, _GREATER, _ANY_BIT = 0x15, 0x25, 0x45  # BPF_JMP | BPF_K | BPF_JEQ, JGT, JSET


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
  return struct.pack("=HBBI", code, yes, no, value)


def _load(offset: int) -> bytes:
  return _instruction(0x20, offset)  # BPF_LD | BPF_W | BPF_ABS


def _argument(place: int) -> int:
  """Where struct seccomp_data has the lower half of an argument."""
  return 16 + 8 * place


def _when(number: int, *then: bytes) -> tuple[bytes, ...]:
  """Instructions for one call, the last of which has to be a result."""
  return _instruction(_EQUAL, number, yes=0, no=len(then)), *then


def _give(result: int) -> bytes:
  return _instruction(0x06, result)  # BPF_RET | BPF_K


def _if(test: int, value: int, then: bytes) -> tuple[bytes, bytes]:
  return _instruction(test, value, yes=0, no=1), then


def _unless(test: int, value: int, then: bytes) -> tuple[bytes, bytes]:
  return _instruction(test, value, yes=1, no=0), then
