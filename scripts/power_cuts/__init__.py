"""The power-cut proof: our receive process in a User-mode Linux guest whose power is cut, and what is left on its disk.

`guest` boots and cuts; `inside` and `inside_failing` run in the guest; `controls` are the altered parts that must lose
data; `ledger` is what the sender was promised; `disk` and `examine` look at what the cut left; `cuts`, `replay` (with
`write_log`) and `failing` are the three kinds of `trial`; `plan` carries them out, `report` says what came of them.
"""


class RigError(Exception):
    """The rig cannot run here, or broke down: nothing is proved. The text says what to do."""
