//! The loop of one connection and the table of routes.
//!
//! Apart because here, and only here, faults meet requests and answers meet the wire. No route's rules are here.

use std::sync::Arc;

use serde_json::json;

use super::exchange::{Exchange, bucket_and_key, decode};
use super::faults::{Effects, Fault, spoiled};
use super::read::Route;
use super::refusal::{self, Reply, Stop};
use super::wire::{After, Answer, Connection, Head, NoHead};
use super::{Shared, auth, buckets, change, list, read, resumable, sign, upload};

/// What of a refused body the server has already taken in when it stops reading.
const TAKEN_IN_BYTES: u64 = 128 * 1024;

/// Answers requests until the connection ends.
pub async fn serve(cloud: Arc<Shared>, mut connection: Connection) {
    loop {
        let head = match tokio::time::timeout(cloud.options.keep_alive, connection.read_head()).await {
            Ok(Ok(head)) => head,
            Ok(Err(NoHead::Gone)) | Err(_) => return,
            Ok(Err(NoHead::TooLarge)) => return say(&cloud, connection, refusal::headers_too_large()).await,
            Ok(Err(NoHead::Malformed)) => return say(&cloud, connection, refusal::bad_request_line()).await,
        };
        connection.read_rate = None;
        let seen = cloud.log.begin(&head);
        let fault = cloud.faults.pick(&head.method, &head.target);
        match step(&cloud, connection, head, fault, seen).await {
            Some(next) => connection = next,
            None => return,
        }
    }
}

/// An answer to something that was no request.
async fn say(cloud: &Shared, mut connection: Connection, answer: Answer) {
    let _ = answer.send(&mut connection, false, true, false).await;
    connection.finish(cloud.options.close_linger).await;
}

/// One request and its answer; gives the connection back when it goes on.
async fn step(
    cloud: &Arc<Shared>,
    mut connection: Connection,
    head: Head,
    fault: Option<Fault>,
    seen: usize,
) -> Option<Connection> {
    let canned = match &fault {
        Some(Fault::BlackHole) => {
            connection.hold().await;
            return None;
        }
        Some(Fault::ReadThenHang) => {
            while let Ok(Some(_)) = connection.read_body().await {
                cloud.log.body(seen, connection.body_bytes);
            }
            connection.hold().await;
            return None;
        }
        Some(Fault::ResetAfterRequestBytes(bytes)) => {
            while connection.body_bytes < *bytes {
                let Ok(Some(_)) = connection.read_body().await else { break };
            }
            cloud.log.body(seen, connection.body_bytes);
            connection.reset();
            return None;
        }
        Some(Fault::EarlyStatus(canned)) => {
            tokio::time::sleep(canned.delay).await;
            Some(canned.answer().after(After::Close))
        }
        Some(Fault::Status(canned)) => {
            while connection.read_body().await.ok()?.is_some() {}
            tokio::time::sleep(canned.delay).await;
            Some(canned.answer())
        }
        Some(Fault::SlowRead(rate)) => {
            connection.read_rate = Some(*rate);
            None
        }
        _ => None,
    };
    let answer = match canned {
        Some(answer) => answer,
        None => {
            let effects = Effects::of(fault.as_ref());
            let mut x = Exchange::new(cloud, &mut connection, head.clone(), effects);
            let answer = match route(&mut x).await {
                Ok(answer) => answer,
                Err(Stop::Refused(refusal)) => refusal.answer(),
                Err(Stop::Answered(answer)) => *answer,
                Err(Stop::Gone) => {
                    cloud.log.body(seen, connection.body_bytes);
                    return None;
                }
            };
            spoiled(answer, fault.as_ref())
        }
    };
    cloud.log.body(seen, connection.body_bytes);
    match &fault {
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::StoredThenReset) => {
            connection.reset();
            return None;
        }
        _ => {}
    }
    let close = head.wants_close() || answer.after == After::Close;
    let cut = matches!(fault, Some(Fault::HalfBody));
    let sent = answer.send(&mut connection, head.method == "HEAD", close && !cut, cut).await;
    cloud.log.end(seen, answer.status, connection.body_bytes);
    sent.ok()?;
    if close {
        connection.finish(cloud.options.close_linger).await;
        return None;
    }
    if answer.after == After::StopReading && !connection.drain(TAKEN_IN_BYTES).await.ok()? {
        // What the client still sends stays in the kernel's buffers until the server loses patience and resets.
        tokio::time::sleep(cloud.options.late_refusal_reset).await;
        connection.reset();
        return None;
    }
    while connection.read_body().await.ok()?.is_some() {}
    Some(connection)
}

