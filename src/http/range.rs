//! Ranges and preconditions of a download (RFC 9110 sections 13 and 14): pure rules over header values.
//!
//! Apart from the handler because a wrong byte here is a broken seek bar or a corrupt resumed file. A header that is not
//! understood is ignored, as the RFC wants, with one exception that errs towards refusing: `If-Match`. Nothing here opens
//! files or knows status codes.

mod date;
#[cfg(test)]
mod tests;

use time::OffsetDateTime;

pub use date::{http_date, parse_http_date};

/// Which bytes answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeDecision {
    /// All of them, as if no range had been asked for.
    Whole,
    /// A part, both ends included, within the size.
    Partial {
        /// First byte.
        start: u64,
        /// Last byte.
        end_inclusive: u64,
    },
    /// None: the range lies behind the end.
    Unsatisfiable,
}

/// Decides what a `Range` header asks for, of `size` bytes.
///
/// Several ranges get the whole content: players ask for one, and a short request must not be able to make a long answer
/// out of overlapping pieces. Other units, malformed ranges and a stale `If-Range` get the whole content too.
pub fn decide(
    range: Option<&str>,
    if_range: Option<&str>,
    size: u64,
    etag: Option<&str>,
    last_modified: Option<OffsetDateTime>,
) -> RangeDecision {
    match range.and_then(single_range) {
        Some(range) if if_range.is_none_or(|validator| is_current(validator, etag, last_modified)) => {
            range.of(size)
        }
        _ => RangeDecision::Whole,
    }
}

#[derive(Clone, Copy)]
enum Asked {
    /// From a byte, to another one or the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

impl Asked {
    fn of(self, size: u64) -> RangeDecision {
        let Some(last) = size.checked_sub(1) else {
            // Of nothing, everything can be given as the last bytes, but no partial answer could say so.
            return match self {
                Self::Last(1..) => RangeDecision::Whole,
                _ => RangeDecision::Unsatisfiable,
            };
        };
        match self {
            Self::From(start, end) if start <= last => {
                RangeDecision::Partial { start, end_inclusive: end.map_or(last, |end| end.min(last)) }
            }
            Self::Last(count @ 1..) => {
                RangeDecision::Partial { start: size.saturating_sub(count), end_inclusive: last }
            }
            _ => RangeDecision::Unsatisfiable,
        }
    }
}

fn single_range(header: &str) -> Option<Asked> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Lists may have empty elements (RFC 9110 section 5.6.1).
    let mut specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
    let (spec, None) = (specs.next()?, specs.next()) else { return None };
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", last) => Some(Asked::Last(digits(last)?)),
        (first, "") => Some(Asked::From(digits(first)?, None)),
        (first, last) => {
            let (first, last) = (digits(first)?, digits(last)?);
            (first <= last).then_some(Asked::From(first, Some(last)))
        }
    }
}

/// A number of any length; what does not fit is larger than any file.
fn digits(text: &str) -> Option<u64> {
    let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `If-Range`: strong comparison of tags, exact comparison of dates (RFC 9110 section 13.1.5).
fn is_current(validator: &str, etag: Option<&str>, last_modified: Option<OffsetDateTime>) -> bool {
    if let Some((tag, "")) = entity_tag(validator.trim()) {
        return etag.is_some_and(|etag| strongly_equal(tag, etag));
    }
    let date = parse_http_date(validator.trim());
    date.is_some_and(|date| {
        last_modified.is_some_and(|modified| whole_seconds(modified) == whole_seconds(date))
    })
}

/// Whether a `GET` or `HEAD` can be answered with "not modified".
///
/// `If-None-Match` compares weakly and, where it is present, `If-Modified-Since` is ignored (RFC 9110 section 13.2.2).
pub fn not_modified(
    if_none_match: Option<&str>,
    if_modified_since: Option<&str>,
    etag: Option<&str>,
    last_modified: Option<OffsetDateTime>,
) -> bool {
    match if_none_match {
        Some(tags) => any_tag(tags, etag, weakly_equal),
        None => {
            let since = if_modified_since.and_then(|date| parse_http_date(date.trim()));
            since.is_some_and(|since| {
                last_modified.is_some_and(|modified| whole_seconds(modified) <= whole_seconds(since))
            })
        }
    }
}

/// Whether a request must be refused because the content is not the one its sender expects.
///
/// `If-Match` compares strongly and, where it is present, `If-Unmodified-Since` is ignored. The content is taken to exist.
pub fn precondition_failed(
    if_match: Option<&str>,
    if_unmodified_since: Option<&str>,
    etag: Option<&str>,
    last_modified: Option<OffsetDateTime>,
) -> bool {
    match if_match {
        Some(tags) => !any_tag(tags, etag, strongly_equal),
        None => {
            let since = if_unmodified_since.and_then(|date| parse_http_date(date.trim()));
            since.is_some_and(|since| {
                last_modified.is_some_and(|modified| whole_seconds(modified) > whole_seconds(since))
            })
        }
    }
}

/// Headers carry whole seconds only.
fn whole_seconds(time: OffsetDateTime) -> i64 {
    time.unix_timestamp()
}

fn any_tag(list: &str, etag: Option<&str>, equal: fn(&str, &str) -> bool) -> bool {
    let mut rest = list.trim();
    if rest == "*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    // Tags may contain commas, so the list is walked tag by tag; what comes before a malformed one counts.
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((tag, after)) = entity_tag(rest) else { return false };
        if equal(tag, etag) {
            return true;
        }
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.starts_with(',') {
            return false;
        }
    }
}

/// The entity tag a text begins with, and the rest.
fn entity_tag(text: &str) -> Option<(&str, &str)> {
    let opaque = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?;
    let len = opaque.find('"')?;
    let valid = opaque[..len].bytes().all(|byte| byte == 0x21 || (byte >= 0x23 && byte != 0x7f));
    valid.then(|| text.split_at(text.len() - opaque.len() + len + 1))
}

fn weakly_equal(a: &str, b: &str) -> bool {
    a.strip_prefix("W/").unwrap_or(a) == b.strip_prefix("W/").unwrap_or(b)
}

fn strongly_equal(a: &str, b: &str) -> bool {
    !a.starts_with("W/") && a == b
}
