"""Hosts on one machine: each has network, mounts, processes and a name of its own (namespaces).

They hang on a bridge that leads nowhere else. A host is the child of who made it and everything in
it ends with it, so nothing outlives the script that runs them, however that ends. Needs root.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOM = Path("/mnt/cluster")  # where the script's folder lies for all of them
SHARED = Path("/srv")  # the storage that the hosts share
BRIDGE = "bridge0"
DESK = ROOM / "desk"  # home of who types the commands
USER = "flywheel"
SSH = "/run/flywheel"
SPACES = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child")

SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
UseDNS no
PidFile none
LogLevel ERROR
MaxStartups 100
"""


def run(*command: str | Path) -> None:
    """Raises RuntimeError that holds the command and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(map(str, command))}: {said}")


def what_is_missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    tools = ("unshare", "setpriv", "mount", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
    if absent := [tool for tool in tools if not shutil.which(tool, path=search_path())]:
        return f"{', '.join(absent)} not found; install openssh-server, rsync, iproute2, util-linux"
    probe = f"ip link add {BRIDGE} type bridge && mount -t tmpfs tmpfs /mnt"
    tried = ["unshare", *SPACES, "sh", "-c", probe]
    done = subprocess.run(
        tried, capture_output=True, text=True, env={"PATH": search_path()}, check=False
    )
    if done.returncode:
        return f"the kernel refuses namespaces: {done.stderr.strip()}"
    return None


def search_path() -> str:
    return (
        f"{Path(sys.prefix) / 'bin'}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    )


def cover(folders: Sequence[Path], keep: Sequence[Path]) -> None:
    """Empty folders of memory over `folders`; what is in `keep` stays reachable by its path."""
    held = Path("/mnt/keep")
    for index, path in enumerate(keep):
        (held / str(index)).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", path, held / str(index))
    for folder in folders:
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", folder)
    for index, path in enumerate(keep):
        if not path.exists():
            path.mkdir(parents=True)
            run("mount", "--bind", held / str(index), path)


def prepare_desk(room: Path, repository: Path, address: str) -> None:
    """Called in fresh namespaces: the bridge, the folder `room` at ROOM, and a home at DESK."""
    run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    ROOM.mkdir()
    run("mount", "--bind", room, ROOM)
    cover([Path("/tmp"), Path("/run")], [repository, Path(sys.prefix), Path(sys.base_prefix)])
    DESK.mkdir()
    (ROOM / "desk-passwd").write_text(f"root:x:0:0::{DESK}:/bin/bash\n")
    run("mount", "--bind", ROOM / "desk-passwd", "/etc/passwd")  # ssh looks for its ~ there
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{address}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def write_room(names: Mapping[str, str], constraints: Path) -> None:
    """Keys, accounts, names and settings that all hosts share. `names`: host name -> address."""
    (ROOM / "shared").mkdir()
    for key in ("host_key", "client_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ROOM / key)
    (ROOM / "sshd_config").write_text(SSHD.format(folder=SSH))
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
    files = {
        "hosts": "\n".join(lines),
        # The interpreter may lie in root's home, so the cluster's user has root's number.
        "passwd": f"{USER}:x:0:0::/home/{USER}:/bin/bash\n"
        "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin",
        "resolv.conf": "# no resolver: nothing leaves",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files",
    }
    for name, text in files.items():
        (ROOM / name).write_text(text + "\n")
    shutil.copy(constraints, ROOM / "constraints.txt")


@dataclass(frozen=True)
class Host:
    """A living host; `init` is the process that its life hangs on."""

    name: str
    address: str
    init: subprocess.Popen[str]

    def cut_power(self) -> None:
        """Every process in it dies at once and its network is gone, without a goodbye."""
        self.init.kill()
        self.init.wait()

    def inside(self, path: str) -> Path:
        """Where `path` of the host can be read from outside, while it lives."""
        pid = self.init.pid
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return Path(f"/proc/{first}/root{path}")


def start_host(
    name: str, addresses: Sequence[str], hide: Path, command: Sequence[str] = ()
) -> Host:
    """A host with sshd, where `hide` is an empty folder; or one that runs `command` on port 80.

    It takes connections when this returns. Raises RuntimeError with the host's own words.
    """
    init = subprocess.Popen(
        ["unshare", *SPACES, sys.executable, __file__, name, *addresses]
        + (["--run", *command] if command else ["--hide", str(hide)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert init.stdin is not None
    assert init.stdout is not None
    _expect(init, "in namespaces")
    run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "eth0", "netns", str(init.pid))
    run("ip", "link", "set", f"to-{name}", "master", BRIDGE, "up")
    init.stdin.write("go\n")
    init.stdin.flush()
    _expect(init, "ready")
    return Host(name, addresses[0], init)


def _expect(init: subprocess.Popen[str], word: str) -> None:
    assert init.stdout is not None
    line = init.stdout.readline()
    if line.strip() != word:
        init.kill()
        raise RuntimeError(f"a host did not start: {line}{init.stdout.read()}")


# ------------------------------------------------------------------------- inside of a host


def main() -> None:
    """The first process of a host: prepares it, starts what runs there, buries the dead."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--hide", type=Path)
    parser.add_argument("--run", nargs=argparse.REMAINDER, dest="command")
    options = parser.parse_args()
    socket.sethostname(options.name)
    print("in namespaces", flush=True)
    sys.stdin.readline()
    _network(options.addresses)
    _mounts(options.name, options.hide)
    sshd = [str(shutil.which("sshd", path=search_path())), "-D", "-e", "-f", f"{SSH}/sshd_config"]
    with Path("/home/log").open("w") as log:
        child = subprocess.Popen(
            options.command or sshd,
            env={"PATH": search_path(), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    _wait_for_port(options.addresses[-1], 80 if options.command else 22)
    print("ready", flush=True)
    while True:
        pid, status = os.wait()  # orphans come to us
        if pid == child.pid:
            sys.exit(f"what {options.name} ran has ended with status {status}")


def _network(addresses: Sequence[str]) -> None:
    run("ip", "link", "set", "lo", "up")
    for address in addresses:
        run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")


def _mounts(name: str, hide: Path | None) -> None:
    home = ROOM / name / USER
    home.mkdir(parents=True)
    (home / ".bashrc").write_text("# as an account has it from the start\n")
    (home / "venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (home / "venv" / part).symlink_to(Path(sys.prefix) / part)
    shutil.copy(ROOM / "constraints.txt", home / "venv")
    run("mount", "--bind", ROOM / name, "/home")
    run("mount", "--bind", ROOM / "shared", SHARED)
    for file in ("hosts", "passwd", "resolv.conf", "nsswitch.conf"):
        place = Path("/etc", file).resolve()
        if place.exists():
            run("mount", "--bind", ROOM / file, place)
    private = [Path("/tmp"), Path("/run"), Path("/dev/shm")]
    cover([*private, *([hide] if hide else [])], [Path(sys.prefix), Path(sys.base_prefix)])
    Path("/run/sshd").mkdir(mode=0o755)
    Path(SSH).mkdir()
    for file in ("sshd_config", "host_key", "client_key.pub"):
        shutil.copy(ROOM / file, SSH)
    if hide:
        run("mount", "-t", "tmpfs", "tmpfs", "/mnt")  # the others' homes and keys


def _wait_for_port(address: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"nothing listens at {address}:{port}")


if __name__ == "__main__":
    main()
