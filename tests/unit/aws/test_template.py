"""The template: what must be in it, that it holds together, and that people can read it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docferry.aws.blueprint import blueprint, config_for_function, parse_keys, policy_size
from docferry.aws.deploy import secret_parameters
from docferry.aws.keys import settle_keys
from docferry.aws.template import template
from docferry.config import Config, parse
from docferry.errors import ConfigError

from ...scan.templates import CONFIGS, made

_ARTICLES_OUTPUTS = {
    "LambdaConsoleLink",
    "DynamoDBTableConsoleLink",
    "EC2InstanceConnectURI",
    "AuroraPrivateEndpointAddress",
    "AuroraPrivateEndpointPort",
    "pgAdminURL",
}


class _Loader(yaml.SafeLoader):
    """Reads short forms as CloudFormation does."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        return {name: value.split(".", 1) if suffix == "GetAtt" else value}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _short_form)


@cache
def _loaded(name: str) -> dict[str, Any]:
    document = yaml.load(made(name), Loader=_Loader)  # a SafeLoader
    assert isinstance(document, dict)
    return document


def _of_type(name: str, kind: str) -> dict[str, Any]:
    return {key: one for key, one in _loaded(name)["Resources"].items() if one["Type"] == kind}


def _config(text: str) -> Config:
    return parse(text, "docferry.toml", {})


