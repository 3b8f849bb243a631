//! Answers as JSON: what was asked for, or what is wrong, why, and what to do about it.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use caje_admin_api::{ErrorBody, Fault};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest body of a request, in bytes.
pub(super) const MAX_ASK: usize = 1 << 20;

/// An answer of 400 or above.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    fault: Fault,
    retry_after_secs: Option<u64>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Refusal {
        Refusal {
            status,
            fault: Fault {
                code: code.to_owned(),
                message: message.into(),
                remedy: remedy.into(),
            },
            retry_after_secs: None,
        }
    }

    pub(super) fn bad(message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "bad-request", message, remedy)
    }

    /// What is wrong.
    pub(super) fn message(self) -> String {
        self.fault.message
    }

    pub(super) fn after(mut self, secs: u64) -> Refusal {
        self.retry_after_secs = Some(secs);
        self
    }

    pub(super) fn internal() -> Refusal {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the node could not finish this",
            "look at the node's diagnostic log, and report what it says",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &ErrorBody { error: self.fault });
        if let Some(secs) = self.retry_after_secs {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let Ok(mut text) = serde_json::to_vec(value) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    text.push(b'\n');
    let fields = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, fields, text).into_response()
}

/// What was asked for.
pub(super) struct Told<T>(pub T);

impl<T: Serialize> IntoResponse for Told<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

pub(super) type Answer<T> = Result<Told<T>, Refusal>;

/// A request's body: text of at most [`MAX_ASK`] bytes.
pub(super) struct Text(pub String);

impl<S: Sync> FromRequest<S> for Text {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Text, Refusal> {
        let body = to_bytes(request.into_body(), MAX_ASK).await.map_err(|_| {
            let message = format!("the body is longer than {MAX_ASK} bytes, or was cut off");
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                message,
                "send it in several requests",
            )
        })?;
        let text = String::from_utf8(body.into());
        text.map(Text)
            .map_err(|_| Refusal::bad("the body is no UTF-8 text", "send JSON in UTF-8"))
    }
}

/// A request's body as JSON.
pub(super) struct Ask<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Ask<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Ask<T>, Refusal> {
        let Text(text) = Text::from_request(request, state).await?;
        serde_json::from_str(&text).map(Ask).map_err(|error| {
            Refusal::bad(
                format!("the body is not what is expected here: {error}"),
                "see /_caje/openapi.json, or use `caje`",
            )
        })
    }
}

/// A request's query.
pub(super) struct Asked<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asked<T>, Refusal> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        read.map(|Query(asked)| Asked(asked)).map_err(|error| {
            Refusal::bad(
                format!("the query is not what is expected here: {error}"),
                "see /_caje/openapi.json, or use `caje`",
            )
        })
    }
}
