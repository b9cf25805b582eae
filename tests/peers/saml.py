"""SAML 2.0 bearer assertions (RFC 7522): creates one for a test, and verifies one for al.py.

  python saml.py OUT_FILE --audience URL --recipient URL --subject NAME [--lifetime S]

Writes plain XML to OUT_FILE, signed with saml-idp.key, which certs.py wrote next to it or into --keys DIR; its issuer is ISSUER.
"""

import argparse
import datetime
import os
import uuid
from pathlib import Path

from lxml import etree
from signxml import SignatureConfiguration, SignatureMethod, XMLSigner, XMLVerifier
from signxml.exceptions import InvalidInput, InvalidSignature

ISSUER = "https://saml-idp.test"
SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
TIME = "%Y-%m-%dT%H:%M:%SZ"


def text_of(element, path):
    return [(found.text or "").strip() for found in element.iterfind(path, {"s": SAML})]


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def make(keys, audience, recipient, subject, lifetime):
    end = (now() + datetime.timedelta(seconds=lifetime)).strftime(TIME)
    start = now().strftime(TIME)
    root = etree.Element(f"{{{SAML}}}Assertion", nsmap={"saml": SAML}, ID=f"_{uuid.uuid4().hex}", Version="2.0", IssueInstant=start)

    def add(parent, name, text=None, **attributes):
        child = etree.SubElement(parent, f"{{{SAML}}}{name}", **attributes)
        child.text = text
        return child

    add(root, "Issuer", ISSUER)
    who = add(root, "Subject")
    add(who, "NameID", subject)
    confirmation = add(who, "SubjectConfirmation", Method=BEARER)
    add(confirmation, "SubjectConfirmationData", Recipient=recipient, NotOnOrAfter=end)
    conditions = add(root, "Conditions", NotBefore=start, NotOnOrAfter=end)
    add(add(conditions, "AudienceRestriction"), "Audience", audience)
    statement = add(root, "AuthnStatement", AuthnInstant=start)
    add(add(statement, "AuthnContext"), "AuthnContextClassRef", "urn:oasis:names:tc:SAML:2.0:ac:classes:X509")
    signer = XMLSigner(signature_algorithm=SignatureMethod.ECDSA_SHA256, c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#")
    signed = signer.sign(root, key=Path(keys, "saml-idp.key").read_bytes(), cert=Path(keys, "saml-idp.pem").read_text(),
                         reference_uri=root.get("ID"), id_attribute="ID")
    signature = signed.find("{http://www.w3.org/2000/09/xmldsig#}Signature")
    signed.insert(1, signature)  # the schema requires it after Issuer; an enveloped signature does not cover itself
    return etree.tostring(signed, xml_declaration=True, encoding="UTF-8")


def check(xml, certificate, audiences, recipients):
    """The subject of a valid assertion that ISSUER signed for one of the audiences and recipients. Raises ValueError with the
    reason if it is not valid."""
    try:
        config = SignatureConfiguration(location="./")
        root = XMLVerifier().verify(xml, x509_cert=certificate, id_attribute="ID", expect_config=config).signed_xml
    except (InvalidInput, InvalidSignature, etree.XMLSyntaxError) as error:
        raise ValueError(f"signature: {error}") from error
    if root is None or root.tag != f"{{{SAML}}}Assertion":
        raise ValueError("no assertion is signed")
    if text_of(root, "s:Issuer") != [ISSUER]:
        raise ValueError("Issuer is unknown")
    if not set(text_of(root, "s:Conditions/s:AudienceRestriction/s:Audience")) & set(audiences):
        raise ValueError("Audience is another server")
    ends = [conditions.get("NotOnOrAfter") for conditions in root.iterfind("s:Conditions", {"s": SAML})]
    confirmed = False
    for confirmation in root.iterfind("s:Subject/s:SubjectConfirmation", {"s": SAML}):
        for data in confirmation.iterfind("s:SubjectConfirmationData", {"s": SAML}):
            if confirmation.get("Method") == BEARER and data.get("Recipient") in recipients:
                confirmed = True
                ends.append(data.get("NotOnOrAfter"))
    if not confirmed:
        raise ValueError("Recipient is another endpoint")
    if not any(ends) or min(end for end in ends if end) <= now().strftime(TIME):
        raise ValueError("NotOnOrAfter is past")
    [subject] = text_of(root, "s:Subject/s:NameID")
    return subject


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out_file")
    for name in ["audience", "recipient", "subject"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--lifetime", type=int, default=300)
    parser.add_argument("--keys", help="the directory of saml-idp.key; default: that of OUT_FILE")
    args = parser.parse_args()
    keys = args.keys or os.path.dirname(os.path.abspath(args.out_file))
    Path(args.out_file).write_bytes(make(keys, args.audience, args.recipient, args.subject, args.lifetime))


if __name__ == "__main__":
    main()
