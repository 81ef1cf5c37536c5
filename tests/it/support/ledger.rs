//! What a gateway promised over all its lives, and whether it holds to it: whatever was answered with success is there,
//! byte for byte and once; whatever was deleted is not; whatever was never answered is whole or not there at all.
//!
//! Apart from the suites that break the gateway, which share this one judgement. It sees only what a client and an
//! operator see: answers, the directory, the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use reqwest::multipart::Form;
use serde_json::Value;

use super::cloud::BUCKET;
use super::eventually;
use super::fake_supabase::FakeSupabase;
use super::gateway::{file_part, within};
use super::media::webm;

/// The promises of one directory.
pub struct Ledger {
    http: reqwest::Client,
    book: Mutex<Book>,
    /// Whether lists must be complete, the cloud's part included.
    cloud_answers: bool,
}

#[derive(Default)]
struct Book {
    /// Answered with success, by path.
    kept: BTreeMap<String, Vec<u8>>,
    /// Deleted, and that was answered.
    gone: BTreeSet<String>,
    /// A deletion was sent and not answered, or answered with an error: whole or gone.
    either: BTreeMap<String, Vec<u8>>,
    /// Sent and not answered: whole, once, or not there.
    unanswered: Vec<(String, Vec<u8>)>,
    /// Sessions something happened to since they were last checked.
    touched: BTreeSet<String>,
    /// No two recordings have the same bytes.
    seed: u64,
}

fn session_of(path: &str) -> &str {
    path.split('/').next().unwrap()
}

impl Ledger {
    pub fn new() -> Self {
        Self { http: reqwest::Client::new(), book: Mutex::default(), cloud_answers: true }
    }

    /// Its cloud is away for the whole run: lists say so.
    pub fn without_a_cloud(&mut self) {
        self.cloud_answers = false;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Bytes that no other recording has.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut book = self.book();
        book.seed += 1;
        webm(len, book.seed)
    }

    /// Uploads new bytes; `None` if no answer came.
    pub async fn upload(&self, url: &str, session: &str, len: usize) -> Option<(u16, Value)> {
        let bytes = self.bytes(len);
        self.upload_with(url, session, bytes, &[]).await
    }

    /// Uploads these bytes with these headers; `None` if no answer came.
    pub async fn upload_with(
        &self,
        url: &str,
        session: &str,
        bytes: Vec<u8>,
        headers: &[(&str, &str)],
    ) -> Option<(u16, Value)> {
        let form = Form::new().part("recording", file_part(bytes.clone(), "talk.webm", "video/webm"));
        let mut request = self.http.post(format!("{url}/recordings/upload/{session}")).multipart(form);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let this = (session.to_owned(), bytes);
        {
            let mut book = self.book();
            book.touched.insert(session.to_owned());
            if !book.unanswered.contains(&this) {
                book.unanswered.push(this.clone());
            }
        }
        let (status, answer) = self.send(request).await?;
        let mut book = self.book();
        // A disk or a catalogue that failed cannot say that nothing will be there after a crash: it may be, whole and once.
        if ![500, 503].contains(&status) {
            book.unanswered.retain(|other| *other != this);
        }
        if (200..300).contains(&status) {
            let path = answer["file_path"].as_str().unwrap().to_owned();
            let earlier = book.kept.insert(path.clone(), this.1.clone());
            assert!(earlier.is_none_or(|bytes| bytes == this.1), "{path} was given out twice");
            assert!(!book.gone.contains(&path), "{path} was deleted before");
        }
        Some((status, answer))
    }

    /// Deletes a recording; `None` if no answer came.
    pub async fn delete(&self, url: &str, path: &str) -> Option<(u16, Value)> {
        self.delete_all(url, path, |kept| kept == path).await
    }

    /// Deletes a session; `None` if no answer came.
    pub async fn delete_session(&self, url: &str, session: &str) -> Option<(u16, Value)> {
        self.delete_all(url, session, |kept| session_of(kept) == session).await
    }

