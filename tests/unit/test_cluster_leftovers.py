"""What `make cluster-down` says about the machine it leaves, where no cluster has been."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "k8s" / "dev" / "leftovers.sh"


def leftovers(state: Path) -> subprocess.CompletedProcess[str]:
    """Run the check for a cluster whose state would be in the folder."""
    # A network of its own, for the machine may run a cluster.
    environment = {
        **os.environ,
        "MODELMILL_CLUSTER": str(state),
        "MODELMILL_CLUSTER_NETWORK": "10.251",
    }
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)


def test_leftovers_without_cluster(tmp_path: Path) -> None:
    """A machine without a cluster has nothing left of one."""
    found = leftovers(tmp_path / "cluster")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_leftovers_of_a_state_folder(tmp_path: Path) -> None:
    """A folder that is left is named, and fails the check."""
    found = leftovers(tmp_path)
    assert (found.returncode, found.stdout) == (1, f"folder {tmp_path}\n")
