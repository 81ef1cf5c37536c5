//! Signed URLs: made one by one or many at once, used to download, made and used to upload.
//!
//! Apart because a token in the query takes the place of the bearer. What is then read or stored is not told here.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::auth::{self, Who, now_unix};
use super::exchange::{Exchange, decode};
use super::project::check_bucket_name;
use super::read;
use super::refusal::{self, Refusal, Reply};
use super::upload::{self, Target};
use super::wire::Answer;

/// The latest moment JavaScript can name, in seconds.
const END_OF_TIME: i64 = 8_640_000_000_000;

/// `POST /object/sign/{bucket}/{key}`; `raw_key` is the key as it stood in the path.
pub async fn one(x: &mut Exchange<'_>, bucket: &str, raw_key: &str) -> Reply {
    let body = x.object(&["expiresIn"]).await?;
    let who = x.who()?;
    let lifetime = lifetime(&body)?;
    let key = decode(raw_key).unwrap_or_default();
    x.project().visible(&who, bucket, &key).ok_or_else(refusal::no_key)?;
    // The server decodes here with decodeURI, which leaves the escapes of reserved characters alone.
    let key = decode_uri(raw_key);
    Ok(Answer::json(200, &json!({"signedURL": download_url(bucket, &key, lifetime)})))
}

/// `POST /object/sign/{bucket}` with many paths.
pub async fn many(x: &mut Exchange<'_>, bucket: &str) -> Reply {
    let body = x.object(&["expiresIn", "paths"]).await?;
    let who = x.who()?;
    let lifetime = lifetime(&body)?;
    let paths: Vec<&str> = body["paths"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    bounded("paths", paths.len(), Some(1000))?;
    let project = x.project();
    let rows: Vec<Value> = paths
        .iter()
        .map(|path| match project.visible(&who, bucket, path) {
            Some(_) => {
                json!({"error": null, "path": path, "signedURL": download_url(bucket, path, lifetime)})
            }
            None => json!({"error": "Either the object does not exist or you do not have access to it",
                "path": path, "signedURL": null}),
        })
        .collect();
    Ok(Answer::json(200, &Value::Array(rows)))
}

/// `GET` and `HEAD` on `/object/sign/{bucket}/{key}?token=`.
pub fn download(x: &Exchange<'_>, bucket: &str, key: &str) -> Reply {
    let claims = token_claims(x, bucket, key, "download")?;
    let row = x.project().row(bucket, key).cloned().ok_or_else(refusal::no_key)?;
    let expires = claims["exp"].as_i64().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    Ok(read::serve(x, &row, expires.or(Some(OffsetDateTime::now_utc())))?)
}

/// `POST /object/upload/sign/{bucket}/{key}`: no check of the key, on purpose.
pub async fn offer_upload(x: &mut Exchange<'_>, bucket: &str, key: &str) -> Reply {
    x.json().await?;
    let who = x.who()?;
    check_bucket_name(bucket)?;
    let upsert = x.upsert();
    let project = x.project();
    if project.bucket(bucket).is_none() {
        return Err(refusal::no_related().into());
    }
    project.may_create(&who, bucket, key, upsert)?;
    let now = now_unix();
    let claims = json!({"iat": now, "exp": now + x.cloud.options.signed_upload_seconds, "scope": "upload",
        "upsert": upsert, "url": format!("{bucket}/{key}"), "owner": who.subject});
    let token = auth::sign(&claims);
    let url = format!("/object/upload/sign/{bucket}/{key}?token={token}");
    Ok(Answer::json(200, &json!({"url": url, "token": token})))
}

/// `PUT /object/upload/sign/{bucket}/{key}?token=`.
pub async fn upload(x: &mut Exchange<'_>, bucket: String, key: String) -> Reply {
    let claims = token_claims(x, &bucket, &key, "upload")?;
    let upsert = claims["upsert"].as_bool().unwrap_or(false);
    let who = Who { subject: claims["owner"].as_str().map(str::to_owned), ..Who::service() };
    upload::receive(x, Target { who, bucket, key, upsert, signed: true }).await
}

fn token_claims(x: &Exchange<'_>, bucket: &str, key: &str, scope: &str) -> Result<Value, Refusal> {
    let token = x
        .parameter("token")
        .ok_or_else(|| refusal::schema("querystring must have required property 'token'"))?;
    let claims = auth::verify(&token).map_err(refusal::invalid_jwt)?;
    if claims["url"].as_str() != Some(&format!("{bucket}/{key}")) {
        return Err(refusal::invalid_signature("Invalid signature"));
    }
    if claims["scope"].as_str() != Some(scope) {
        return Err(refusal::invalid_signature(&format!("Token is not scoped for {scope}")));
    }
    Ok(claims)
}

fn download_url(bucket: &str, key: &str, lifetime: i64) -> String {
    let now = now_unix();
    let claims =
        json!({"iat": now, "exp": now + lifetime, "scope": "download", "url": format!("{bucket}/{key}")});
    format!("/object/sign/{bucket}/{key}?token={}", auth::sign(&claims))
}

/// Seconds; text that is a number counts as one.
fn lifetime(body: &Value) -> Result<i64, Refusal> {
    let value = match &body["expiresIn"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        value => value.clone(),
    };
    let seconds = value.as_i64().ok_or_else(|| refusal::schema("body/expiresIn must be integer"))?;
    if seconds < 1 {
        return Err(refusal::schema("body/expiresIn must be >= 1"));
    }
    if seconds > END_OF_TIME - now_unix() {
        return Err(refusal::invalid_parameter("expiresIn"));
    }
    Ok(seconds)
}

/// The validator's words for lists that are too short or too long.
pub fn bounded(name: &str, length: usize, most: Option<usize>) -> Result<(), Refusal> {
    if length == 0 {
        return Err(refusal::schema(format!("body/{name} must NOT have fewer than 1 items")));
    }
    match most {
        Some(most) if length > most => {
            Err(refusal::schema(format!("body/{name} must NOT have more than {most} items")))
        }
        _ => Ok(()),
    }
}

/// JavaScript's decodeURI: everything is decoded but the escapes of `; / ? : @ & = + $ , #`.
fn decode_uri(text: &str) -> String {
    let mut protected = text.to_owned();
    for reserved in ";/?:@&=+$,#".chars() {
        for escape in [format!("%{:02X}", reserved as u32), format!("%{:02x}", reserved as u32)] {
            protected = protected.replace(&escape, &escape.replace('%', "%25"));
        }
    }
    percent_decode_str(&protected).decode_utf8_lossy().into_owned()
}

/// A token as signed uploads carry it, for the resumable route.
pub fn upload_claims(token: &str) -> Result<Value, &'static str> {
    auth::verify(token)
}

/// Whether the claims are for uploading exactly this object.
pub fn claims_fit(claims: &Value, bucket: &str, key: &str) -> bool {
    claims["url"].as_str() == Some(&format!("{bucket}/{key}")) && claims["scope"].as_str() == Some("upload")
}
