//! The bucket routes: create, get, list, update, empty, delete.
//!
//! Apart as one resource of the API. No object's rules may be here.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::exchange::Exchange;
use super::project::{Bucket, check_bucket_name};
use super::refusal::{self, Refusal, Reply};
use super::wire::Answer;

pub async fn create(x: &mut Exchange<'_>) -> Reply {
    let body = x.object(&[]).await?;
    let who = x.who()?;
    let Some(name) = body["name"].as_str() else {
        return Err(refusal::schema("body must have required property 'name'").into());
    };
    check_bucket_name(name)?;
    let mut bucket = Bucket::new(name, body["public"].as_bool().unwrap_or(false));
    apply(&mut bucket, &body, x.cloud.options.global_limit)?;
    if !who.is_service() {
        return Err(refusal::policy().into());
    }
    let mut project = x.project();
    if project.bucket(name).is_some() {
        return Err(refusal::duplicate("BucketAlreadyExists").into());
    }
    project.buckets.push(bucket);
    Ok(Answer::json(200, &json!({"name": name})))
}

pub fn get(x: &Exchange<'_>, name: &str) -> Reply {
    let who = x.who()?;
    let project = x.project();
    let bucket = project.bucket(name).filter(|_| who.is_service()).ok_or_else(refusal::no_bucket)?;
    Ok(Answer::json(200, &bucket.shown()))
}

pub fn list(x: &Exchange<'_>) -> Reply {
    let who = x.who()?;
    let project = x.project();
    let search = x.parameter("search").unwrap_or_default().to_lowercase();
    let mut found: Vec<&Bucket> = project
        .buckets
        .iter()
        .filter(|bucket| who.is_service() && bucket.name.to_lowercase().contains(&search))
        .collect();
    match x.parameter("sortColumn").as_deref() {
        Some("name") => found.sort_by(|a, b| a.name.cmp(&b.name)),
        Some("updated_at") => found.sort_by_key(|bucket| bucket.updated_at),
        _ => {}
    }
    if x.parameter("sortOrder").as_deref() == Some("desc") {
        found.reverse();
    }
    let number = |name: &str| x.parameter(name).and_then(|text| text.parse::<usize>().ok());
    let page =
        found.into_iter().skip(number("offset").unwrap_or(0)).take(number("limit").unwrap_or(usize::MAX));
    let shown: Vec<Value> = page
        .map(|bucket| {
            let mut shown = bucket.shown();
            shown["type"] = json!("STANDARD");
            shown
        })
        .collect();
    Ok(Answer::json(200, &Value::Array(shown)))
}

pub async fn update(x: &mut Exchange<'_>, name: &str) -> Reply {
    let body = x.object(&[]).await?;
    let who = x.who()?;
    let names = ["public", "file_size_limit", "allowed_mime_types"];
    if !names.iter().any(|name| body.get(name).is_some()) {
        let missing: Vec<String> =
            names.iter().map(|name| format!("body must have required property '{name}'")).collect();
        return Err(refusal::schema(missing.join(", ") + ", body must match a schema in anyOf").into());
    }
    let global_limit = x.cloud.options.global_limit;
    let mut project = x.project();
    let bucket = project.bucket_mut(name).filter(|_| who.is_service()).ok_or_else(refusal::no_bucket)?;
    apply(bucket, &body, global_limit)?;
    if let Some(public) = body["public"].as_bool() {
        bucket.public = public;
    }
    bucket.updated_at = OffsetDateTime::now_utc();
    Ok(Answer::json(200, &json!({"message": "Successfully updated"})))
}

pub async fn empty(x: &mut Exchange<'_>, name: &str) -> Reply {
    x.json().await?;
    let who = x.who()?;
    let mut project = x.project();
    let bucket = project.bucket_mut(name).filter(|_| who.is_service()).ok_or_else(refusal::no_bucket)?;
    bucket.rows.clear();
    Ok(Answer::json(
        200,
        &json!({"message": "Empty bucket has been queued. Completion may take up to an hour."}),
    ))
}

pub async fn delete(x: &mut Exchange<'_>, name: &str) -> Reply {
    x.json().await?;
    let who = x.who()?;
    let mut project = x.project();
    let bucket = project.bucket(name).filter(|_| who.is_service()).ok_or_else(refusal::no_bucket)?;
    if !bucket.rows.is_empty() {
        return Err(refusal::bucket_not_empty().into());
    }
    project.buckets.retain(|bucket| bucket.name != name);
    Ok(Answer::json(200, &json!({"message": "Successfully deleted"})))
}

/// Takes over the limits a body names; null clears them.
fn apply(bucket: &mut Bucket, body: &Value, global_limit: u64) -> Result<(), Refusal> {
    if let Some(limit) = body.get("file_size_limit") {
        let limit = if limit.is_null() { None } else { Some(parse_limit(limit)?) };
        if limit.is_some_and(|limit| limit > global_limit) {
            return Err(refusal::too_large());
        }
        bucket.file_size_limit = limit;
    }
    if let Some(types) = body.get("allowed_mime_types") {
        let types: Option<Vec<String>> =
            types.as_array().map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        for mime in types.iter().flatten() {
            if !is_mime_type(mime) {
                return Err(refusal::mime_type(mime));
            }
        }
        bucket.allowed_mime_types = types;
    }
    Ok(())
}

/// Bytes as a number, or text with a decimal unit: gb, mb, kb, b in any case.
fn parse_limit(limit: &Value) -> Result<u64, Refusal> {
    let refused = || {
        refusal::schema(
            "body/file_size_limit must be integer, body/file_size_limit must pass \"finite\" keyword validation, \
             body/file_size_limit must match pattern \
             \"^[0-9]+(?:\\.[0-9]+)?(?:[gG][bB]|[mM][bB]|[kK][bB]|[bB])$\", \
             body/file_size_limit must match a schema in anyOf",
        )
    };
    if let Some(bytes) = limit.as_u64() {
        return Ok(bytes);
    }
    let text = limit.as_str().ok_or_else(refused)?.to_ascii_lowercase();
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    for (unit, factor) in [("gb", 1e9), ("mb", 1e6), ("kb", 1e3), ("b", 1.0)] {
        if let Some(number) = text.strip_suffix(unit)
            && number.chars().all(|c| c.is_ascii_digit() || c == '.')
        {
            return number.parse::<f64>().map(|number| (number * factor) as u64).map_err(|_| refused());
        }
    }
    Err(refused())
}

/// Whether text has the form `type/subtype`, parameters allowed.
pub fn is_mime_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.split_once('/').is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty())
}
