"""Receive: what a scanner sends is on disk and in the journal before it is told so (P1).

Order: file made and its directory synced, data written as it arrives, data synced, journal row and deliveries
committed, then Success.
Nothing of a data set is decoded before that but a few header tags. `stage` keeps what is stored, through one `recorder`
for all associations; `closer` decides from the journal and from `traffic` when a series is complete; `start` is what
comes before anything is taken.
"""

from appliance.stages.receive.context import Inbox
from appliance.stages.receive.stage import Receiver

__all__ = ["Inbox", "Receiver"]
