"""Puts the server's program into the wheel, and says truthfully where it runs.

REWARM_BINARY names the program, which is built before (`cargo build --release --locked`): the wheel compiles nothing. Its
platform tag follows from the program itself: the newest glibc symbol that it asks for, and its processor. REWARM_BINARY=none
makes the client alone, for any platform.

With the program come the licences of what it is made of: `notices` collects them, once, in the repository; a source
distribution has them along.
"""
from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: By ELF's `e_machine`.
PROCESSORS = {62: "x86_64", 183: "aarch64"}
#: What every manylinux platform has.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1",
             "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
DYNAMIC, VERSIONS_NEEDED = 6, 0x6FFFFFFE
MISSING = """REWARM_BINARY is not set: it names the server's program that goes into the wheel.
    In the repository:  cargo build --release --locked, then
                        REWARM_BINARY=$PWD/target/release/rewarm pip install ./clients/python
    The client alone:   REWARM_BINARY=none pip install ...
"""


#: What others' licences are called, in a source distribution and in a wheel.
NOTICES = "THIRD-PARTY.txt"
NO_NOTICES = """The licences of what the program is made of cannot be collected: clients/python/notices failed, as said above.
    It needs the repository, cargo, and the crates that `cargo build --locked` fetched.
"""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        binary = os.environ.get("REWARM_BINARY")
        if version == "editable" or binary == "none":
            return
        if self.target_name == "sdist":
            build_data["force_include"][self.notices()] = NOTICES
            return
        if not binary:
            raise SystemExit(MISSING)
        if not (os.path.isabs(binary) and os.path.isfile(binary) and os.access(binary, os.X_OK)):
            raise SystemExit(f"REWARM_BINARY={binary} is not the absolute path of a program")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform(binary)}"
        build_data["shared_scripts"] = {binary: "rewarm"}
        licences = f"rewarm-{self.metadata.version}.dist-info/licenses"
        build_data["force_include"][self.notices()] = f"{licences}/{NOTICES}"

    def notices(self) -> str:
        """The file of others' licences."""
        here = Path(self.root)
        if (here / NOTICES).exists():
            return str(here / NOTICES)
        self.folder = tempfile.TemporaryDirectory()
        made = f"{self.folder.name}/{NOTICES}"
        if subprocess.run([sys.executable, str(here / "notices"), made]).returncode:
            raise SystemExit(NO_NOTICES)
        return made


def platform(path: str) -> str:
    """The wheel platform of a program: `manylinux_2_34_x86_64` if the newest symbol that it wants is of glibc 2.34."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        raise SystemExit(f"{path} is not a 64-bit program of Linux: only those go into a wheel")
    processor = PROCESSORS.get(struct.unpack_from("<H", data, 18)[0])
    if processor is None:
        raise SystemExit(f"{path} is for a processor that wheels of ours have no name for")
    libraries, versions = needs(data)
    if strange := libraries - LIBRARIES:
        raise SystemExit(f"{path} needs {', '.join(sorted(strange))}, which not every Linux has")
    glibc = [tuple(map(int, name[6:].split("."))) for name in versions if name.startswith("GLIBC_")]
    if not glibc:
        raise SystemExit(f"{path} is not linked to glibc: only such programs go into a wheel")
    return "manylinux_{}_{}_{}".format(*max(glibc)[:2], processor)


def needs(data: bytes) -> tuple[set[str], set[str]]:
    """The shared libraries that a program names, and the versions of their symbols."""
    offset, = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link
    sections = [struct.unpack_from("<IIQQQQI", data, offset + index * size) for index in range(count)]
    libraries, versions = set(), set()
    for section in sections:
        kind, start, length, link = section[1], section[4], section[5], section[6]

        def name(at: int) -> str:
            begin = sections[link][4] + at
            return data[begin:data.index(0, begin)].decode()

        if kind == DYNAMIC:
            entries = [struct.unpack_from("<QQ", data, at) for at in range(start, start + length, 16)]
            libraries |= {name(value) for tag, value in entries if tag == 1}
        elif kind == VERSIONS_NEEDED:
            at = start
            while True:
                _, _, _, first, following = struct.unpack_from("<HHIII", data, at)
                one = at + first
                while True:
                    _, _, _, version, further = struct.unpack_from("<IHHII", data, one)
                    versions.add(name(version))
                    if not further:
                        break
                    one += further
                if not following:
                    break
                at += following
    return libraries, versions
