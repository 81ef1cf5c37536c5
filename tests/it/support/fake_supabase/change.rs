//! Deleting one or many, moving, copying.
//!
//! Apart as the routes that change rows without bringing bytes. Uploads are not here.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::auth::Right;
use super::exchange::Exchange;
use super::project::{check_backend, check_key, new_id};
use super::refusal::{self, Reply};
use super::sign::bounded;
use super::upload::metadata_header;
use super::wire::Answer;

pub async fn delete_one(x: &mut Exchange<'_>, bucket: &str, key: &str) -> Reply {
    x.json().await?;
    let who = x.who()?;
    let keeps = x.effects.delete_keeps;
    let mut project = x.project();
    if project.row(bucket, key).is_none() {
        return Err(refusal::no_key().into());
    }
    if !project.may(&who, Right::Delete, bucket, key) {
        return Err(refusal::access_denied("Access denied").into());
    }
    if let Some(bucket) = project.bucket_mut(bucket).filter(|_| !keeps) {
        bucket.rows.remove(key);
    }
    Ok(Answer::json(200, &json!({"message": "Successfully deleted"})))
}

pub async fn delete_many(x: &mut Exchange<'_>, bucket: &str) -> Reply {
    let body = x.object(&["prefixes"]).await?;
    let who = x.who()?;
    let keys: Vec<&str> =
        body["prefixes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    bounded("prefixes", keys.len(), None)?;
    let keeps = x.effects.delete_keeps;
    let mut project = x.project();
    let mut deleted = Vec::new();
    let mut asked = BTreeSet::new();
    for key in keys.into_iter().filter(|key| asked.insert(*key)) {
        if !project.may(&who, Right::Delete, bucket, key) {
            continue;
        }
        let Some(rows) = project.bucket_mut(bucket).map(|bucket| &mut bucket.rows) else { continue };
        let row = if keeps { rows.get(key).cloned() } else { rows.remove(key) };
        deleted.extend(row.map(|row| row.full(bucket, key)));
    }
    Ok(Answer::json(200, &Value::Array(deleted)))
}

/// From where to where, as move and copy name it.
struct Way {
    bucket: String,
    source: String,
    to_bucket: String,
    destination: String,
}

fn way(body: &Value) -> Way {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let to_bucket = body["destinationBucket"].as_str().map(str::to_owned);
    Way {
        to_bucket: to_bucket.unwrap_or_else(|| text("bucketId")),
        bucket: text("bucketId"),
        source: text("sourceKey"),
        destination: text("destinationKey"),
    }
}

pub async fn rename(x: &mut Exchange<'_>) -> Reply {
    let body = x.object(&["bucketId", "sourceKey", "destinationKey"]).await?;
    let who = x.who()?;
    let way = way(&body);
    check_key(&way.destination)?;
    let version = new_id();
    check_backend("stub/storage-single-tenant", &way.to_bucket, &way.destination, &version)?;
    let mut project = x.project();
    let seen = project.visible(&who, &way.bucket, &way.source).cloned();
    let mut row = seen
        .filter(|_| project.may(&who, Right::Update, &way.bucket, &way.source))
        .ok_or_else(refusal::no_key)?;
    if project.bucket(&way.to_bucket).is_none() {
        return Err(refusal::no_related().into());
    }
    let moved = Answer::json(200, &json!({"message": "Successfully moved"}));
    if way.bucket == way.to_bucket && way.source == way.destination {
        return Ok(moved);
    }
    if project.row(&way.to_bucket, &way.destination).is_some() {
        return Err(refusal::duplicate("ResourceAlreadyExists").into());
    }
    row.version = version;
    row.updated_at = OffsetDateTime::now_utc();
    for (bucket, key, row) in
        [(&way.bucket, &way.source, None), (&way.to_bucket, &way.destination, Some(row))]
    {
        if let Some(bucket) = project.bucket_mut(bucket) {
            match row {
                Some(row) => bucket.rows.insert(key.clone(), row),
                None => bucket.rows.remove(key),
            };
        }
    }
    Ok(moved)
}

pub async fn copy(x: &mut Exchange<'_>) -> Reply {
    let body = x.object(&["bucketId", "sourceKey", "destinationKey"]).await?;
    let who = x.who()?;
    let way = way(&body);
    check_key(&way.destination)?;
    let version = new_id();
    check_backend("stub/storage-single-tenant", &way.to_bucket, &way.destination, &version)?;
    let (upsert, metadata) = (x.upsert(), x.header("x-metadata").map(str::to_owned));
    let mut project = x.project();
    let source = project.visible(&who, &way.bucket, &way.source).cloned().ok_or_else(refusal::no_key)?;
    if project.bucket(&way.to_bucket).is_none() {
        return Err(refusal::no_related().into());
    }
    project.may_create(&who, &way.to_bucket, &way.destination, upsert)?;
    let mut about = source.about.clone();
    about.owner_id = who.subject.clone();
    if body["copyMetadata"] == json!(false) {
        about.user_metadata = metadata_header(metadata.as_deref());
        if let Some(value) = body["metadata"]["cacheControl"].as_str() {
            about.cache_control = value.to_owned();
        }
        if let Some(value) = body["metadata"]["mimetype"].as_str() {
            about.content_type = value.to_owned();
        }
    }
    let row = project.commit(&way.to_bucket, &way.destination, version, about, source.blob.clone())?;
    let mut shown = row.full(&way.to_bucket, &way.destination);
    shown["Key"] = json!(format!("{}/{}", way.to_bucket, way.destination));
    shown["Id"] = json!(row.id);
    Ok(Answer::json(200, &shown))
}
