"""Validates an OpenAPI document, and responses against it: reads `{"document": …, "responses": […]}` from standard input.

A response is `{"method", "path", "status", "media_type", "body"}`, with the path as the document has it; the body of YAML is
its text. Prints a list of errors.
"""

import json
import sys

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

ROOT = "urn:document"


def main():
    given = json.load(sys.stdin)
    document = given["document"]
    errors = [f"{error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    registry = Registry().with_resource(ROOT, DRAFT202012.create_resource(document))
    for response in given["responses"]:
        place = [response["path"], response["method"], "responses", str(response["status"]), "content"]
        pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in ["paths", *place])
        content = document["paths"][place[0]][place[1]]["responses"][place[3]]["content"]
        media_type, body = response["media_type"], response["body"]
        if media_type not in content:
            errors.append(f"{response['method']} {response['path']}: {media_type} is not described")
            continue
        if media_type == "application/yaml":
            body = yaml.safe_load(body)
        media_type = media_type.replace("/", "~1")
        schema = {"$ref": f"{ROOT}#/{pointer}/{media_type}/schema"}
        validator = Draft202012Validator(schema, registry=registry, format_checker=FormatChecker())
        for error in validator.iter_errors(body):
            errors.append(f"{response['method']} {response['path']}: {error.json_path}: {error.message[:300]}")
            errors += [f"  {inner.json_path}: {inner.message[:300]}" for inner in error.context]
    json.dump(errors, sys.stdout)


main()
