"""Generates the peers' certificates and keys: `certs.py DIR` writes PEM files there in a few tenths of a second.

ca.pem            the test CA, trusted by the tests
server.pem/.key   leaf for localhost, 127.0.0.1, ::1, op.test, al.test, api.test, *.api.test
expired.pem/.key  the same names, expired yesterday
wrong.pem/.key    leaf of the test CA for other.test only
unknown.pem/.key  the same names as server, issued by an untrusted CA (unknown-ca.pem)
self-signed.pem/.key  the same names as server, self-signed

Client credentials at the authorization servers (al.py and op.mjs have the public keys):
client-rsa.pem/.key        RSA 2048, self-signed
client-ec.pem/.key         self-signed
client-ed.key              Ed25519
mtls-ca-issued.pem/.key    issued by the test CA for TLS clients: CN=mtls-client, DNS name mtls-client.test
mtls-self-signed.pem/.key  a TLS client's self-signed certificate
saml-idp.pem/.key          self-signed: signs SAML assertions (saml.py)

The .pem of a leaf holds only the leaf; all keys are PKCS#8, EC P-256 unless noted otherwise.
"""

import datetime
import ipaddress
import os
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES = ["localhost", "127.0.0.1", "::1", "op.test", "al.test", "api.test", "*.api.test"]
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def subject(common_name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def alternative(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def usage(**enabled):
    fields = ("digital_signature content_commitment key_encipherment data_encipherment key_agreement "
              "key_cert_sign crl_sign encipher_only decipher_only").split()
    return x509.KeyUsage(**{field: enabled.get(field, False) for field in fields})


def builder(name, issuer, key, start, end):
    return (x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))


def make_ca(common_name):
    key, name = ec.generate_private_key(ec.SECP256R1()), subject(common_name)
    cert = (builder(name, name, key, NOW - DAY, NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .add_extension(usage(key_cert_sign=True, crl_sign=True), True)
            .sign(key, hashes.SHA256()))
    return cert, key


def make_leaf(ca, names, start=NOW - DAY, end=NOW + 7 * DAY, common_name=None, purpose=ExtendedKeyUsageOID.SERVER_AUTH):
    ca_cert, ca_key = ca
    key = ec.generate_private_key(ec.SECP256R1())
    cert = (builder(subject(common_name or names[0]), ca_cert.subject, key, start, end)
            .add_extension(x509.SubjectAlternativeName([alternative(name) for name in names]), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(usage(digital_signature=True), True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
            .sign(ca_key, hashes.SHA256()))
    return cert, key


def make_self_signed(common_name, key=None, names=()):
    key, name = key or ec.generate_private_key(ec.SECP256R1()), subject(common_name)
    unsigned = (builder(name, name, key, NOW - DAY, NOW + 7 * DAY)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
                .add_extension(usage(digital_signature=True), True))
    if names:
        unsigned = unsigned.add_extension(x509.SubjectAlternativeName([alternative(name) for name in names]), False)
    return unsigned.sign(key, hashes.SHA256()), key


def write(directory, name, pair):
    cert, key = pair
    with open(os.path.join(directory, name + ".pem"), "wb") as file:
        file.write(cert.public_bytes(serialization.Encoding.PEM))
    write_key(directory, name, key)


def write_key(directory, name, key):
    with open(os.path.join(directory, name + ".key"), "wb") as file:
        os.chmod(file.fileno(), 0o600)
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption()))


def main(directory):
    os.makedirs(directory, exist_ok=True)
    ca, unknown = make_ca("Keybearer test CA"), make_ca("An untrusted CA")
    write(directory, "ca", ca)
    write(directory, "unknown-ca", unknown)
    write(directory, "server", make_leaf(ca, NAMES))
    write(directory, "expired", make_leaf(ca, NAMES, start=NOW - 10 * DAY, end=NOW - DAY))
    write(directory, "wrong", make_leaf(ca, ["other.test"]))
    write(directory, "unknown", make_leaf(unknown, NAMES))
    write(directory, "self-signed", make_self_signed("self-signed", names=NAMES))
    write(directory, "client-rsa", make_self_signed("client-rsa", rsa.generate_private_key(65537, 2048)))
    write(directory, "client-ec", make_self_signed("client-ec"))
    write_key(directory, "client-ed", ed25519.Ed25519PrivateKey.generate())
    write(directory, "mtls-ca-issued", make_leaf(ca, ["mtls-client.test"], common_name="mtls-client",
                                                 purpose=ExtendedKeyUsageOID.CLIENT_AUTH))
    write(directory, "mtls-self-signed", make_self_signed("mtls-self-signed"))
    write(directory, "saml-idp", make_self_signed("saml-idp"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: certs.py DIR")
    main(sys.argv[1])
