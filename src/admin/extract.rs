//! Extractors of a request's path and query.
//!
//! Invariant: a rejection is a problem, as every error of the API.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::{Problem, bad_request};

/// The parameters in the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem> {
        let extracted = axum::extract::Path::from_request_parts(parts, state).await;
        extracted.map(|path| Path(path.0)).map_err(|error| bad_request(error.body_text()))
    }
}

/// The parameters in the query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Problem> {
        let extracted = axum::extract::Query::from_request_parts(parts, state).await;
        extracted.map(|query| Query(query.0)).map_err(|error| bad_request(error.body_text()))
    }
}
