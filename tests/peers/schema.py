"""Validates documents against a JSON Schema: reads `{"schema": …, "documents": […]}` from standard input.

Prints one object: `documents` has a list of errors for each document, `values` the errors of those defaults and examples in
the schema that do not match their own subschema. An invalid schema is an error.
"""

import json
import sys

from jsonschema import Draft202012Validator


def errors(schema, document):
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


def subschemas(schema):
    """Every part of the schema that may have a default or examples."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from subschemas(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from subschemas(value)


def main():
    given = json.load(sys.stdin)
    schema = given["schema"]
    Draft202012Validator.check_schema(schema)
    value_errors = []
    for subschema in subschemas(schema["$defs"]):
        if not isinstance(subschema.get("description"), str):
            continue
        values = subschema.get("examples", []) + [subschema[key] for key in ["default"] if key in subschema]
        for value in values:
            value_errors += errors({"$defs": schema["$defs"], **subschema}, value)
    json.dump({"documents": [errors(schema, document) for document in given["documents"]], "values": value_errors}, sys.stdout)


main()
