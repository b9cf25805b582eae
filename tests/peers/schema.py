"""Judges documents by a JSON Schema: `{"schema": …, "documents": […]}` on standard input, answers on standard output.

The answer is one object: `documents` has a list of complaints for each document, `values` one for each default or example
of the schema that its own place refuses. A schema that is not valid itself ends it with an error.
"""

import json
import sys

from jsonschema import Draft202012Validator


def complaints(schema, document):
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


def places(schema):
    """Every part of the schema that may hold a default or examples."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from places(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from places(value)


def main():
    asked = json.load(sys.stdin)
    schema = asked["schema"]
    Draft202012Validator.check_schema(schema)
    refused = []
    for place in places(schema["$defs"]):
        if not isinstance(place.get("description"), str):
            continue
        values = place.get("examples", []) + [place[key] for key in ["default"] if key in place]
        for value in values:
            refused += complaints({"$defs": schema["$defs"], **place}, value)
    json.dump({"documents": [complaints(schema, document) for document in asked["documents"]], "values": refused}, sys.stdout)


main()
