"""A cluster on one machine, made of network namespaces: `python -m tests.cluster --hosts 2 [COMMAND …]` as root.

The command, a shell where there is none, runs on the first host, from which ssh and pdsh reach all others; the hosts
are gone when it ends. In that shell, to train on all of them:

    deepspeed --hostfile $HOSTFILE launch/pretrain.py --ds_config … --recipe … --data … --output …
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.cluster.lab import Lab, why_not
from tests.cluster.launching import environment_of_a_host


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2, choices=range(2, 5), help="how many (default: 2)")
    parser.add_argument("--slots", type=int, default=1, help="ranks on each, in $HOSTFILE (default: 1)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")
    arguments = parser.parse_args()
    if reason := why_not():
        print(f"error: no lab here: {reason}", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="cluster-lab-") as directory,
        Lab(arguments.hosts, Path(directory)) as lab,
    ):
        for host in lab.hosts:
            print(f"{host.name} {host.address} slots={arguments.slots}", flush=True)
        environment = environment_of_a_host(lab) | {
            "HOSTFILE": str(lab.hostfile({host.name: arguments.slots for host in lab.hosts})),
            "TERM": os.environ.get("TERM", "dumb"),
        }
        return lab.hosts[0].start(arguments.command or ["bash", "--norc"], environment).wait()


if __name__ == "__main__":
    sys.exit(main())
