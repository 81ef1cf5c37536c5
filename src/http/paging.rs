//! What the lists have in common: the query's page, filters, and the link to the next page.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::problem::Problem;
use crate::domain::page::PageRequest;

/// A page of a list.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Rows on the page, 1 to 1000; 100 if absent
    pub(super) limit: Option<String>,
    /// `next_cursor` of the page before
    pub(super) cursor: Option<String>,
}

impl PageQuery {
    pub(super) fn parse(&self) -> Result<PageRequest, Problem> {
        Ok(PageRequest::parse(self.limit.as_deref(), self.cursor.as_deref())?)
    }
}

/// Says where the next page is, as RFC 8288 does; relative, so that it holds behind any proxy. `filters` are the
/// query's other fields.
pub(super) fn with_next_link(
    body: impl IntoResponse,
    path: &str,
    filters: &[(&str, &Option<String>)],
    limit: &Option<String>,
    next: Option<&str>,
) -> Response {
    let mut response = body.into_response();
    if let Some(cursor) = next {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in filters.iter().chain([&("limit", limit)]) {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.append_pair("cursor", cursor);
        if let Ok(link) = HeaderValue::from_str(&format!("<{path}?{}>; rel=\"next\"", query.finish())) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

/// A filter's text as it is; no text that is kept has control characters, and PostgreSQL takes no NUL.
pub(super) fn plain(name: &str, text: &Option<String>) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.chars().any(char::is_control) => {
            Err(filter_invalid(format!("{name} has no control characters.")))
        }
        text => Ok(text.clone()),
    }
}

/// One of a filter's words, or what the words are.
pub(super) fn one_of<T>(
    name: &str,
    text: &Option<String>,
    parse: impl Fn(&str) -> Option<T>,
    words: &str,
) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| filter_invalid(format!("{name} is one of: {words}.")))
}

pub(super) fn filter_invalid(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "filter_invalid", detail)
}
