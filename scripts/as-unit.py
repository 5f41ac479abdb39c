#!/usr/bin/env python3
"""Runs a unit's ExecStart where there is no systemd: in a root directory, as the unit's account, under
what the unit takes away.

    as-unit.py --root DIR UNIT [DROP-IN...] [-- ARGUMENTS INSTEAD OF THE LAST ONE]

Applies User, Group, UMask, Environment, LimitCORE, LimitMEMLOCK (as far as this process may),
NoNewPrivileges, CapabilityBoundingSet, SystemCallFilter, MemoryDenyWriteExecute and
RestrictAddressFamilies. Directories (ProtectSystem, StateDirectory) are the caller's business. Wants
libseccomp and systemd-analyze. For tests only.
"""

import ctypes
import errno
import os
import pathlib
import resource
import shlex
import socket
import subprocess
import sys

ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # SCMP_ACT_*
EQ, MASKED_EQ = 4, 7  # SCMP_CMP_*
PROT_WRITE, PROT_EXEC = 2, 4
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def read_units(paths):
    """Settings of [Service]; each has the list of its values, in order. An empty one empties the list."""
    settings = {}
    for path in paths:
        section = ""
        for line in pathlib.Path(path).read_text().splitlines():
            line = line.strip()
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and line[0] not in "#;":
                key, _, value = line.partition("=")
                if value or key == "CapabilityBoundingSet":
                    settings.setdefault(key, []).append(value)
                else:
                    settings[key] = []
    return settings


def calls_of(word):
    """The system calls of a group such as @mount, or the word itself."""
    if not word.startswith("@"):
        return {word}
    said = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True
    ).stdout
    words = [line.strip() for line in said.splitlines()[1:]]
    return {call for word in words if word and word[0] != "#" for call in calls_of(word)}


def allowed_calls(values):
    """systemd: the first line says whether it is a list of what may be or of what may not; later lines
    add and take away."""
    allowed = {"execve", "exit", "exit_group", "getrlimit", "rt_sigreturn", "sigreturn"}
    allowed |= calls_of("@default")
    for value in values:
        takes_away = value.startswith("~")
        for word in value.removeprefix("~").split():
            allowed = allowed - calls_of(word) if takes_away else allowed | calls_of(word)
    return allowed | {"execve"}


class Seccomp:
    def __init__(self):
        self.seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self.seccomp.seccomp_init.restype = ctypes.c_void_p
        self.seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
        self.seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
        self.seccomp.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
        ]
        self.filters = []

    def filter(self, default):
        made = self.seccomp.seccomp_init(default)
        self.filters.append(made)
        return made

    def rule(self, where, action, call, *comparisons):
        number = self.seccomp.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return  # not of this architecture
        array = (Comparison * len(comparisons))(*comparisons) if comparisons else None
        outcome = self.seccomp.seccomp_rule_add_array(where, action, number, len(comparisons), array)
        if outcome not in (0, -errno.EDOM):
            raise OSError(-outcome, f"seccomp rule for {call}")

    def load(self):
        # The list of calls last: it lets no further filter be loaded.
        for made in reversed(self.filters):
            outcome = self.seccomp.seccomp_load(made)
            if outcome != 0:
                raise OSError(-outcome, "loading a seccomp filter")


def filters_of(settings):
    seccomp = Seccomp()
    if settings.get("SystemCallFilter"):
        calls = seccomp.filter(ERRNO | errno.EPERM)
        for call in sorted(allowed_calls(settings["SystemCallFilter"])):
            seccomp.rule(calls, ALLOW, call)
    refuse = ERRNO | errno.EPERM
    if settings.get("MemoryDenyWriteExecute", ["no"])[-1] == "yes":
        memory = seccomp.filter(ALLOW)
        both = PROT_WRITE | PROT_EXEC
        seccomp.rule(memory, refuse, "mmap", Comparison(2, MASKED_EQ, both, both))
        for call in ("mprotect", "pkey_mprotect"):
            seccomp.rule(memory, refuse, call, Comparison(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    families = settings.get("RestrictAddressFamilies")
    if families:
        network = seccomp.filter(ALLOW)
        kept = {int(getattr(socket, name)) for value in families for name in value.split()}
        for family in set(range(46)) - kept:
            rule = Comparison(0, EQ, family, 0)
            seccomp.rule(network, ERRNO | errno.EAFNOSUPPORT, "socket", rule)
    return seccomp


def limit(which, value):
    wanted = resource.RLIM_INFINITY if value == "infinity" else int(value)
    _, most = resource.getrlimit(which)
    try:
        resource.setrlimit(which, (wanted, wanted))
    except (ValueError, OSError):
        # This process may not raise it: as far as it goes.
        resource.setrlimit(which, (most, most))
        print(f"as-unit: the limit stays at {most} instead of {value}", file=sys.stderr)


def account(name, kind):
    """Number of an account or group in the root that we are in by now."""
    for line in pathlib.Path(f"/etc/{kind}").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2])
    raise SystemExit(f"as-unit: no {name} in /etc/{kind}")


def main(arguments):
    instead = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, instead = arguments[:at], arguments[at + 1 :]
    if len(arguments) < 3 or arguments[0] != "--root":
        raise SystemExit(__doc__)
    settings = read_units(arguments[2:])
    command = shlex.split(settings["ExecStart"][-1])
    if instead:
        command = command[:-1] + instead
    seccomp = filters_of(settings)
    libc = ctypes.CDLL(None, use_errno=True)

    os.chroot(arguments[1])
    os.chdir("/")
    os.umask(int(settings.get("UMask", ["0022"])[-1], 8))
    for name, which in (("LimitCORE", resource.RLIMIT_CORE), ("LimitMEMLOCK", resource.RLIMIT_MEMLOCK)):
        if settings.get(name):
            limit(which, settings[name][-1])
    uid = account(settings["User"][-1], "passwd")
    gid = account(settings["Group"][-1], "group")
    if settings.get("CapabilityBoundingSet") == [""]:
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if settings.get("NoNewPrivileges", ["no"])[-1] == "yes":
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
    for value in settings.get("Environment", []):
        environment.update(pair.split("=", 1) for pair in shlex.split(value))
    seccomp.load()
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
