// Clients of op.mjs for the table "machine grant × client authentication method", and mutual TLS.
//
// One client for each method, allowed every grant of `grantsOf`, with secrets `<client>-secret-0123…` (`secretOf`).
//   m-body, m-basic, m-csjwt (HS256)                          the secret
//   m-pkjwt-rs256, m-pkjwt-ps256, m-pkjwt-es256, m-pkjwt-eddsa   client-rsa.key, client-ec.key, client-ed.key (certs.py)
//   m-tls-ca (subject CN=mtls-client), m-tls-self             a certificate, presented at the port `mtls`
//   m-tls-bound                                               as m-tls-ca, with certificate-bound access tokens
//   m-none                                                    none: only the grants that need no client authentication
// Each client has the three client keys, named by `kid`, and may sign JWT bearer assertions as itself with them.

import { createPublicKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';

export const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
export const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
export const ACCOUNT_CREDENTIALS = 'account_credentials';

const WITH_OWN_PROOF = ['password', JWT_BEARER, TOKEN_EXCHANGE, 'refresh_token'];
const grantsOf = (method) => (method === 'none' ? WITH_OWN_PROOF : ['client_credentials', ACCOUNT_CREDENTIALS, ...WITH_OWN_PROOF]);
export const secretOf = (client_id) => `${client_id}-secret-0123456789abcdef0123456789abcdef`;

// The public keys of client-rsa, client-ec and client-ed.
export function clientKeys(directory) {
  return ['client-rsa', 'client-ec', 'client-ed'].map((kid) => {
    const key = createPublicKey(readFileSync(`${directory}/${kid}.key`));
    return { ...key.export({ format: 'jwk' }), kid, use: 'sig' };
  });
}

function certificateKey(directory, kid) {
  const certificate = new X509Certificate(readFileSync(`${directory}/${kid}.pem`));
  return { ...certificate.publicKey.export({ format: 'jwk' }), kid, x5c: [certificate.raw.toString('base64')] };
}

export function methodClients(directory) {
  const keys = clientKeys(directory);
  const client = (client_id, method, more = {}) => ({
    client_id,
    token_endpoint_auth_method: method,
    ...(method.startsWith('client_secret') ? { client_secret: secretOf(client_id) } : {}),
    jwks: { keys },
    grant_types: grantsOf(method),
    response_types: [],
    redirect_uris: [],
    scope: 'api.read api.write',
    ...more,
  });
  const signing = (alg) => ({ token_endpoint_auth_signing_alg: alg });
  const selfSigned = certificateKey(directory, 'mtls-self-signed');
  const issued = { tls_client_auth_subject_dn: 'CN=mtls-client' };
  return [
    client('m-body', 'client_secret_post'),
    client('m-basic', 'client_secret_basic'),
    client('m-csjwt', 'client_secret_jwt', signing('HS256')),
    client('m-pkjwt-rs256', 'private_key_jwt', signing('RS256')),
    client('m-pkjwt-ps256', 'private_key_jwt', signing('PS256')),
    client('m-pkjwt-es256', 'private_key_jwt', signing('ES256')),
    client('m-pkjwt-eddsa', 'private_key_jwt', signing('EdDSA')),
    client('m-tls-ca', 'tls_client_auth', issued),
    client('m-tls-bound', 'tls_client_auth', { ...issued, tls_client_certificate_bound_access_tokens: true }),
    client('m-tls-self', 'self_signed_tls_client_auth', { jwks: { keys: [...keys, selfSigned] } }),
    client('m-none', 'none'),
  ];
}

export const AUTH_METHODS = ['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'tls_client_auth',
  'self_signed_tls_client_auth', 'none'];

// Options of oidc-provider; only connections to the port that requests a certificate have one.
const certificateOf = (ctx) => ctx.req.socket.getPeerX509Certificate?.();
export const mutualTls = {
  enabled: true,
  tlsClientAuth: true,
  selfSignedTlsClientAuth: true,
  certificateBoundAccessTokens: true,
  getCertificate: certificateOf,
  certificateAuthorized: (ctx) => ctx.req.socket.authorized,
  certificateSubjectMatches: (ctx, property, expected) => {
    if (property === 'tls_client_auth_subject_dn') return certificateOf(ctx).subject === expected;
    if (property === 'tls_client_auth_san_dns') return certificateOf(ctx).checkHost(expected) === expected;
    return false;
  },
};

// RFC 8705 §5, with the host of the issuer.
export function endpointAliases(issuer, port) {
  const base = new URL(issuer);
  base.port = port;
  const at = (path) => new URL(path, base).href;
  return {
    token_endpoint: at('/token'),
    revocation_endpoint: at('/token/revocation'),
    introspection_endpoint: at('/token/introspection'),
  };
}
