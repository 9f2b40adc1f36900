"""`docferry init`: from a database to a docferry.toml."""

from __future__ import annotations

from pathlib import Path

import click

from docferry.cli.frame import Session, define
from docferry.errors import ConfigError, DocferryError
from docferry.outputs import writing

__all__ = ["command"]


@define("init", config=False)
@click.option(
    "--dsn",
    required=True,
    envvar="DOCFERRY_SOURCE_DSN",
    help="The database to look at, such as postgresql://app@127.0.0.1:5432/shop. A password is used, not written down.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="docferry.toml",
    help="The file to write; - for standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
def command(session: Session, dsn: str, output: Path, force: bool) -> None:
    """Look at a database and write a docferry.toml for its tables with documents.

    Tables with columns of type xml, json or jsonb become mirrors. Text columns whose first values are all XML or JSON
    are put in as comments, and so is a table that cannot be mirrored yet, with the remedy. Nothing is changed in the
    database.
    """
    from click.core import ParameterSource

    from docferry.capture.inspect import inspect_documents
    from docferry.config.dsn import without_password
    from docferry.operate.init import propose

    to_stdout = str(output) == "-"
    if output.exists() and not force and not to_stdout:
        raise ConfigError(f"{output} is there already", remedy="Give --force to overwrite it, or another --output.")
    source = click.get_current_context().get_parameter_source("dsn")
    if without_password(dsn) != dsn and source is ParameterSource.COMMANDLINE:
        session.warn_of_secret("give the connection string in DOCFERRY_SOURCE_DSN, or the password in ~/.pgpass.")
    findings = inspect_documents(dsn)
    if not findings:
        raise DocferryError(
            "no table with document columns was found",
            remedy="Check that --dsn names the right database, and that the role may read its tables.",
        )
    proposal = propose(dsn, findings)
    if not to_stdout:
        _write(output, proposal.text, force=force)
    document = {
        "path": None if to_stdout else output,
        "mirrored": proposal.mirrored,
        "commented": proposal.commented,
        "text": proposal.text,
    }
    session.answer(document, proposal.text.rstrip("\n") if to_stdout else f"Wrote {output}.")
    session.note(f"Tables mirrored: {', '.join(proposal.mirrored) or 'none'}.")
    if proposal.commented:
        session.note(f"Commented out, with the reason in the file: {', '.join(proposal.commented)}.")


def _write(output: Path, text: str, *, force: bool) -> None:
    with writing(output), output.open("w" if force else "x", encoding="utf-8") as file:
        file.write(text)
