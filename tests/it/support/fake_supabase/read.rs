//! Downloads, HEAD and info on the plain, public, authenticated and signed routes.
//!
//! Apart as the reading half of the object API. Nothing here changes the project.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::{OffsetDateTime, PrimitiveDateTime};

use super::auth::{self, Right};
use super::exchange::Exchange;
use super::project::{HTTP_DATE, Row, check_key, http_date};
use super::refusal::{self, Refusal, Reply};
use super::wire::{Answer, Content};

/// What JavaScript's encodeURIComponent leaves alone.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// By which route an object is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Route {
    Plain,
    Public,
    Authenticated,
}

pub fn download(x: &Exchange<'_>, route: Route, bucket: &str, key: &str) -> Reply {
    let row = find(x, route, bucket, key)?;
    Ok(serve(x, &row, None)?)
}

pub fn info(x: &Exchange<'_>, route: Route, bucket: &str, key: &str) -> Reply {
    let row = find(x, route, bucket, key)?;
    let answer = Answer::json(200, &row.info(bucket, key));
    Ok(answer
        .with("etag", row.etag())
        .with("last-modified", http_date(row.updated_at))
        .with("cache-control", row.about.cache_control.clone()))
}

/// The row, if this route may show it to this bearer.
fn find(x: &Exchange<'_>, route: Route, bucket: &str, key: &str) -> Result<Row, Refusal> {
    let who = match route {
        Route::Authenticated => Some(x.who()?),
        Route::Plain => x.who_if_valid().map(auth::known).transpose()?,
        Route::Public => None,
    };
    let project = x.project();
    let public = match project.bucket(bucket) {
        Some(bucket) => bucket.public,
        // Recorded; the server's two look-ups race here.
        None if route == Route::Public => return Err(refusal::no_key()),
        None => return Err(refusal::no_bucket()),
    };
    if !public && who.is_none() {
        return Err(refusal::no_bucket());
    }
    check_key(key)?;
    let row = project.row(bucket, key).ok_or_else(refusal::no_key)?;
    let allowed = public || who.is_some_and(|who| project.may(&who, Right::Select, bucket, key));
    if allowed { Ok(row.clone()) } else { Err(refusal::no_key()) }
}

/// The object itself, whole or in part. `expires` is set on signed routes, where it replaces Cache-Control.
pub fn serve(x: &Exchange<'_>, row: &Row, expires: Option<OffsetDateTime>) -> Result<Answer, Refusal> {
    let mut cache_control = row.about.cache_control.clone();
    let mut status = 200;
    let (mut start, mut length) = (0, row.blob.size);
    let mut range = None;
    // HEAD is answered from the database alone and knows neither conditions nor ranges.
    if !x.is_head() {
        if let Some(tag) = x.header("if-none-match") {
            if tag == row.etag() {
                status = 304;
            } else {
                cache_control.push_str(", stale-while-revalidate=30");
            }
        } else if let Some(since) = x.header("if-modified-since").and_then(parse_http_date)
            && since >= row.updated_at
        {
            status = 304;
        }
        if status == 200
            && let Some(wanted) = x.header("range")
        {
            (start, length) = parse_range(wanted, row.blob.size).ok_or_else(refusal::invalid_range)?;
            range = Some(format!("bytes {start}-{}/{}", start + length - 1, row.blob.size));
            status = 206;
        }
        if status != 304 && !row.blob.is_kept() {
            return Err(refusal::internal());
        }
    }
    let content_type = match row.about.content_type.as_str() {
        html if html.starts_with("text/html") => "text/plain",
        other => other,
    };
    let mut answer = Answer::new(status)
        .with("accept-ranges", "bytes")
        .with("content-type", content_type)
        .with("etag", row.etag())
        .with("x-robots-tag", row.about.robots.as_deref().unwrap_or("none"))
        .with("last-modified", http_date(row.updated_at));
    answer = match expires {
        Some(at) => answer.with("expires", http_date(at)),
        None => answer.with("cache-control", cache_control),
    };
    if let Some(range) = range {
        answer = answer.with("content-range", range);
    }
    if let Some(name) = x.parameter("download") {
        answer = answer.with("content-disposition", disposition(&name));
    }
    if status == 304 {
        return Ok(answer.with("content-length", "0"));
    }
    answer.content = Content::Blob { blob: row.blob.clone(), start, length };
    Ok(answer)
}

fn disposition(name: &str) -> String {
    if name.is_empty() {
        return "attachment;".to_owned();
    }
    let name = utf8_percent_encode(name, COMPONENT);
    format!("attachment; filename={name}; filename*=UTF-8''{name}")
}

fn parse_http_date(text: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(text, HTTP_DATE).ok().map(PrimitiveDateTime::assume_utc)
}

/// Start and length of one `bytes=` range; `None` for everything the file backend refuses.
fn parse_range(header: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    if size == 0 {
        return None;
    }
    let (start, end) = match (first, last) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok().filter(|n| *n > 0)?), size - 1),
        (first, "") => (first.parse().ok()?, size - 1),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.min(size - 1)),
    };
    (start < size && start <= end).then(|| (start, end - start + 1))
}
