"""Forward: a lane per destination, independent of all others, most urgent first, for ever (P7).

`desk` knows what is owed and in whose hands it is; a `courier` holds one association; `turns` lets results pass images,
inside a file, too; `gauge` measures how many associations carry more than one, `limits` knows how many were granted;
`ways` keeps those open that results left; `lane` has the first courier, and judges what a failure says of the
destination; `crew` has the others.
"""

from appliance.stages.forward.context import Outbox
from appliance.stages.forward.lane import Lane

__all__ = ["Lane", "Outbox"]
