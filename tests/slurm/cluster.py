"""A real Slurm of two nodes on this machine, in a folder of its own. It ends only the daemons that it has started.

Needs root, Debian's ``slurm-wlm`` and ``munge``: ``make test-slurm`` installs them.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIG = """
ClusterName=vtlvlm
SlurmctldHost=HOST(127.0.0.1)
SlurmctldPort=PORT0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=FOLDER/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=FOLDER/ctld
SlurmdSpoolDir=FOLDER/%n
SlurmctldLogFile=FOLDER/log/ctld.log
SlurmdLogFile=FOLDER/log/%n.log
SlurmctldPidFile=FOLDER/ctld.pid
SlurmdPidFile=FOLDER/%n.pid
JobRequeue=1
ReturnToService=1
KillWait=20
MinJobAge=7200
SlurmdTimeout=600
MessageTimeout=60
MpiDefault=none
NODES
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName=NAME NodeHostname=HOST NodeAddr=127.0.0.1 Port=PORT CPUs=2 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")


def missing() -> list[str]:
    """Programs of Slurm that this machine lacks."""
    return [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]


class Cluster:
    """The running Slurm.

    Args:
        folder: For its configuration, its state and its logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def start(self) -> None:
        """Start munged, the controller and both nodes, and wait until the nodes are idle."""
        (self.folder / "log").mkdir(parents=True)
        (self.folder / "ctld").mkdir()
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        ports = [free_port() for _ in range(3)]
        nodes = "\n".join(NODE.replace("NAME", f"n{n}").replace("PORT", str(ports[n])) for n in (1, 2))
        text = CONFIG.replace("NODES", nodes).replace("FOLDER", str(self.folder)).replace("HOST", host).replace("PORT0", str(ports[0]))
        (self.folder / "slurm.conf").write_text(text)
        place = [f"--{name}={self.folder / file}" for name, file in MUNGE.items()]
        self._daemon("munged", "--foreground", "--force", *place)
        wait(lambda: (self.folder / "munge.socket").exists(), 10, "munged")
        self._daemon("slurmctld", "-D", "-i", "-f", self.folder / "slurm.conf")
        for name in ("n1", "n2"):
            (self.folder / name).mkdir()
            self._daemon("slurmd", "-D", "-N", name, "-f", self.folder / "slurm.conf")
        wait(lambda: self.states() == ["idle", "idle"], 60, "the nodes")

    def _daemon(self, *words: object) -> None:
        log = (self.folder / "log" / f"{words[0]}-{len(self.daemons)}.txt").open("wb")
        self.daemons.append(subprocess.Popen([str(w) for w in words], env=self.environment, stdout=log, stderr=log, start_new_session=True))

    def stop(self) -> None:
        """Cancel all jobs, and end the daemons in reverse order."""
        with suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired, TimeoutError):
            self("scancel", "--state=PENDING", "--me")
            self("scancel", "--signal=KILL", "--full", "--me")
            self("scancel", "--me")
            wait(lambda: not self("squeue", "--noheader").strip(), 60, "the jobs to end")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *words: object, **more: str) -> str:
        """What a command of Slurm prints, with more variables in its environment."""
        command, environment = [str(word) for word in words], {**self.environment, **more}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def states(self) -> list[str]:
        """The states of both nodes, such as ``idle``."""
        try:
            return self("sinfo", "--Node", "--noheader", "--format=%t").split()
        except subprocess.CalledProcessError:
            return []

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: ``JobState``, ``Restarts`` and so on."""
        words = self("scontrol", "show", "job", number, "--oneliner").split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}


MUNGE = {
    "key-file": "munge.key",
    "socket": "munge.socket",
    "pid-file": "munge.pid",
    "log-file": "log/munged.log",
    "seed-file": "munge.seed",
}


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(ready: Callable[[], bool], seconds: float, what: str, every: float = 0.2) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: It does not within so many seconds.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster that is stopped at the end, whatever happens."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
