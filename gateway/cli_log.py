"""`heliograph verify` and `heliograph projections`: proof that the log and the read models hold."""

from __future__ import annotations

import typer

projections = typer.Typer(no_args_is_help=True, help="Check or rebuild the read models.")


def verify() -> None:
    """Prove that the log keeps every promise."""
