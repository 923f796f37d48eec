"""Two hosts on this machine: Linux namespaces with a network, a name and processes each, joined by a cable (veth).

They have no names outside, and end with the pipe to their first process, also when the tests are killed.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ADDRESSES = {"one": "10.1.0.1", "two": "10.1.0.2"}


class Host:
    """A host with a directory. Its first process waits for the end of its input; all others end with it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir()
        words = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "sh", "-c", "echo; exec cat"]
        self._holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout and self._holder.stdout.readline(), "it did not start"
        self.pid = children(self._holder.pid)[0]
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *words: str) -> list[str]:
        """A command that runs on this host, in its directory."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid"]
        return [*enter, "env", f"--chdir={self.directory}", *words]

    def run(self, *words: str) -> None:
        subprocess.run(self.command(*words), check=True, capture_output=True)

    def connect(self, known: Mapping[str, str]) -> None:
        """Turn the network on; `known` are the addresses that this host knows by name."""
        file = self.directory.with_suffix(".hosts")
        file.write_text("".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **known}.items()))
        self.run("mount", "--bind", str(file), "/etc/hosts")
        self.run("ip", "address", "add", f"{ADDRESSES[self.name]}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def processes(self, variable: bytes = b"") -> list[int]:
        """The processes of Python here, by process id outside; those whose environment has `variable`."""
        network = Path(f"/proc/{self.pid}/ns/net").readlink()
        pids = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_here = (directory / "ns/net").readlink() == network
                variables = (directory / "environ").read_bytes().split(b"\0")
                if is_here and b"python" in (directory / "cmdline").read_bytes().split(b"\0")[0]:
                    pids += [int(directory.name)] if not variable or variable in variables else []
        return sorted(pids)

    def close(self) -> None:
        self._holder.communicate()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined by a cable that is not yet connected."""
    hosts: list[Host] = []
    try:
        for name in ADDRESSES:
            hosts.append(Host(name, directory / name))
        ends = [["eth0", "netns", str(host.pid)] for host in hosts]
        words = ["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]]
        subprocess.run(words, check=True, capture_output=True)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.close()