@pytest.mark.parametrize("name", CONFIGS)
def test_cfn_lint_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(made(name))
    regions = ("us-east-1", "us-east-2", "eu-central-1")
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--regions", *regions, "--template", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_article_shows_at_the_end_is_there(name: str) -> None:
    assert _loaded(name)["Outputs"].keys() >= _ARTICLES_OUTPUTS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_configuration_makes_the_same_template(name: str) -> None:
    assert made(name) == made(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_wildcard_resource_stands_without_its_reason(name: str) -> None:
    lines = [line for line in made(name).splitlines() if re.search(r"""Resource: *\[?["']\*["']""", line)]
    assert lines
    assert [line for line in lines if not re.search(r"# reason: \w+", line)] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_policies_name_their_actions(name: str) -> None:
    wild = [line.strip() for line in made(name).splitlines() if re.search(r"^ +(- |Action: ).*\w+:\w*\*", line)]
    assert wild == ["Action: kms:*"] * 2, "the account's statement in the policies of both keys"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_suppression_says_why(name: str) -> None:
    for key, resource in _loaded(name)["Resources"].items():
        for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", []):
            assert len(skip["comment"]) > 30, key
    assert all("# " in line for line in made(name).splitlines() if "ignore_checks" in line)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_stays_readable(name: str) -> None:
    text = made(name)
    # The dashboard is JSON, links and this marker are what they are.
    long = [
        line
        for line in text.splitlines()
        if len(line) > 130 and '"type": "metric"' not in line and "https://" not in line and "Parameters: [" not in line
    ]
    assert long == []
    assert "Fn::" not in text.replace("Fn::Base64", ""), "short forms only"
    assert "@" not in re.sub(r"admin@example\.com|\[\^@.*|at sign", "", text), "no marker is left"
    assert "\t" not in text
    assert len(re.findall(r"^ +#", text, re.MULTILINE)) > 20


def test_it_leads_from_the_mirrors_to_their_tables() -> None:
    tables = {one["Properties"]["TableName"]: one for one in _of_type("composite", "AWS::DynamoDB::Table").values()}
    keys = {
        name: [
            (part["AttributeName"], part["KeyType"], definition["AttributeType"])
            for part, definition in zip(
                one["Properties"]["KeySchema"], one["Properties"]["AttributeDefinitions"], strict=True
            )
        ]
        for name, one in tables.items()
    }
    assert keys == {
        "orders": [("id", "HASH", "N")],
        "order_lines": [("order_id", "HASH", "N"), ("line", "RANGE", "S")],
        "order-lines": [("pk", "HASH", "S"), ("sort key", "RANGE", "S")],
        "docferry": [("name", "HASH", "S")],
    }
    for one in tables.values():
        properties = one["Properties"]
        assert properties["BillingMode"] == "PAY_PER_REQUEST"
        assert properties["TimeToLiveSpecification"] == {"AttributeName": "_ttl", "Enabled": True}
        assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert properties["SSESpecification"]["KMSMasterKeyId"] == {"Fn::GetAtt": ["Key", "Arn"]}


def test_the_function_may_use_exactly_the_tables() -> None:
    role = _loaded("composite")["Resources"]["FunctionRole"]["Properties"]
    (policy,) = role["Policies"]
    granted = next(s for s in policy["PolicyDocument"]["Statement"] if s["Sid"] == "WriteItems")["Resource"]
    tables = _of_type("composite", "AWS::DynamoDB::Table")
    assert granted == [{"Fn::GetAtt": [name, "Arn"]} for name in tables]


def test_asynchronous_events_are_bounded_and_end_in_the_queue() -> None:
    resources = _loaded("one")["Resources"]
    events = resources["FunctionEvents"]["Properties"]
    assert events["MaximumRetryAttempts"] == {"Ref": "MaximumRetryAttempts"}
    assert events["MaximumEventAgeInSeconds"] == {"Ref": "MaximumEventAgeInSeconds"}
    assert events["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}
    queue = resources["DeadLetterQueue"]["Properties"]
    assert queue["MessageRetentionPeriod"] == 14 * 86400
    assert queue["KmsMasterKeyId"] == {"Fn::GetAtt": ["Key", "Arn"]}
    (target,) = resources["DrainSchedule"]["Properties"]["Targets"]
    assert target["Input"] == '{"docferry": "drain"}'
    assert resources["DrainSchedule"]["Properties"]["ScheduleExpression"] == "rate(1 minute)"


def test_backfills_that_nobody_runs_are_an_alarm() -> None:
    alarm = _loaded("one")["Resources"]["BackfillsDueAlarm"]
    properties = alarm["Properties"]
    assert (properties["Namespace"], properties["MetricName"]) == ("docferry", "BackfillsDue")
    assert alarm["Condition"] == "ReadsDatabase", "who does not drain does not look"
    assert "docferry run --once" in properties["AlarmDescription"]


def test_the_database_may_invoke_the_function_and_nothing_else() -> None:
    resources = _loaded("one")["Resources"]
    assert resources["Cluster"]["Properties"]["AssociatedRoles"] == [
        {"FeatureName": "Lambda", "RoleArn": {"Fn::GetAtt": ["InvokeRole", "Arn"]}}
    ]
    (policy,) = resources["InvokeRole"]["Properties"]["Policies"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Resource"]) == (
        "lambda:InvokeFunction",
        {"Fn::GetAtt": ["Function", "Arn"]},
    )


def test_what_stays_of_the_cluster_can_be_restored() -> None:
    """A snapshot is worth nothing without the key that encrypts it."""
    resources = _loaded("one")["Resources"]
    cluster = resources["Cluster"]
    assert cluster["DeletionPolicy"] == "Snapshot"
    assert cluster["Properties"]["KmsKeyId"] == {"Fn::GetAtt": ["DatabaseKey", "Arn"]}
    key = resources["DatabaseKey"]
    # After a creation that failed there is nothing to restore.
    assert (key["DeletionPolicy"], key["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
    users = [name for name, one in resources.items() if "DatabaseKey" in json.dumps(one.get("Properties", {}))]
    assert users == ["Cluster"], "what needs it lives no longer than the stack"


def test_writer_and_replica_are_in_two_zones() -> None:
    resources = _loaded("one")["Resources"]
    subnets = [resources[name]["Properties"]["AvailabilityZone"]["Fn::GetAtt"] for name in ("Writer", "Replica")]
    assert subnets == [["PrivateSubnetA", "AvailabilityZone"], ["PrivateSubnetB", "AvailabilityZone"]]


def test_the_internet_reaches_pgadmin_from_a_named_address_and_nothing_else() -> None:
    admitted = [
        (key, rule["CidrIp"], rule["FromPort"], rule["ToPort"])
        for key, one in _of_type("one", "AWS::EC2::SecurityGroup").items()
        for rule in one["Properties"].get("SecurityGroupIngress", [])
        if "CidrIp" in rule
    ]
    assert admitted == [("HostSecurityGroup", {"Ref": "AccessCidr"}, 443, 443)]
    assert _loaded("one")["Parameters"]["AccessCidr"]["Default"] == "127.0.0.1/32"


@pytest.mark.parametrize("name", CONFIGS)
def test_secret_parameters_are_recognised(name: str) -> None:
    parameters = _loaded(name)["Parameters"]
    assert secret_parameters(made(name)) == [key for key, one in parameters.items() if one.get("NoEcho")]


def test_a_network_of_two_zones_with_two_subnets_each() -> None:
    zones = [
        (key[:-1], str(one["Properties"]["AvailabilityZone"]))
        for key, one in _of_type("one", "AWS::EC2::Subnet").items()
    ]
    assert sorted(name for name, _ in zones) == ["PrivateSubnet"] * 2 + ["PublicSubnet"] * 2
    assert len(set(zones)) == 4


def test_the_configuration_goes_along_without_what_belongs_to_this_machine() -> None:
    variables = _loaded("one")["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    text = variables["DOCFERRY_CONFIG_TEXT"]
    assert "secret-password" not in made("one")
    assert "127.0.0.1:4566" not in made("one")
    assert text == _loaded("one")["Resources"]["ConfigParameter"]["Properties"]["Value"]
    original = _config(CONFIGS["one"][0])
    again = parse(text, "docferry.toml", {"DOCFERRY_SOURCE_DSN": "postgresql://somewhere/"})
    assert (again.mirrors, again.source.lambda_, again.source.capture, again.run) == (
        original.mirrors,
        original.source.lambda_,
        original.source.capture,
        original.run,
    )
    assert _loaded("one")["Parameters"]["FunctionName"]["Default"] == "shop-ferry"


@pytest.mark.parametrize(
    ("given", "owner"), [("", "docferry_triggers"), ('\n[source.triggers]\nowner = "our own"\n', "our own")]
)
def test_the_trigger_functions_are_not_the_administrators(given: str, owner: str) -> None:
    text = CONFIGS["one"][0].replace("\n[target]", f"{given}\n[target]")
    config = _config(text)
    made_text = blueprint(config, text, {"public.orders": (("id", "N"),)}).config
    assert tomllib.loads(made_text)["source"]["triggers"] == {"owner": owner}


def test_the_function_encrypts_its_connection_to_a_new_cluster() -> None:
    variables = _loaded("one")["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    nothing = {"Ref": "AWS::NoValue"}
    assert variables["DOCFERRY_SOURCE_SSLMODE"] == {
        "Fn::If": ["ReadsDatabase", {"Fn::If": ["NewCluster", "require", nothing]}, nothing]
    }
    text = '[source]\nsslmode = "verify-full"\nsslrootcert = "/home/me/ca.pem"\ncapture = "lambda"\n'
    source = tomllib.loads(config_for_function(text))["source"]
    assert not source.keys() & {"sslmode", "sslrootcert"}, "a path of this machine"


def test_a_long_configuration_lies_in_a_parameter() -> None:
    resources = _loaded("many")["Resources"]
    variables = resources["Function"]["Properties"]["Environment"]["Variables"]
    assert "DOCFERRY_CONFIG_TEXT" not in variables
    assert variables["DOCFERRY_CONFIG_PARAMETER"] == {"Ref": "ConfigParameter"}
    assert resources["ConfigParameter"]["Properties"]["Tier"] == "Advanced"
    assert "SsmEndpoint" in resources
    assert "SsmEndpoint" not in _loaded("one")["Resources"]


def test_a_configuration_that_fits_nowhere_is_refused() -> None:
    text = CONFIGS["one"][0] + "".join('\n[[mirrors]]\ntable = "public.' + "x" * 50 + f'_{n}"\n' for n in range(40))
    text = text.replace('lists = ["items/item"]', f"lists = {['y' * 60 + str(n) for n in range(100)]}")
    config = _config(text)
    keys = settle_keys(config, [f"{mirror.table}=id:N" for mirror in config.mirrors], reachable=False)
    with pytest.raises(ConfigError, match="8,192"):
        template(blueprint(config, text, keys))


def test_too_many_mirrors_are_refused() -> None:
    text = CONFIGS["one"][0] + "".join(f'\n[[mirrors]]\ntable = "public.table_{n}"\n' for n in range(100))
    with pytest.raises(ConfigError, match="101 mirrors"):
        blueprint(_config(text), text, {})


@pytest.mark.parametrize("name", CONFIGS)
def test_the_size_of_the_policies_is_known_before_aws_counts_it(name: str) -> None:
    """What blueprint() computes is what IAM would count, for the longest names there can be."""
    text, given = CONFIGS[name]
    config = _config(text)
    plan = blueprint(config, text, settle_keys(config, given, reachable=False))
    counted = max(_policy_characters(name).values())
    assert 0 <= policy_size(plan.tables, "us-east-2") - counted < 300


def _policy_characters(name: str) -> dict[str, int]:
    """Of each role the characters of all its inline policies."""
    resources = _loaded(name)["Resources"]
    policies: dict[str, list[Any]] = {
        key: [one["PolicyDocument"] for one in role["Properties"].get("Policies", [])]
        for key, role in _of_type(name, "AWS::IAM::Role").items()
    }
    for one in _of_type(name, "AWS::IAM::Policy").values():
        for role in one["Properties"]["Roles"]:
            policies[role["Ref"]].append(one["Properties"]["PolicyDocument"])
    return {
        role: sum(len(json.dumps(_resolved(document, resources), separators=(",", ":"))) for document in documents)
        for role, documents in policies.items()
    }


_ARN = "arn:aws:{}:ap-northeast-1:000000000000:"
_SECRET = _ARN.format("secretsmanager") + "secret:" + "n" * 100
_STACK = "s" * 128
_REFERENCES = {
    "AWS::AccountId": "0" * 12,
    "AWS::Partition": "aws",
    "AWS::Region": "ap-northeast-1",
    "CodeBucket": "b" * 63,
    "CodeKey": f"{_STACK}/{'f' * 64}.zip",
    "ConfigParameter": f"{_STACK}.docferry.toml",
    "DatabaseSecret": _SECRET,
    "ExistingSecretArn": _SECRET,
    "FunctionName": "f" * 64,
    "PackageParameter": f"{_STACK}.package",
    "PgAdminSecret": _SECRET,
}


_ARNS = {
    "AWS::DynamoDB::Table": _ARN.format("dynamodb") + "table/{}",
    "AWS::KMS::Key": _ARN.format("kms") + "key/" + "k" * 36,
    "AWS::Lambda::Function": _ARN.format("lambda") + "function:" + "f" * 64,
    "AWS::Logs::LogGroup": _ARN.format("logs") + "log-group:/aws/lambda/" + "f" * 64 + ":*",
    "AWS::SQS::Queue": _ARN.format("sqs") + "q" * 80,
    "AWS::SecretsManager::Secret": _SECRET,
}


def _resolved(value: Any, resources: dict[str, Any]) -> Any:
    """A policy as IAM is given it, with the longest names."""
    match value:
        case {"Ref": name}:
            return _REFERENCES[name]
        case {"Fn::Sub": text}:
            return re.sub(r"\$\{(.+?)\}", lambda match: _REFERENCES[match[1]], text)
        case {"Fn::If": [_, *both]}:
            return max((_resolved(one, resources) for one in both), key=lambda one: len(str(one)))
        case {"Fn::GetAtt": [name, _]}:
            return _ARNS[resources[name]["Type"]].format(resources[name]["Properties"].get("TableName"))
        case dict():
            return {key: _resolved(one, resources) for key, one in value.items()}
        case list():
            return [_resolved(one, resources) for one in value]
        case _:
            return value


@pytest.mark.parametrize(("length", "most"), [(25, 100), (40, 84), (80, 59)])
def test_mirrors_whose_names_fit_into_no_policy_are_refused(length: int, most: int) -> None:
    def planned(count: int) -> None:
        text = CONFIGS["one"][0].partition("[[mirrors]]")[0] + "".join(
            f'\n[[mirrors]]\ntable = "public.t{n}"\ncollection = "{n:0{length}}"\n' for n in range(count)
        )
        config = _config(text)
        blueprint(config, text, {mirror.table: (("id", "N"),) for mirror in config.mirrors})

    planned(most)
    with pytest.raises(ConfigError) as refused:
        planned(most + 1)
    if most < 100:
        assert re.search(r"HostRole .* 10,\d{3} characters; IAM allows a role 10,240", str(refused.value))
        assert "shorter names" in refused.value.remedy


def test_replication_has_no_business_here() -> None:
    text = '[source]\ndsn = "postgresql://a/b"\n[[mirrors]]\ntable = "public.orders"\n'
    with pytest.raises(ConfigError, match="replication"):
        blueprint(_config(text), text, {"public.orders": (("id", "N"),)})


@pytest.mark.parametrize(
    "given",
    ["orders", "orders=", "orders=id", "orders=id:X", "orders=:N", "orders=a:N,b:N,c:N", "orders=a:N,", "=id:N"],
)
def test_a_wrong_key_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--key"):
        parse_keys([given], _config(CONFIGS["one"][0]))


def test_a_key_of_an_unknown_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"public\.nothing is not a mirror"):
        parse_keys(["nothing=id:N"], _config(CONFIGS["one"][0]))


def test_names_with_colons_can_be_keys() -> None:
    assert parse_keys(["orders=a:b:N"], _config(CONFIGS["one"][0])) == {"public.orders": (("a:b", "N"),)}


def test_unknown_keys_are_named_with_what_to_say() -> None:
    config = _config(CONFIGS["composite"][0])
    with pytest.raises(ConfigError, match=r"public\.orders, public\.order_lines") as refused:
        settle_keys(config, [], reachable=False)
    assert "--key public.orders=id:N --key public.order_lines=order_id:N,line:N" in refused.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        'key = ["a\\"b", "c"]\nitem_key = { "p k" = "{a\\"b}#{c}" }',
        'exclude = ["tab\\t", "line\\nbreak", "é", "\\u007f"]',
        'documents = { d = { format = "json", numbers = ["a"] }, "e f" = { format = "xml" } }',
    ],
)
def test_every_setting_survives_the_way_into_the_function(text: str) -> None:
    whole = f'mirrors = [{{ table = "public.t" }}]\nrun = {{ workers = 3, linger = "5ms" }}\n{text}\n'
    before = tomllib.loads(whole)
    before["mirrors"][0].update({key: before.pop(key) for key in list(before) if key not in ("mirrors", "run")})
    lines = re.sub(r"^mirrors = .*\n", "", whole, count=1)
    run, rest = lines.split("\n", 1)
    made_text = config_for_function(f'{run}\n[[mirrors]]\ntable = "public.t"\n{rest}')
    assert tomllib.loads(made_text) == before


def test_the_function_is_told_what_dead_letters_may_hold() -> None:
    text = '[dead_letters]\nqueue = "https://sqs.eu-central-1.amazonaws.com/1/q"\npayload = false\n'
    assert tomllib.loads(config_for_function(text)) == {"dead_letters": {"payload": False}}


def test_names_of_all_kinds_leave_the_template_whole() -> None:
    names = ["a\u2028b\x85", "Ünï\U0001f40d", "@runtime@", "${AWS::Region}", "x: y # z", "{{resolve}}"]
    text = CONFIGS["one"][0].partition("[[mirrors]]")[0] + "".join(
        "\n[[mirrors]]\ntable = "
        + json.dumps(f'public."{name}"', ensure_ascii=False)
        + f'\ncollection = "c-{number}"\n'
        for number, name in enumerate(names)
    )
    config = _config(text)
    keys = {mirror.table: (("id", "N"),) for mirror in config.mirrors}
    loaded = yaml.load(template(blueprint(config, text, keys)), Loader=_Loader)  # a SafeLoader
    carried = loaded["Resources"]["Function"]["Properties"]["Environment"]["Variables"]["DOCFERRY_CONFIG_TEXT"]
    again = parse(carried, "docferry.toml", {}, needs_source=False)
    assert again.mirrors == config.mirrors
