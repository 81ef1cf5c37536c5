//! Replays recorded cases of one group against a fake, in their order, and collects every difference.
//!
//! Apart from the groups themselves, which say what must be there first and what is left out.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::bodies::{self, Body};
use super::compare::{Comparison, upload_of};
use super::raw_client::{self, Received};
use crate::support::fake_supabase::FakeSupabase;

/// IMF-fixdate, RFC 9110 section 5.6.7.
const HTTP_DATE: &[time::format_description::FormatItem<'_>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
/// Uploads the recordings ask for although nobody ever created them.
const UNKNOWN: &[&str] = &["private-recordings/x", "private-recordings/tus/none.webm"];
/// Longer than any test: tokens that should hold.
const FAR: i64 = 4_000_000_000;

/// One fake with the cases played on it so far.
pub struct Replay {
    pub cloud: FakeSupabase,
    comparison: Comparison,
    /// The last token the fake gave out for a path without query.
    tokens: HashMap<String, String>,
    /// The fake's upload URL paths for the recorded ones.
    uploads: HashMap<String, String>,
    /// The second in which `dl/priv.webm` was stored, and the next.
    stored: Option<(String, String)>,
    pub differences: Vec<String>,
    pub played: usize,
}

impl Replay {
    pub fn new(cloud: FakeSupabase) -> Self {
        Replay {
            cloud,
            comparison: Comparison::default(),
            tokens: HashMap::new(),
            uploads: HashMap::new(),
            stored: None,
            differences: Vec::new(),
            played: 0,
        }
    }

    /// Creates the resumable uploads that the cases use without showing how they were created.
    pub async fn create_hidden_uploads(&mut self, cases: &[&Value]) {
        let created: HashSet<&str> = cases
            .iter()
            .filter_map(|case| case["response"]["headers"]["location"].as_str()?.rsplit('/').next())
            .collect();
        for case in cases {
            let path = case["request"]["path"].as_str().unwrap_or_default();
            let Some(id) =
                path.strip_prefix("/upload/resumable/").map(|rest| rest.trim_start_matches("sign/"))
            else {
                continue;
            };
            let Some(object) =
                upload_of(id).filter(|_| !created.contains(id) && !self.uploads.contains_key(id))
            else {
                continue;
            };
            if UNKNOWN.contains(&object.as_str()) {
                continue;
            }
            let (bucket, key) = object.split_once('/').expect("bucket and key");
            let length = if key.contains("resume") { 3_000_000 } else { 10 };
            let encode =
                |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
            let metadata = format!(
                "bucketName {},objectName {},contentType dmlkZW8vd2VibQ==,cacheControl MzYwMA==,metadata eyJ0YWtlIjoxfQ==",
                encode(bucket),
                encode(key)
            );
            let headers = self
                .headers(&json!({"Authorization": "Bearer <service-role-jwt>", "Tus-Resumable": "1.0.0",
                "Upload-Length": length.to_string(), "Upload-Metadata": metadata}));
            let answer = self.exchange("POST", "/upload/resumable", &headers, Body::None, false).await;
            let answer = answer.expect("answered");
            assert_eq!(answer.status, 201, "{object}: {}", String::from_utf8_lossy(&answer.body));
            let location = answer.header("location").expect("a location").to_owned();
            self.uploads.insert(id.to_owned(), location.rsplit('/').next().expect("an id").to_owned());
        }
    }

    /// Finds out when `dl/priv.webm` was stored: the conditional cases name that second and the one after it.
    pub async fn time_conditions(&mut self) {
        let headers = self.headers(&json!({"Authorization": "Bearer <service-role-jwt>"}));
        let path = "/object/private-recordings/dl/priv.webm";
        let answer = self.exchange("HEAD", path, &headers, Body::None, false).await.expect("answered");
        let stored = answer.header("last-modified").expect("a date").to_owned();
        let at = time::PrimitiveDateTime::parse(&stored, HTTP_DATE).expect("a date");
        let later = (at + time::Duration::SECOND).format(HTTP_DATE).expect("a date");
        self.stored = Some((stored, later));
    }

    /// Sends bytes to an upload of the recordings without comparing the answer.
    pub async fn append(&mut self, recorded_id: &str, offset: u64, bytes: &[u8]) {
        let id = self.uploads.get(recorded_id).expect("a known upload").clone();
        let headers = self
            .headers(&json!({"Authorization": "Bearer <service-role-jwt>", "Tus-Resumable": "1.0.0",
            "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset.to_string()}));
        let path = format!("/upload/resumable/{id}");
        let answer = self.exchange("PATCH", &path, &headers, Body::Plain(bytes.to_vec()), false).await;
        assert_eq!(answer.expect("answered").status, 204);
    }

    /// Plays one case and notes what differs.
    pub async fn play(&mut self, case: &Value) {
        let (name, request, recorded) =
            (case["name"].as_str().unwrap_or_default(), &case["request"], &case["response"]);
        let method = request["method"].as_str().unwrap_or_default();
        let path = lengthened(request["path"].as_str().unwrap_or_default(), recorded["body"]["Key"].as_str());
        let path = self.path(name, method, path);
        let mut headers = self.headers(&request["headers"]);
        if name.ends_with(", multipart") && request["headers"].get("Content-Type").is_none() {
            headers.push(("Content-Type".to_owned(), bodies::FORM_TYPE.to_owned()));
        }
        let body = match request["headers"].get("Content-Length").and_then(Value::as_str) {
            Some("600000000") => Body::Withheld,
            _ => bodies::body(name, &request["body"]),
        };
        let closed = recorded["closed"] == json!(true);
        self.played += 1;
        let seen = self.cloud.requests().len();
        let Some(answer) = self.exchange(method, &path, &headers, body, closed).await else {
            // The client hung up; what the server makes of it shows in the cases that follow.
            let patience = Duration::from_secs(10);
            let over = |cloud: &FakeSupabase| cloud.requests().len() > seen && cloud.open_connections() == 0;
            return self.cloud.wait_until("the cut upload is over", patience, over).await;
        };
        if let Err(difference) = self.compare(recorded, &answer, closed) {
            let group = case["group"].as_str().unwrap_or_default();
            self.differences.push(format!("[{group}] {name}: {method} {path}\n    {difference}"));
        }
        self.remember(recorded, &answer);
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: Body,
        closed: bool,
    ) -> Option<Received> {
        raw_client::send(self.cloud.address(), method, path, headers, body, closed).await
    }

    fn compare(&mut self, recorded: &Value, answer: &Received, closed: bool) -> Result<(), String> {
        let mut body = String::from_utf8_lossy(&answer.body).into_owned();
        for (old, new) in &self.uploads {
            body = body.replace(new, old);
        }
        if recorded["status"] != answer.status {
            return Err(format!("status {} recorded, {} here: {body}", recorded["status"], answer.status));
        }
        for (name, value) in recorded["headers"].as_object().into_iter().flatten() {
            let Some(actual) = answer.header(name) else { return Err(format!("header {name} is missing")) };
            match name.as_str() {
                "location" => self.location(value.as_str().unwrap_or_default(), actual)?,
                _ => self.comparison.value(&format!("header {name}"), value, &json!(actual))?,
            }
        }
        if closed && !answer.closed {
            return Err("the connection stayed open".to_owned());
        }
        match &recorded["body"] {
            Value::String(text) if text.starts_with("<info with") => Ok(()),
            Value::String(_) => self.comparison.value("body", &recorded["body"], &json!(body)),
            expected => {
                let actual: Value =
                    serde_json::from_str(&body).map_err(|error| format!("no JSON ({error}): {body}"))?;
                self.comparison.value("body", expected, &actual)
            }
        }
    }

    fn location(&self, recorded: &str, actual: &str) -> Result<(), String> {
        let recorded = recorded.replace("<base>", &self.cloud.url());
        let same_object = upload_of(&recorded) == upload_of(actual) && upload_of(actual).is_some();
        let front = |url: &str| url.rsplit_once('/').map(|(front, _)| front.to_owned());
        if same_object && front(&recorded) == front(actual) {
            return Ok(());
        }
        Err(format!("location {recorded} recorded, {actual} here"))
    }

    fn remember(&mut self, recorded: &Value, answer: &Received) {
        if let (Some(old), Some(new)) = (recorded["headers"]["location"].as_str(), answer.header("location"))
        {
            let id = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
            self.uploads.insert(id(old), id(new));
        }
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let rows = body.as_array().cloned().unwrap_or_else(|| vec![body]);
        for row in rows {
            for name in ["signedURL", "url"] {
                if let Some((path, token)) = row[name].as_str().and_then(|url| url.split_once("?token=")) {
                    self.tokens.insert(path.to_owned(), token.to_owned());
                }
            }
        }
    }

    /// The recorded path with the fake's tokens and upload ids in place of the recorded ones.
    fn path(&self, case: &str, method: &str, mut path: String) -> String {
        path = path.replace("<anon-jwt>", &self.cloud.anon_key());
        if let Some((front, id)) = path.rsplit_once('/')
            && let Some(ours) = self.uploads.get(id)
        {
            return format!("{front}/{ours}");
        }
        if path.contains("<signed-token>") {
            let bare = path.split('?').next().unwrap_or_default();
            path = path.replace("<signed-token>", &self.token(case, method, bare));
        }
        path
    }

    fn token(&self, case: &str, method: &str, bare: &str) -> String {
        let decoded = percent_decode_str(bare).decode_utf8_lossy().into_owned();
        let object =
            decoded.trim_start_matches("/object/").trim_start_matches("upload/").trim_start_matches("sign/");
        let scope = if method == "PUT" { "upload" } else { "download" };
        let claims = |url: &str, scope: &str, exp: i64| json!({"url": url, "scope": scope, "exp": exp});
        match case {
            "signed URL used for another object" | "signed upload URL used for another key" => {
                self.cloud.token(&claims("private-recordings/another.webm", scope, FAR))
            }
            "download by expired signed URL" | "expired signed upload token" => {
                self.cloud.token(&claims(object, scope, 1_000_000_000))
            }
            "signed URL, tampered signature" => {
                let token = self.cloud.token(&claims(object, scope, FAR));
                let (signed, signature) = token.rsplit_once('.').expect("three parts");
                format!("{signed}.{}", signature.chars().rev().collect::<String>())
            }
            "signed upload token used to download" => self.cloud.token(&claims(object, "upload", FAR)),
            "download token used to upload" => self.cloud.token(&claims(object, "download", FAR)),
            _ => match self.tokens.get(bare).or_else(|| self.tokens.get(&decoded)) {
                Some(token) => token.clone(),
                None => self.cloud.token(&claims(object, scope, FAR)),
            },
        }
    }

    fn headers(&self, recorded: &Value) -> Vec<(String, String)> {
        let cloud = &self.cloud;
        let mut headers = Vec::new();
        for (name, value) in recorded.as_object().into_iter().flatten() {
            let lower = name.to_ascii_lowercase();
            if lower == "transfer-encoding" || lower == "content-length" && value != "600000000" {
                continue;
            }
            let mut value = value.as_str().unwrap_or_default().to_owned();
            let keys = [
                ("<service-role-jwt>", cloud.service_key()),
                ("<anon-jwt>", cloud.anon_key()),
                ("<authenticated-jwt>", cloud.user_key("11111111-2222-3333-4444-555555555555")),
                ("<expired-jwt>", cloud.expired_key()),
                ("<jwt-wrong-signature>", cloud.foreign_key()),
                ("<service-role-jwt-no-exp>", cloud.token(&json!({"role": "service_role"}))),
                ("<jwt-without-role>", cloud.token(&json!({"sub": "someone"}))),
                ("<jwt-unknown-role>", cloud.token(&json!({"role": "stranger"}))),
                ("<20 KB of base64>", "A".repeat(20_000)),
                ("boundary=<b>", "boundary=----storageclientboundary7MA4YWxk".to_owned()),
            ];
            for (placeholder, key) in keys {
                value = value.replace(placeholder, &key);
            }
            if let Some((stored, later)) = &self.stored {
                value = value.replace("Sat, 21 Nov 2026 02:30:28 GMT", stored);
                value = value.replace("Sat, 21 Nov 2026 02:30:29 GMT", later);
            }
            if value == "<signed-token>" {
                let url = "private-recordings/tus/signed.webm";
                value = cloud.token(&json!({"url": url, "scope": "upload", "exp": FAR}));
            }
            headers.push((name.clone(), value));
        }
        headers
    }
}

/// Long paths are recorded by their beginning and their length, the keys in the answers likewise with a longer
/// beginning; the rest is filled with short segments.
fn lengthened(path: &str, key: Option<&str>) -> String {
    let Some((start, rest)) = path.split_once("...<") else { return path.to_owned() };
    let length: usize = rest.split(' ').next().and_then(|digits| digits.parse().ok()).expect("a length");
    let mut path = match key.and_then(|key| key.split_once("...<")) {
        Some((start, _)) => format!("/object/{start}/"),
        None => format!("{start}/"),
    };
    while path.len() < length {
        path.push(if path.len() % 100 == 0 && path.len() + 1 < length { '/' } else { 'd' });
    }
    path
}
