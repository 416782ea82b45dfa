"""Merge an adapter into its unquantized base, and prove that nothing else happened.

`work` says in which order things happen: `streamed` merges tensor by tensor, `whole` what
cannot be merged so; `recomputed` and `proof` know what is compared and what is enough.
"""

import os

# All are read when libraries are loaded, so they are set before anything is imported.
# A merge is thousands of short sums: threads that spin while they wait for each other took three
# times the CPU where others use the machine too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Large blocks come and go; in pages of 2 MiB that costs half the CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# A merge compiles nothing; bitsandbytes, which PEFT imports, else loads the compiler as well.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from modelmill.stages.merge.work import run

__all__ = ["run"]
