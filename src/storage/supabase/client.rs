//! The requests the gateway makes of Supabase Storage, one method each, and nothing more: who calls them when is
//! decided elsewhere. Two connection pools: uploads never share a connection with anything, because a refused upload
//! leaves its connection half-read (contract, section 5, connection hazard).

use std::time::Duration;

use reqwest::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use url::Url;

use super::wire::{self, refusal, retry_after};
use crate::domain::{ObjectKey, StoreKind};
use crate::storage::{Kind, StorageError};

/// How to reach a bucket.
#[derive(Clone)]
pub struct Access {
    /// Base address of the storage service, `https://PROJECT.supabase.co/storage/v1` or a bare server.
    pub base: Url,
    /// A service role, secret or anon key.
    pub key: String,
    /// The bucket.
    pub bucket: String,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long an upload or download may stand still.
    pub idle_timeout: Duration,
    /// How long a question (info, list page, delete, bucket) may take.
    pub question_timeout: Duration,
    /// Size in bytes from which an object that nobody waits for goes by the resumable endpoint.
    pub resumable_from: u64,
    /// Most bytes of one of its requests.
    pub patch_bytes: u64,
}

/// Most bytes of a JSON answer that are read: a list page of 1000 rows has 400 KB.
const MAX_JSON_BYTES: usize = 16 << 20;

pub(super) struct Client {
    pub(super) access: Access,
    questions: reqwest::Client,
    uploads: reqwest::Client,
    base: String,
}

impl Client {
    pub(super) fn new(access: Access) -> Result<Self, reqwest::Error> {
        let builder = || {
            let mut headers = HeaderMap::new();
            // The storage server reads Authorization; the hosted gateway in front of it wants apikey too.
            for (name, value) in
                [("authorization", format!("Bearer {}", access.key)), ("apikey", access.key.clone())]
            {
                if let Ok(mut value) = HeaderValue::from_str(&value) {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
            }
            reqwest::Client::builder()
                .default_headers(headers)
                .connect_timeout(access.connect_timeout)
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .http1_only()
        };
        // The server keeps idle connections for 61 s (section 1): let go of them earlier.
        let questions = builder().pool_idle_timeout(Duration::from_secs(30)).build()?;
        let uploads = builder().pool_max_idle_per_host(0).build()?;
        let base = access.base.as_str().trim_end_matches('/').to_owned();
        Ok(Self { access, questions, uploads, base })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// `/object/{route}{bucket}/{key}`.
    pub(super) fn object_url(&self, route: &str, key: &ObjectKey) -> String {
        self.url(&format!("/object/{route}{}/{}", wire::segment(&self.access.bucket), wire::key_path(key)))
    }

    /// Asks and reads a JSON answer. `changes`: whether the request changes something if it is carried out.
    async fn ask<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        changes: bool,
    ) -> Result<T, StorageError> {
        let body = self.ask_bytes(request, changes).await?;
        serde_json::from_slice(&body).map_err(|error| nonsense(changes).because(error))
    }

    async fn ask_bytes(&self, request: RequestBuilder, changes: bool) -> Result<Vec<u8>, StorageError> {
        let response = request
            .timeout(self.access.question_timeout)
            .send()
            .await
            .map_err(|error| transport(error, changes))?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        let body = read_capped(response, changes).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(refusal(status.as_u16(), &body, changes).retry_after(wait))
    }

    pub(super) async fn bucket(&self) -> Result<wire::BucketBody, StorageError> {
        let url = self.url(&format!("/bucket/{}", wire::segment(&self.access.bucket)));
        self.ask(self.questions.get(url), false).await
    }

    pub(super) async fn create_bucket(&self, public: bool) -> Result<(), StorageError> {
        let id = &self.access.bucket;
        let request =
            self.questions.post(self.url("/bucket")).json(&wire::NewBucketBody { id, name: id, public });
        self.ask::<serde_json::Value>(request, true).await.map(|_| ())
    }

    /// What the database knows of an object (section 6). The authenticated form tells a bad token from a missing
    /// bucket; the public one also answers keys that may not read.
    pub(super) async fn info(&self, route: &str, key: &ObjectKey) -> Result<wire::InfoBody, StorageError> {
        self.ask(self.questions.get(self.object_url(&format!("info/{route}"), key)), false).await
    }

    /// One page of at most 1000 keys that begin with `prefix` (section 8).
    pub(super) async fn list_page(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        with_delimiter: bool,
    ) -> Result<wire::ListBody, StorageError> {
        let url = self.url(&format!("/object/list-v2/{}", wire::segment(&self.access.bucket)));
        let query = wire::ListQuery { prefix, limit: 1000, cursor, with_delimiter };
        self.ask(self.questions.post(url).json(&query), false).await
    }

    pub(super) async fn delete(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.ask_bytes(self.questions.delete(self.object_url("", key)), true).await.map(|_| ())
    }

    pub(super) async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        let body = wire::MoveBody {
            bucket_id: &self.access.bucket,
            source_key: from.to_string(),
            destination_key: to.to_string(),
        };
        self.ask_bytes(self.questions.post(self.url("/object/move")).json(&body), true).await.map(|_| ())
    }

