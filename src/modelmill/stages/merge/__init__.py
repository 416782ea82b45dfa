"""Merge an adapter into its unquantized base, and prove that nothing else happened.

`work` says in which order things happen: `streamed` merges tensor by tensor, `whole` what
cannot be merged so; `recomputed` and `proof` know what is compared and what is enough.
"""

import os

# A merge is thousands of short sums.  Threads that spin while they wait for each other took three
# times the CPU where others use the machine too; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from modelmill.stages.merge.work import run

__all__ = ["run"]
