//! Whether an answer says what the recorded one says, ids, times and tokens aside.
//!
//! Apart because "the same" has rules of its own: a recorded id must stand for one and the same id of the fake
//! through a whole group, so that "the id survives overwriting" is compared too.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

/// The recorded ids seen so far with what the fake has in their place.
#[derive(Default)]
pub struct Comparison {
    ids: HashMap<String, String>,
}

type Differs = Result<(), String>;

impl Comparison {
    pub fn value(&mut self, at: &str, recorded: &Value, actual: &Value) -> Differs {
        match (recorded, actual) {
            (Value::Object(fields), _) if fields.contains_key("array_length") => {
                self.excerpt(at, recorded, actual)
            }
            (Value::Object(fields), Value::Object(others)) => {
                let (mut names, mut other_names): (Vec<_>, Vec<_>) =
                    (fields.keys().collect(), others.keys().collect());
                names.sort();
                other_names.sort();
                if names != other_names {
                    return Err(format!("{at}: fields {names:?} recorded, {other_names:?} here"));
                }
                fields
                    .iter()
                    .try_for_each(|(name, value)| self.value(&format!("{at}.{name}"), value, &others[name]))
            }
            (Value::Array(items), Value::Array(others)) => {
                if items.len() != others.len() {
                    return Err(format!(
                        "{at}: {} items recorded, {} here: {actual}",
                        items.len(),
                        others.len()
                    ));
                }
                let mut pairs = items.iter().zip(others).enumerate();
                pairs.try_for_each(|(n, (item, other))| self.value(&format!("{at}[{n}]"), item, other))
            }
            (Value::String(text), Value::String(other)) => self.text(at, text, other),
            _ if recorded == actual => Ok(()),
            _ => Err(format!("{at}: {recorded} recorded, {actual} here")),
        }
    }

    /// Long lists are recorded as their length and their ends. Which rows come first is only compared where the
    /// route has an order (bulk delete has none and records one row, not a list).
    fn excerpt(&mut self, at: &str, recorded: &Value, actual: &Value) -> Differs {
        let list = actual.as_array().ok_or_else(|| format!("{at}: no list here"))?;
        if recorded["array_length"] != list.len() as u64 {
            return Err(format!("{at}: {} items recorded, {} here", recorded["array_length"], list.len()));
        }
        for (n, item) in recorded["first"].as_array().into_iter().flatten().enumerate() {
            self.value(&format!("{at}[{n}]"), item, &list[n])?;
        }
        match (recorded.get("last"), list.last()) {
            (Some(last), Some(other)) => self.value(&format!("{at}[last]"), last, other),
            _ => Ok(()),
        }
    }

    fn text(&mut self, at: &str, recorded: &str, actual: &str) -> Differs {
        let differs = || Err(format!("{at}: {recorded:?} recorded, {actual:?} here"));
        if recorded == actual {
            return Ok(());
        }
        if is_id(recorded) && is_id(actual) {
            let known = self.ids.entry(recorded.to_owned()).or_insert_with(|| actual.to_owned());
            return if known == actual { Ok(()) } else { Err(format!("{at}: id {known} became {actual}")) };
        }
        if is_time(recorded) && is_time(actual) || is_http_date(recorded) && is_http_date(actual) {
            return Ok(());
        }
        if let Some((before, after)) = recorded.split_once("<signed-token>") {
            let token = actual.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            return match token {
                Some(token) if token.split('.').count() == 3 => Ok(()),
                _ => differs(),
            };
        }
        if let Some((start, rest)) = recorded.split_once("...<")
            && let Some(length) = rest.split(' ').next().and_then(|digits| digits.parse::<usize>().ok())
        {
            return if actual.starts_with(start) && actual.len() == length { Ok(()) } else { differs() };
        }
        if let Some(length) = placeholder_length(recorded) {
            return if actual.len() == length { Ok(()) } else { differs() };
        }
        if let Some(id) = recorded.split('/').find(|part| is_id(part.split(' ').next().unwrap_or_default())) {
            // An internal path in a message: its last part is a fresh version.
            let id = id.split(' ').next().unwrap_or_default();
            let (before, after) = recorded.split_once(id).unwrap_or_default();
            let other = actual.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            return if other.is_some_and(is_id) { Ok(()) } else { differs() };
        }
        if at.ends_with("nextCursor") {
            return self.cursor(at, recorded, actual);
        }
        differs()
    }

    /// Cursors hold a time in one of their lines.
    fn cursor(&mut self, at: &str, recorded: &str, actual: &str) -> Differs {
        let lines = |text: &str| -> Vec<String> {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
        };
        let (recorded, actual) = (lines(recorded), lines(actual));
        for (n, line) in recorded.iter().enumerate() {
            let other = actual.get(n).map(String::as_str).unwrap_or_default();
            match (line.strip_prefix("a:"), other.strip_prefix("a:")) {
                (Some(time), Some(other)) => self.text(&format!("{at} time"), time, other)?,
                _ => self.text(&format!("{at} line"), line, other)?,
            }
        }
        Ok(())
    }
}

/// Bucket and key inside the last part of a resumable upload's URL, which is base64url of `bucket/key/version`.
pub fn upload_of(url: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(url.rsplit('/').next()?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (object, version) = text.rsplit_once('/')?;
    is_id(version).then(|| object.to_owned())
}

fn is_id(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::parse_str(text).is_ok()
}

fn is_time(text: &str) -> bool {
    text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[19] == b'.'
}

fn is_http_date(text: &str) -> bool {
    text.len() == 29 && text.ends_with(" GMT") && text.as_bytes()[3] == b','
}

fn placeholder_length(recorded: &str) -> Option<usize> {
    let inside = recorded.strip_prefix('<')?.strip_suffix('>')?;
    let (digits, what) = inside.split_once(' ')?;
    ["characters of object data", "binary bytes"].contains(&what).then(|| digits.parse().ok())?
}