    /// A token for reading the object; the path in the answer is decoded (section 7), so only the token is used.
    pub(super) async fn sign(&self, key: &ObjectKey, ttl: Duration) -> Result<String, StorageError> {
        let body = serde_json::json!({ "expiresIn": ttl.as_secs().max(1) });
        let answer: wire::SignedBody =
            self.ask(self.questions.post(self.object_url("sign/", key)).json(&body), false).await?;
        let (_, token) = answer.signed_url.split_once("?token=").ok_or_else(|| nonsense(false))?;
        Ok(format!("{}?token={token}", self.object_url("sign/", key)))
    }

    /// Sends an object. `known_size` becomes Content-Length; without it the body is chunked, and then the server
    /// applies no size limit (section 5).
    pub(super) fn upload(
        &self,
        key: &ObjectKey,
        body: reqwest::Body,
        known_size: Option<u64>,
        content_type: &str,
        metadata: String,
    ) -> RequestBuilder {
        let mut request = self
            .uploads
            .request(Method::POST, self.object_url("", key))
            .header(CONTENT_TYPE, content_type)
            .header("x-metadata", metadata)
            .header(CONNECTION, "close");
        if let Some(size) = known_size {
            request = request.header(CONTENT_LENGTH, size);
        }
        request.body(body)
    }

    /// A request about an upload of the resumable endpoint (section 10): `path` is empty or `/ID`. One that sends bytes
    /// has a connection of its own.
    pub(super) fn resumable(&self, method: Method, path: &str) -> RequestBuilder {
        let pool = if method == Method::PATCH { &self.uploads } else { &self.questions };
        pool.request(method, self.url(&format!("/upload/resumable{path}"))).header("tus-resumable", "1.0.0")
    }

    /// Opens an object for reading; the answer's head must come within the question's time.
    pub(super) async fn download(
        &self,
        key: &ObjectKey,
        range: Option<&str>,
    ) -> Result<Response, StorageError> {
        let mut request = self.questions.get(self.object_url("authenticated/", key));
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        // The file backend hashes the whole file before the first byte (section 12), so a head may take longer than
        // other questions.
        let head = tokio::time::timeout(self.access.idle_timeout, request.send()).await;
        let response = head.map_err(|_| timeout(false))?.map_err(|error| transport(error, false))?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        if status.is_success() {
            return Ok(response);
        }
        let body = tokio::time::timeout(self.access.question_timeout, read_capped(response, false));
        let body = body.await.map_err(|_| timeout(false))??;
        Err(refusal(status.as_u16(), &body, false).retry_after(wait))
    }
}

/// Reads an answer that must be small.
pub(super) async fn read_capped(mut response: Response, changes: bool) -> Result<Vec<u8>, StorageError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(error, changes))? {
        if body.len() + chunk.len() > MAX_JSON_BYTES {
            return Err(nonsense(changes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A request that got no answer. It changed nothing if it never left.
pub(super) fn transport(error: reqwest::Error, changes: bool) -> StorageError {
    let (kind, detail) = if error.is_timeout() {
        (Kind::Timeout, "did not answer in time")
    } else if error.is_connect() {
        (Kind::Unavailable, "cannot be reached")
    } else {
        (Kind::Unavailable, "the connection broke")
    };
    let never_left = error.is_connect() || error.is_builder();
    // The address may hold a token.
    let error = error.without_url();
    StorageError::certain(StoreKind::Supabase, kind, detail).unknown_if(changes && !never_left).because(error)
}

pub(super) fn timeout(may_have_applied: bool) -> StorageError {
    StorageError::certain(StoreKind::Supabase, Kind::Timeout, "no byte moved for too long")
        .unknown_if(may_have_applied)
}

pub(super) fn nonsense(may_have_applied: bool) -> StorageError {
    let detail = "answered something that Supabase Storage does not answer";
    StorageError::certain(StoreKind::Supabase, Kind::Nonsense, detail).unknown_if(may_have_applied)
}
