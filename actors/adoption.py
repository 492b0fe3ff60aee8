"""When a host is lost, so that another one must take over what it held. Pure: no clock, no Ray.

    answers                          it has what it has
    its node is gone                 lost at once: nothing of it will ever answer
    calls fail, its node lives       Ray starts its process again, which recovers by itself: wait a while
    calls get no answer              frozen or cut off: lost soon, unless it is only just starting
    nobody knows its name            lost at once: it left, or belongs to another set-up of this store

Adopting is safe even when the lost host is merely slow, because the take-over event makes its writes
conflict; all that is at stake is doing again what was not recorded. From a host's last sign of life to its
take-over it is at most ``SILENCE_SECONDS + SILENCE_GRACE_SECONDS + SILENT_SECONDS`` and one inspection: under
10 s.
"""

import msgspec

from actors.host_link import Trouble

SILENT_SECONDS = 3.0
"""How long a host that gives no answer is waited for, once the first answer was missed."""

START_SECONDS = 60.0
"""The same for one that has never answered: it may only be starting, on a machine that has much to do."""

RESTART_SECONDS = 10.0
"""How long Ray gets to start the process of a host again."""

ENDED_SECONDS = 120.0
"""A lost host of a cluster that holds nothing any more is ended for good after this long."""

DEDICATED_SECONDS = 60.0
"""A dedicated host has what its execution needs, and is rather waited for than replaced."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one host. ``seconds``: for how long it has not answered; ``is_new``: it never has."""

    trouble: Trouble = ""
    seconds: float = 0.0
    node_is_gone: bool = False
    is_new: bool = False
    is_dedicated: bool = False


def is_lost(sight: Sight | None) -> bool:
    """Whether another host is to take over what this one held; None: nobody knows such a host."""
    if sight is None:
        return True
    if not sight.trouble:
        return False
    if sight.is_dedicated:
        # Ray makes it anew on another node that has what it needs, if there is one.
        return sight.seconds >= (RESTART_SECONDS if sight.node_is_gone else DEDICATED_SECONDS)
    patience = RESTART_SECONDS
    if sight.trouble == "silent":
        patience = START_SECONDS if sight.is_new else SILENT_SECONDS
    return sight.node_is_gone or sight.seconds >= patience
