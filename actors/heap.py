"""What Python's collector of cycles costs a process with many things at once under way."""

import gc

COLLECT_AFTER = (20_000, 50, 100)
"""A full collection comes after a hundred million objects more, in place of 70,000: it looks through all that
is alive and stops everything meanwhile (0.1 s with 200 agent runs); and collecting less often takes a fifth
off the CPU of a run. Garbage in cycles that outlived the smaller collections stays for so long."""


def settle() -> None:
    """Call it when everything is imported: that stays for good, and no collection looks through it again.

    There are 230,000 objects of it and more, which takes a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
