"""`heliograph serve` with rules of scaling that a test can wait for: seconds instead of a minute."""

from __future__ import annotations

from actors import scaling
from gateway.serve import main

OUT_SECONDS = 1.0
IN_SECONDS = 3.0

if __name__ == "__main__":
    scaling.OUT_SECONDS = OUT_SECONDS
    scaling.IN_SECONDS = IN_SECONDS
    main()
