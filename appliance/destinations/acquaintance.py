"""What is known of a node from one session to the next: how quickly its line carries, and how late it answers."""

MOST_PATIENCE_S = 900.0  # for an answer, of a node that was late again and again
FORGETTING = 0.99  # of it after each answer in time


class Acquaintance:
    """One node's. Used by all of its sessions."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: to wait for an answer, of a node that was never late."""
        self._timeout_s = timeout_s
        self.answer_s = timeout_s  #: to wait for an answer in the next session
        self.bytes_s = 0.0  #: goodput of a session, lately; 0: not known

    def answered(self, bytes_s: float, *, late: bool) -> None:
        """One that answers late is given longer from the next session on: else all would be sent for ever."""
        self.bytes_s = bytes_s
        wanted = 2 * self.answer_s if late else self.answer_s * FORGETTING
        self.answer_s = max(self._timeout_s, min(wanted, MOST_PATIENCE_S))