async fn route(x: &mut Exchange<'_>) -> Reply {
    let path = x.path.clone();
    let method = x.head.method.clone();
    if decode(&path).is_none() {
        return Ok(refusal::bad_url(&path));
    }
    let reply = match (method.as_str(), path.as_str()) {
        ("GET", "/status") => Some(Ok(Answer::new(200))),
        ("GET", "/version") => Some(Ok(Answer::text(200, "text/plain; charset=utf-8", "1.11.2"))),
        ("GET", "/health") => Some(health(x)),
        _ => match path.strip_prefix("/object/") {
            Some(rest) => object(x, &method, rest).await,
            None if path.starts_with("/bucket") => bucket(x, &method, &path["/bucket".len()..]).await,
            None => resumable::handle(x).await,
        },
    };
    reply.unwrap_or_else(|| Ok(refusal::no_route(&method, &path)))
}

fn health(x: &Exchange<'_>) -> Reply {
    auth::bearer(x.header("authorization").unwrap_or_default())?;
    Ok(Answer::json(200, &json!({"healthy": true})))
}

async fn bucket(x: &mut Exchange<'_>, method: &str, rest: &str) -> Option<Reply> {
    let name = decode(rest.trim_matches('/'))?;
    Some(match (method, name.as_str()) {
        ("GET", "") => buckets::list(x),
        ("POST", "") => buckets::create(x).await,
        ("POST", name) => buckets::empty(x, name.strip_suffix("/empty")?).await,
        (_, name) if name.is_empty() || name.contains('/') => return None,
        ("GET", name) => buckets::get(x, name),
        ("PUT", name) => buckets::update(x, name).await,
        ("DELETE", name) => buckets::delete(x, name).await,
        _ => return None,
    })
}

/// Routes below `/object/`.
async fn object(x: &mut Exchange<'_>, method: &str, rest: &str) -> Option<Reply> {
    let (first, below) = rest.split_once('/').unwrap_or((rest, ""));
    Some(match (method, first) {
        ("POST", "move") if below.is_empty() => change::rename(x).await,
        ("POST", "copy") if below.is_empty() => change::copy(x).await,
        ("POST", "list") if !below.is_empty() => list::by_folder(x, &decode(below)?).await,
        ("POST", "list-v2") if !below.is_empty() => list::by_prefix(x, &decode(below)?).await,
        ("POST", "sign") => match below.split_once('/') {
            Some((bucket, raw_key)) => sign::one(x, &decode(bucket)?, raw_key).await,
            None => sign::many(x, &decode(below)?).await,
        },
        ("POST" | "PUT", "upload") => {
            let (bucket, key) = bucket_and_key(below.strip_prefix("sign/")?)?;
            match method {
                "POST" => sign::offer_upload(x, &bucket, &key).await,
                _ => sign::upload(x, bucket, key).await,
            }
        }
        ("POST" | "PUT", _) => {
            let (bucket, key) = bucket_and_key(rest)?;
            upload::plain(x, bucket, key).await
        }
        ("DELETE", _) => match bucket_and_key(rest) {
            Some((bucket, key)) => change::delete_one(x, &bucket, &key).await,
            None => change::delete_many(x, &decode(rest)?).await,
        },
        ("GET" | "HEAD", "sign") => {
            let (bucket, key) = bucket_and_key(below)?;
            sign::download(x, &bucket, &key)
        }
        ("GET" | "HEAD", "info") => {
            let (route, rest) = read_route(below);
            // Recorded: HEAD knows no public info route and takes the word for a bucket.
            let (route, rest) = if x.is_head() { (Route::Plain, below) } else { (route, rest) };
            let (bucket, key) = bucket_and_key(rest)?;
            read::info(x, route, &bucket, &key)
        }
        ("GET" | "HEAD", _) => {
            let (route, rest) = read_route(rest);
            let (bucket, key) = bucket_and_key(rest)?;
            read::download(x, route, &bucket, &key)
        }
        _ => return None,
    })
}

fn read_route(path: &str) -> (Route, &str) {
    match path.split_once('/') {
        Some(("public", rest)) => (Route::Public, rest),
        Some(("authenticated", rest)) => (Route::Authenticated, rest),
        _ => (Route::Plain, path),
    }
}
