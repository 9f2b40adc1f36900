"""The DynamoDB tables of a template: as docferry would create them, plus recovery, encryption and protection."""

from __future__ import annotations

import json

from docferry.aws.blueprint import Blueprint, Table

__all__ = ["table_alarms", "table_arns", "table_outputs", "table_resources"]


def table_resources(plan: Blueprint) -> str:
    """The lines below `Resources:`."""
    return "".join(_resource(table) for table in plan.tables)


def _resource(table: Table) -> str:
    what = (
        f"Mirrors {table.mirrored}"
        if table.mirrored
        else "What the function's processes must agree on: floors of TRUNCATE"
    )
    definitions = "".join(
        f"        - {{ AttributeName: {json.dumps(name)}, AttributeType: {letter} }}\n" for name, letter in table.key
    )
    schema = "".join(
        f"        - {{ AttributeName: {json.dumps(name)}, KeyType: {role} }}\n"
        for (name, _), role in zip(table.key, ("HASH", "RANGE"), strict=False)
    )
    return f"""\
  # {_printable(what)}.
  {table.logical}:
    Type: AWS::DynamoDB::Table
    DeletionPolicy: Delete
    UpdateReplacePolicy: Retain
    Properties:
      TableName: {json.dumps(table.name)}
      BillingMode: PAY_PER_REQUEST
      AttributeDefinitions:
{definitions}\
      KeySchema:
{schema}\
      TimeToLiveSpecification: {{ AttributeName: _ttl, Enabled: true }} # of tombstones
      PointInTimeRecoverySpecification: {{ PointInTimeRecoveryEnabled: true }}
      SSESpecification: {{ SSEEnabled: true, SSEType: KMS, KMSMasterKeyId: !GetAtt Key.Arn }}
      DeletionProtectionEnabled: !Ref DeletionProtection
"""


def table_outputs(plan: Blueprint) -> str:
    """The lines below `Outputs:`: a link to each table of a mirror. The first has the article's name for it."""
    return "".join(
        f"""\
  {"DynamoDBTableConsoleLink" if number == 0 else f"{table.logical}ConsoleLink"}:
    Description: {json.dumps(_printable(f"The items of {table.mirrored} in the console"), ensure_ascii=False)}
    Value: !Sub https://${{AWS::Region}}.console.aws.amazon.com/dynamodbv2/home?region=${{AWS::Region}}#item-explorer?table=${{{table.logical}}}
"""
        for number, table in enumerate(plan.mirrored)
    )


def table_arns(plan: Blueprint) -> str:
    """The resources of a policy."""
    return "".join(f"- !GetAtt {table.logical}.Arn\n" for table in plan.tables)


def table_alarms(plan: Blueprint) -> str:
    """An alarm for each mirror's table: writes are what the mirror costs."""
    return "".join(
        f"""\
  {table.logical}WritesAlarm:
    Type: AWS::CloudWatch::Alarm
    Properties:
      AlarmDescription: {json.dumps(f"Table {table.name} consumes more write capacity than expected")}
      Namespace: AWS/DynamoDB
      MetricName: ConsumedWriteCapacityUnits
      Dimensions:
        - {{ Name: TableName, Value: !Ref {table.logical} }}
      Statistic: Sum
      Period: 60
      EvaluationPeriods: 5
      ComparisonOperator: GreaterThanThreshold
      Threshold: !Ref ConsumedWritesPerMinute
      TreatMissingData: notBreaching
      AlarmActions: !If [WithTopic, [!Ref AlarmTopicArn], !Ref AWS::NoValue]
"""
        for table in plan.mirrored
    )


def _printable(text: str) -> str:
    """A table may have any name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
