"""`docferry aws`: the serverless road, Aurora and Lambda, by CloudFormation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from docferry.aws.clients import Clients
from docferry.aws.deploy import Deployment, parse_parameters, secret_parameters
from docferry.aws.package import Architecture, build
from docferry.cli.aws_stage import Source, apply, event_printer, explaining_interruption, report
from docferry.cli.frame import CommandGroup, Session, define
from docferry.outputs import writing

__all__ = ["command"]

_PARAMETERS = "DOCFERRY_AWS_DEPLOY_PARAMETER"


def _key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--key",
        "keys",
        multiple=True,
        metavar="TABLE=NAME:TYPE",
        help="Key attributes of a mirror's table, such as orders=id:N or lines=order_id:N,line:N; types S, N, B. "
        "Without it the database is asked.",
    )(function)


def _package_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--without-dependencies",
        is_flag=True,
        help="docferry alone, for emulators that run functions in its environment.",
    )(function)
    return click.option(
        "--architecture",
        type=click.Choice(["arm64", "x86_64"]),
        default="arm64",
        help="The processors that the function runs on.",
    )(function)


def _stack_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--bucket", metavar="NAME", help="A bucket of your own for package and template."),
        click.option("--region", help="The region; default: [target] region, or us-east-2."),
        click.option("--stack", default="docferry", metavar="NAME", help="The stack's name."),
    ):
        function = option(function)
    return function


@define("template")
@_key_option
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to write it; - is standard output.")
def _template(session: Session, keys: tuple[str, ...], output: str) -> None:
    """Write the CloudFormation template for the mirrors of docferry.toml.

    It holds the article's architecture: VPC, Aurora PostgreSQL, the function, the tables, dead letters, a host with
    pgAdmin, alarms. Everything that one may want to choose is a parameter of the template. Nothing is created.

    \b
    Examples:
      docferry aws template --key orders=id:N -o docferry.yaml
      docferry aws template | cfn-lint -

    Next: `docferry aws deploy`, or CloudFormation's own tools with what `docferry aws package` built.
    """
    source = Source.read(session)
    text = source.template(keys)
    if output != "-":
        with writing(Path(output)):
            Path(output).write_text(text, encoding="utf-8")
    answer = {"template": text} if output == "-" else {"path": output, "bytes": len(text.encode())}
    session.answer(answer, text.rstrip("\n") if output == "-" else f"Wrote {output}.")


@define("package", config=False)
@_package_options
@click.option(
    "-o", "--output", default="docferry-lambda.zip", metavar="FILE", type=click.Path(dir_okay=False), help="The zip."
)
def _package(session: Session, architecture: Architecture, without_dependencies: bool, output: str) -> None:
    """Build the function's zip: docferry, and the wheels that it needs on the function's processors.

    Any machine builds the same bytes from the same versions, which are those of this environment; pip downloads the
    wheels. The function's handler is docferry.aws.handler.handler.

    \b
    Examples:
      docferry aws package
      docferry aws package --architecture x86_64 -o function.zip

    `docferry aws deploy` does this by itself.
    """
    package = build(architecture, dependencies=not without_dependencies)
    with writing(Path(output)):
        Path(output).write_bytes(package.content)
    session.answer(
        {
            "path": output,
            "bytes": len(package.content),
            "sha256": package.sha256,
            "architecture": architecture,
            "files": package.files,
        },
        f"Wrote {output}: {len(package.content):,} bytes, {package.files} files, for {architecture}.\n"
        f"SHA-256 {package.sha256}",
    )


@define("deploy")
@_stack_options
@_key_option
@_package_options
@click.option(
    "-p",
    "--parameter",
    "given",
    multiple=True,
    envvar=_PARAMETERS,
    metavar="NAME=VALUE",
    help="A parameter of the template; the others stay. The variable takes several, separated by spaces.",
)
@click.option("--no-apply", is_flag=True, help="Do not run `apply` at the end.")
def _deploy(
    session: Session,
    stack: str,
    region: str | None,
    bucket: str | None,
    keys: tuple[str, ...],
    architecture: Architecture,
    without_dependencies: bool,
    given: tuple[str, ...],
    no_apply: bool,
) -> None:
    """Create the stack, or update it, wait until it stands, and run `apply`.

    Where the database cannot be reached from here, the stack's host runs it: when it is made, and at each later
    deployment, by Systems Manager.

    Package and template go to the bucket docferry-ACCOUNT-REGION, which is created, or to --bucket. Each event of the
    stack is shown as it happens. Parameters keep their values from one deployment to the next. It can be run again at
    any time; when nothing has changed, nothing is done.

    \b
    Examples:
      docferry aws deploy --key orders=id:N -p AccessCidr=203.0.113.7/32
      docferry aws deploy -p InstanceClass=db.r7g.large

    Ctrl-C stops the waiting, not the stack. Next: `docferry status`; `docferry aws destroy` removes everything.
    """
    parameters = parse_parameters(given)
    source = Source.read(session)
    text = source.template(keys)
    in_sight = click.get_current_context().get_parameter_source("given") is ParameterSource.COMMANDLINE
    if in_sight and any(parameters.get(name) for name in secret_parameters(text)):
        session.warn_of_secret(f"give it, with all other parameters, in {_PARAMETERS}, and none by -p.")
    clients = Clients.of(source.config.target, region)
    deployment = Deployment(clients, stack, bucket=bucket, on_step=session.note, on_event=event_printer())
    package = build(architecture, dependencies=not without_dependencies)
    with explaining_interruption(session, stack, clients.region):
        done = deployment.deploy(text, package, parameters)
    applied = None if no_apply else apply(session, source, done, clients)
    session.answer(
        {
            "stack": done.stack,
            "region": done.region,
            "action": done.action,
            "steps": done.steps,
            "outputs": done.outputs,
            "applied": applied,
        },
        "\n".join(report(done, applied, asked=not no_apply)),
    )


@define("destroy", confirms=True)
@_stack_options
def _destroy(session: Session, stack: str, region: str | None, bucket: str | None) -> None:
    """Remove the stack with everything in it, and what deploy uploaded.

    It shows what would go and asks; --yes answers. Deletion protection is switched off for it. Of a cluster that the
    stack made, a final snapshot stays, and the KMS key by which it is restored. An existing cluster stays as it is, so
    run `docferry destroy` against it first.

    \b
    Example:
      docferry aws destroy --stack docferry
    """
    config = Source.read(session).config
    clients = Clients.of(config.target, region)
    deployment = Deployment(clients, stack, bucket=bucket, on_step=session.note, on_event=event_printer())
    steps = deployment.removable()
    if steps:
        session.note(f"This would be removed from {clients.region}:")
        for step in steps:
            session.note(f"  - {step}")
        session.confirm("Remove all this?")
    with explaining_interruption(session, stack, clients.region):
        done = deployment.destroy()
    session.answer(
        {"stack": stack, "region": clients.region, "steps": done, "changed": bool(done)},
        "Done." if done else f"Nothing to do: there is no stack {stack} in {clients.region}.",
    )


command = CommandGroup(
    "aws",
    commands=[_template, _package, _deploy, _destroy],
    help="The serverless road: Aurora PostgreSQL calls a Lambda function, which writes to DynamoDB.\n\nOne "
    "CloudFormation template holds it all; see docs/aws.md. Begin with `docferry aws deploy`.",
)