    async fn delete_all(
        &self,
        url: &str,
        path: &str,
        is_meant: impl Fn(&str) -> bool,
    ) -> Option<(u16, Value)> {
        let had = {
            let mut book = self.book();
            book.touched.insert(session_of(path).to_owned());
            let meant: Vec<_> = book.kept.keys().filter(|kept| is_meant(kept)).cloned().collect();
            for path in &meant {
                let (path, bytes) = book.kept.remove_entry(path).unwrap();
                book.either.insert(path, bytes);
            }
            !meant.is_empty()
        };
        let (status, answer) = self.send(self.http.delete(format!("{url}/recordings/{path}"))).await?;
        assert!(!had || status != 404, "{path} was answered with success and is not there to be deleted");
        if [200, 202, 404].contains(&status) {
            let mut book = self.book();
            let gone: Vec<_> = book.either.keys().filter(|path| is_meant(path)).cloned().collect();
            for path in gone {
                book.either.remove(&path);
                book.gone.insert(path);
            }
        }
        Some((status, answer))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
        let response = within("an answer or the end", request.send()).await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.json().await.ok()?))
    }

    /// The status of a path; `None` if no answer came.
    pub async fn status(&self, url: &str, path: &str) -> Option<u16> {
        let response = within("an answer", self.http.get(format!("{url}{path}")).send()).await.ok()?;
        Some(response.status().as_u16())
    }

    /// What a path answers with success.
    pub async fn json(&self, url: &str, path: &str) -> Value {
        let response = within("an answer", self.http.get(format!("{url}{path}")).send()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    async fn content(&self, url: &str, path: &str) -> (u16, Vec<u8>) {
        let request = self.http.get(format!("{url}/recordings/{path}/content?via=proxy"));
        let response = within("the bytes", request.send()).await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
    }

    /// Paths that were answered with success and not deleted.
    pub fn kept(&self) -> Vec<String> {
        self.book().kept.keys().cloned().collect()
    }

    /// Checks the sessions something happened to. Call it when the gateway was started anew and its cloud answers.
    pub async fn check(&self, url: &str, root: &Path) {
        let sessions = std::mem::take(&mut self.book().touched);
        for session in sessions {
            self.check_session(url, root, &session).await;
        }
        let spooled: Vec<_> = std::fs::read_dir(root.join(".spool")).unwrap().collect();
        assert!(spooled.is_empty(), "files are left in the spool: {spooled:?}");
    }

    /// Checks everything that ever was.
    pub async fn check_everything(&self, url: &str, root: &Path) {
        {
            let mut book = self.book();
            let Book { kept, gone, either, .. } = &*book;
            let paths = kept.keys().chain(gone).chain(either.keys());
            let sessions: Vec<_> = paths.map(|path| session_of(path).to_owned()).collect();
            book.touched.extend(sessions);
        }
        self.check(url, root).await;
    }

    async fn check_session(&self, url: &str, root: &Path, session: &str) {
        let list = self.json(url, &format!("/recordings/{session}/list?limit=1000")).await;
        assert!(list["degraded"] != true || !self.cloud_answers, "the cloud should answer: {list}");
        let mut listed = BTreeSet::new();
        for row in list["recordings"].as_array().unwrap() {
            let path = row["file_path"].as_str().unwrap().to_owned();
            assert!(listed.insert(path.clone()), "{path} is listed twice");
            let (status, bytes) = self.content(url, &path).await;
            let promised = if self.book().kept.contains_key(&path) { "promised" } else { "not promised" };
            assert_eq!(status, 200, "{path}, {promised}, is listed and not there: {row}");
            let mut book = self.book();
            assert!(!book.gone.contains(&path), "{path} was deleted and is back: {row}");
            if let Some(bytes) = book.either.remove(&path) {
                book.kept.insert(path.clone(), bytes);
            } else if !book.kept.contains_key(&path) {
                let known = book.unanswered.iter().position(|(s, b)| s == session && *b == bytes);
                let at = known.unwrap_or_else(|| panic!("{path} was refused, or is there twice: {row}"));
                let (_, bytes) = book.unanswered.remove(at);
                book.kept.insert(path.clone(), bytes);
            }
            assert!(book.kept[&path] == bytes, "{path} has other bytes");
            assert_eq!(row["file_size"], bytes.len(), "{path}");
        }
        let (lost, hidden): (Vec<_>, Vec<_>) = {
            let mut book = self.book();
            let lost = book.kept.keys().filter(|path| session_of(path) == session && !listed.contains(*path));
            let lost = lost.cloned().collect();
            let gone: Vec<_> =
                book.either.keys().filter(|path| session_of(path) == session).cloned().collect();
            for path in gone {
                book.either.remove(&path);
                book.gone.insert(path);
            }
            (lost, book.gone.iter().filter(|path| session_of(path) == session).cloned().collect())
        };
        assert_eq!(lost, Vec::<String>::new(), "answered with success and not listed");
        for path in hidden {
            assert_eq!(self.content(url, &path).await.0, 404, "{path} was deleted");
            let on_disk = root.join(&path);
            eventually("the file of a deleted recording goes", async || !on_disk.exists()).await;
        }
    }

    /// Waits until what was deleted is gone from the bucket and what was kept is there, once and byte for byte.
    pub async fn drains_into(&self, cloud: &FakeSupabase) {
        eventually("everything has reached the bucket", async || {
            let keys: BTreeSet<_> = cloud.keys(BUCKET).into_iter().collect();
            self.book().kept.keys().all(|path| keys.contains(path))
        })
        .await;
        eventually("what was deleted has left the bucket", async || {
            let keys = cloud.keys(BUCKET);
            !keys.iter().any(|key| self.book().gone.contains(key))
        })
        .await;
        let book = self.book();
        for (path, bytes) in &book.kept {
            assert!(
                cloud.object(BUCKET, path).unwrap().bytes == *bytes,
                "the bucket has other bytes: {path}"
            );
        }
        let mut contents = BTreeSet::new();
        for key in cloud.keys(BUCKET) {
            let object = cloud.object(BUCKET, &key).unwrap();
            assert!(contents.insert(object.md5), "the bucket has the same recording twice: {key}");
        }
    }
}
