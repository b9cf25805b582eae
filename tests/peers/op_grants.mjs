// Grants that oidc-provider lacks: JWT bearer (RFC 7523), password, token exchange (RFC 8693), and `account_credentials`, an
// alias of client_credentials.
//
// Tokens are the provider's own, so its refresh, introspection and revocation apply; `password` and JWT bearer issue a refresh
// token (`issueRefreshToken` in op.mjs), an access token for `resource` or `audience` names it in `aud`.
// An assertion is signed by the client itself (iss = its client_id) or by ISSUER, with a key of certs.py; its aud is the
// server's issuer or token endpoint, it expires within ten minutes, and its jti is accepted once. A subject token is an active
// access token of this server, or a JWT by ISSUER for the same audiences, which may be used again, as those of Kubernetes.

import { createLocalJWKSet, decodeJwt, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';
// Internals of the provider's own grants, which are no public API: hence the pinned version.
import { handler as clientCredentials } from 'oidc-provider/lib/actions/grants/client_credentials.js';
import { issueTokens } from 'oidc-provider/lib/helpers/grant_common.js';
import * as grantHelpers from 'oidc-provider/lib/helpers/grants.js';
import { ACCOUNT_CREDENTIALS, JWT_BEARER, TOKEN_EXCHANGE } from './op_clients.mjs';

export const ISSUER = 'https://issuer.test';
export const USED_BEFORE = 'the assertion was used before';
const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'EdDSA'];
const LIFETIME_MAX_S = 600;
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const TOKEN_TYPES = [ACCESS_TOKEN, 'urn:ietf:params:oauth:token-type:jwt', 'urn:ietf:params:oauth:token-type:id_token'];

const refuse = (error, description) => new errors.CustomOIDCProviderError(error, description);

export function registerGrants(provider, issuerKeys) {
  const bound = Object.entries(grantHelpers).map(([name, helper]) => [name, helper.bind(undefined, provider)]);
  const helpers = Object.fromEntries(bound);

  async function issue(ctx, accountId) {
    const { client, params } = ctx.oidc;
    params.resource ??= params.audience;
    const { grant_type: gty, resource } = params;
    const scope = [...helpers.validateClientScope(ctx)].join(' ');
    const grant = new provider.Grant({ accountId, clientId: client.clientId });
    grant.addOIDCScope(scope);
    if (resource) grant.addResourceScope([resource].flat()[0], scope);
    const source = new provider.RefreshToken({ accountId, client, grantId: await grant.save(), gty, resource, scope });
    await issueTokens(provider, helpers, ctx, source, grant, { gty, entityLabel: gty, cert: helpers.checkMtlsCert(ctx) });
  }

  async function verified(ctx, jwt, keysOf) {
    try {
      const keys = keysOf(decodeJwt(jwt).iss);
      if (!keys) throw new Error('unknown issuer');
      const audience = [...ctx.oidc.clientJwtAuthExpectedAudience(), `${provider.issuer}/token`];
      const rules = { audience, algorithms: ALGORITHMS, requiredClaims: ['sub', 'exp'] };
      return (await jwtVerify(jwt, createLocalJWKSet({ keys }), rules)).payload;
    } catch (error) {
      throw refuse('invalid_grant', `the token is not valid: ${error.message}`);
    }
  }

  async function jwtBearer(ctx) {
    const { client, params } = ctx.oidc;
    if (!params.assertion) throw refuse('invalid_request', 'assertion is missing');
    const keysOf = (iss) => (iss === client.clientId ? client.jwks?.keys : iss === ISSUER && issuerKeys);
    const { iss, sub, exp, jti } = await verified(ctx, params.assertion, keysOf);
    if (exp > Date.now() / 1000 + LIFETIME_MAX_S) throw refuse('invalid_grant', 'the assertion lives too long');
    if (!jti) throw refuse('invalid_grant', 'jti is missing');
    if (!(await provider.ReplayDetection.unique(iss, jti, exp))) throw refuse('invalid_grant', USED_BEFORE);
    await issue(ctx, sub);
  }

  async function password(ctx) {
    const { username, password: given } = ctx.oidc.params;
    if (username !== 'ann' || given !== 'ann-password') throw refuse('invalid_grant', 'wrong username or password');
    await issue(ctx, username);
  }

  // `name` is subject_token or actor_token.
  async function subjectOf(ctx, name) {
    const { [name]: token, [`${name}_type`]: type } = ctx.oidc.params;
    if (!token || !TOKEN_TYPES.includes(type)) throw refuse('invalid_request', `${name} or ${name}_type is missing or not supported`);
    if (type === ACCESS_TOKEN) {
      const own = (await provider.AccessToken.find(token)) ?? (await provider.ClientCredentials.find(token));
      if (own) return own.accountId ?? own.clientId;
    }
    return (await verified(ctx, token, (iss) => iss === ISSUER && issuerKeys)).sub;
  }

  async function tokenExchange(ctx) {
    const { params } = ctx.oidc;
    const wanted = params.requested_token_type ?? ACCESS_TOKEN;
    if (wanted !== ACCESS_TOKEN) throw refuse('invalid_request', 'requested_token_type is not supported');
    if (params.actor_token) await subjectOf(ctx, 'actor_token');
    await issue(ctx, await subjectOf(ctx, 'subject_token'));
    ctx.body.issued_token_type = ACCESS_TOKEN;
  }

  const common = ['scope', 'resource', 'audience'];
  const exchanged = ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type'];
  provider.registerGrantType(JWT_BEARER, jwtBearer, [...common, 'assertion'], ['resource']);
  provider.registerGrantType('password', password, [...common, 'username', 'password'], ['resource']);
  provider.registerGrantType(TOKEN_EXCHANGE, tokenExchange, [...common, ...exchanged], ['resource']);
  const machine = clientCredentials.bind(undefined, provider, helpers);
  provider.registerGrantType(ACCOUNT_CREDENTIALS, machine, [...common, 'account_id'], ['resource']);
}
