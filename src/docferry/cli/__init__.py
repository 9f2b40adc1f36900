"""The command line: one module per command, loaded when it is called. This module is the entry point."""

from __future__ import annotations

import sys

from docferry.cli.frame import Ferry

__all__ = ["COMMANDS", "docferry", "main"]

# In the order of --help: the command's module in docferry.cli, and its one line there. The module's `command` holds the
# rest. The lines stand here so that `docferry --help` imports none of the modules.
COMMANDS = {
    "demo": "Show docferry at work, on this machine alone: a PostgreSQL, a DynamoDB, and rows becoming items.",
    "init": "Look at a database and write a docferry.toml for its tables with documents.",
    "plan": "Show what apply would create, and every row that would break a limit.",
    "apply": "Create publication, slot, schema docferry and target tables.",
    "run": "Mirror until stopped; populates collections first where that is due.",
    "wait": "Return when everything committed before the call is at the target.",
    "status": "Show watermark, lag, rates, dead letters, backfills, and what needs attention.",
    "verify": "Compare all rows with their items: missing, stale, different, orphaned; and mend them.",
    "backfill": "Populate a collection again from its table.",
    "trace": "Follow one row from end to end: row, what waits, dead letters, item, and what is the matter.",
    "deadletters": "List, show, replay and discard changes that could not be applied.",
    "bench": "Load a table as the article does, and measure what the source keeps up.",
    "aws": "Deploy the serverless road: Aurora, Lambda and DynamoDB by CloudFormation.",
    "destroy": "Remove what apply created.",
}

docferry = Ferry(
    "docferry",
    COMMANDS,
    help="Carries the rows of PostgreSQL tables, XML and JSON columns included, to Amazon DynamoDB, as they change.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a difference was found.",
)


def main() -> None:
    """The program `docferry`. Exits; see DESIGN section 7 for the codes."""
    sys.exit(docferry.main())
