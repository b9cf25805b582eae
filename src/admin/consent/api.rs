//! Authorizations over the API: an operator begins one and reads its outcome.

use axum::Extension;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::definition::Definition;
use super::device;
use super::flow::{self, FLOW_LIFETIME, Flow, FlowId, FlowKey, Kind, Status};
use crate::admin::actions::TokenSelector;
use crate::admin::body::body;
use crate::admin::extract::Path;
use crate::admin::problem::{Problem, bound, store_unavailable};
use crate::admin::users::AuthenticatedUser;
use crate::admin::view::Time;
use crate::admin::{Admin, record};
use crate::model::Name;
use crate::model::connection::ConsentFlow;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::{Subject, TokenKey};
use crate::snapshot::Snapshot;

/// An authorization that has begun.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum BegunAuthorization {
    /// By a link.
    Link {
        id: String,
        expires_at: Time,
        /// A one-time link to the page that asks for confirmation.
        authorization_url: String,
    },
    /// On another device (RFC 8628).
    Device {
        id: String,
        expires_at: Time,
        user_code: String,
        verification_uri: String,
        verification_uri_complete: Option<String>,
        /// Seconds between two polls.
        interval: u64,
    },
}

/// The status of an authorization.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Authorization")]
pub struct AuthorizationStatus {
    id: String,
    connection: String,
    profile: String,
    subject: Option<String>,
    #[schemars(extend("enum" = ["pending", "connected", "denied", "expired", "failed"]))]
    status: &'static str,
    /// The server's error code, or our name for the failure.
    error: Option<String>,
    description: Option<String>,
    expires_at: Time,
}

/// `POST connections/{name}/authorize`
pub async fn authorize(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<(StatusCode, Json<BegunAuthorization>), Problem> {
    let path = format!("/api/v1/connections/{name}/authorize");
    let selector: TokenSelector = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let key = selector.slot(bound)?.key.clone();
    let conflict = |code, detail: &str| Problem::new(StatusCode::CONFLICT, code, detail);
    let definition = Definition::of(bound, &key)
        .ok_or_else(|| conflict("connection_inactive", "the connection is inactive; remove its `active: false`"))?;
    let consent_flow = definition.connection.grant.consent_flow();
    let consent_flow =
        consent_flow.ok_or_else(|| conflict("no_person_needed", "the connection's grant needs no person"))?;
    let id = FlowId::random(&FlowKey::of(consent_flow, &key)).ok_or_else(no_random_bytes)?;
    let response = match consent_flow {
        ConsentFlow::DeviceCode => begin_device_flow(&admin, &definition, (id, &key), &user).await?,
        ConsentFlow::AuthorizationCode => {
            let (flow, link) = code_flow(&admin, &snapshot, &definition, (id, &key), &user.name)?;
            store_flow(&admin, &flow).await?;
            let expires_at = Time(WallTime::from_secs(flow.ends));
            BegunAuthorization::Link { id: flow.id.as_str().to_owned(), expires_at, authorization_url: link }
        }
    };
    record::change(&admin, (Some(&user.name), user.from), (&Method::POST, &path), &key, (StatusCode::CREATED, None));
    tracing::info!(user = %user.name, connection = %key.connection, profile = %key.profile,
        subject = key.subject.as_ref().map(Subject::as_str), "authorization started");
    Ok((StatusCode::CREATED, Json(response)))
}

fn no_random_bytes() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not_begun", "the system has no random bytes for a link; try again")
}

/// A new flow and its one-time link.
pub fn code_flow(
    admin: &Admin,
    snapshot: &Snapshot,
    definition: &Definition,
    (id, key): (FlowId, &TokenKey),
    user: &Name,
) -> Result<(Flow, String), Problem> {
    let secret = flow::random::<32>().ok_or_else(no_random_bytes)?;
    let secret = Secret::new(format!("{}.{}", id.as_str(), secret.expose()));
    let link = snapshot.links.of_authorization(key, secret.expose()).ok_or_else(|| {
        let detail = "the address at which browsers reach this instance is not known; set `public_url`";
        Problem::new(StatusCode::CONFLICT, "public_url_missing", detail)
    })?;
    let flow = Flow::new(id, key, &definition.connection, admin.clock.now().wall + FLOW_LIFETIME, Kind::Code(None));
    Ok((flow.begun_by(Some(user)).opened_by(Some(&flow::digest(secret.expose()))), link))
}

async fn begin_device_flow(
    admin: &Admin,
    definition: &Definition,
    (id, key): (FlowId, &TokenKey),
    user: &AuthenticatedUser,
) -> Result<BegunAuthorization, Problem> {
    let (flow, device) = device::begin(admin, definition, id, key).await?;
    let flow = flow.begun_by(Some(&user.name));
    store_flow(admin, &flow).await?;
    admin.device_notifier.notify(flow.id.key());
    Ok(BegunAuthorization::Device {
        id: flow.id.as_str().to_owned(),
        expires_at: Time(WallTime::from_secs(flow.ends)),
        user_code: device.user_code,
        verification_uri: device.verification_uri,
        verification_uri_complete: device.verification_uri_complete,
        interval: device.interval_ms / 1000,
    })
}

/// Stores the flow, which replaces the pending one.
pub async fn store_flow(admin: &Admin, flow: &Flow) -> Result<(), Problem> {
    let begun = flow::begin(&**admin.cache.store(), flow, admin.clock.now().wall).await;
    if begun.map_err(|error| store_unavailable(&error))? {
        return Ok(());
    }
    let detail = "a person has just logged in for this token, and the code is being exchanged; retry in a minute";
    Err(Problem::new(StatusCode::CONFLICT, "authorization_under_way", detail))
}

/// `GET authorizations/{id}`
pub async fn authorization(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<AuthorizationStatus>, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "authorization_unknown", "no authorization has this id");
    let flow_id = FlowId::parse(&id).ok_or_else(unknown)?;
    let found = flow::summary(&**admin.cache.store(), &flow_id, None, admin.clock.now().wall).await;
    let summary = found.map_err(|error| store_unavailable(&error))?.ok_or_else(unknown)?;
    let (status, error, description) = match summary.status {
        Status::Pending | Status::Exchanging { .. } => ("pending", None, None),
        Status::Connected => ("connected", None, None),
        Status::Denied => ("denied", Some("access_denied".to_owned()), None),
        Status::Expired => ("expired", None, None),
        Status::Replaced => {
            let description = "replaced by a newer authorization of the same token".to_owned();
            ("failed", Some("replaced".to_owned()), Some(description))
        }
        Status::Failed { error, description } => ("failed", Some(error), description),
    };
    let key = summary.key;
    Ok(Json(AuthorizationStatus {
        id,
        connection: key.connection.to_string(),
        profile: key.profile.to_string(),
        subject: key.subject.as_ref().map(Subject::to_string),
        status,
        error,
        description,
        expires_at: Time(WallTime::from_secs(summary.ends)),
    }))
}
