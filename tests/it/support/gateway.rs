//! The gateway under test: the whole of it, on a free port and a directory of its own. Fails the test that leaves
//! spool files, reserved names or tasks behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use recording_gateway::app::App;
use recording_gateway::config::{Config, Flag, LoadInput};
use recording_gateway::service::Services;
use recording_gateway::storage::ListScope;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::fake_supabase::FakeSupabase;
use super::{PATIENCE, eventually};

/// A running gateway.
pub struct Gateway {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// Its use cases, for looking inside.
    pub services: Services,
    /// Settings it was started with.
    settings: Vec<(String, String)>,
    task: Option<JoinHandle<()>>,
    dir: Option<tempfile::TempDir>,
    http: reqwest::Client,
}

/// Settings for a gateway behind `cloud`, impatient, so that faults show soon.
pub fn cloud_settings(cloud: &FakeSupabase) -> Vec<(String, String)> {
    let pairs = [
        ("supabase.url", cloud.url()),
        ("supabase.key", cloud.service_key()),
        ("supabase.patience", "2s".into()),
        ("supabase.connect_timeout", "1s".into()),
        ("supabase.idle_timeout", "2s".into()),
        ("supabase.list_timeout", "2s".into()),
        ("supabase.breaker_pause", "300ms".into()),
        ("sync.interval", "1s".into()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

impl Gateway {
    /// A gateway without a cloud.
    pub async fn local() -> Self {
        Self::start(&[]).await
    }

    /// A gateway behind `cloud`, whose bucket it has asked already.
    pub async fn with_cloud(cloud: &FakeSupabase) -> Self {
        Self::with_cloud_and(cloud, &[]).await
    }

    /// The same with further settings, which win.
    pub async fn with_cloud_and(cloud: &FakeSupabase, more: &[(&str, &str)]) -> Self {
        let mut settings = cloud_settings(cloud);
        settings.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let gateway = Self::start_in(tempfile::tempdir().unwrap(), settings).await;
        eventually("the cloud was asked", async || {
            gateway.services.stores.primary_status().is_some_and(|status| status.probed.is_some())
        })
        .await;
        gateway
    }

    /// A gateway with just these settings; it does not wait for a cloud.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::start_in(tempfile::tempdir().unwrap(), settings).await
    }

    /// A gateway whose recordings live in `dir`.
    pub async fn start_in(dir: tempfile::TempDir, settings: Vec<(String, String)>) -> Self {
        let config = config(dir.path(), &settings);
        let app = App::build(&config).await.expect("the gateway starts");
        let (url, services) = (format!("http://{}", app.address), app.services.clone());
        let task = tokio::spawn(app.run());
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { url, services, settings, task: Some(task), dir: Some(dir), http }
    }

    /// Directory of the local store.
    pub fn recordings_dir(&self) -> PathBuf {
        self.dir.as_ref().expect("the gateway runs").path().join("recordings")
    }

    /// Stops it as a signal would, checks that nothing is left, and keeps its directory.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.settle().await;
        self.services.tasks.stopping().cancel();
        let task = self.task.take().expect("stopped once");
        tokio::time::timeout(PATIENCE, task)
            .await
            .expect("it stops in time")
            .expect("it stops without a panic");
        self.dir.take().expect("stopped once")
    }

    /// Stops it and starts another on the same directory.
    pub async fn restart(self) -> Self {
        let settings = self.settings.clone();
        let dir = self.stop().await;
        Self::start_in(dir, settings).await
    }

    /// Ends it without a word to anybody, as a crash would as far as that can be within one process. Returns its
    /// directory and settings, for [`Self::start_in`].
    pub async fn crash(mut self) -> (tempfile::TempDir, Vec<(String, String)>) {
        self.services.tasks.stopping().cancel();
        let task = self.task.take().expect("it runs");
        task.abort();
        // The directory is locked until the task was dropped.
        let _ = task.await;
        (self.dir.take().expect("it runs"), self.settings.clone())
    }

    /// Waits until no upload is under way and checks that none left anything.
    pub async fn settle(&self) {
        eventually("no file is left in the spool", async || {
            std::fs::read_dir(self.recordings_dir().join(".spool")).unwrap().count() == 0
        })
        .await;
        eventually("no name is left reserved", async || {
            self.services.catalog.view(&ListScope::Everything).await.unwrap().reserved.is_empty()
        })
        .await;
    }

    /// A request to a path.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.http.request(method.parse().unwrap(), format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    /// The JSON at a path, whatever its status.
    pub async fn get_json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        let response = self.request("DELETE", path).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Uploads a WebM as a browser would.
    pub async fn upload(&self, session: &str, bytes: Vec<u8>) -> (u16, Value) {
        self.upload_form(session, Form::new().part("recording", file_part(bytes, "talk.webm", "video/webm")))
            .await
    }

    pub async fn upload_form(&self, session: &str, form: Form) -> (u16, Value) {
        let path = format!("/recordings/upload/{session}");
        let response = self.request("POST", &path).multipart(form).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// The names of a session, as listed.
    pub async fn names(&self, session: &str) -> Vec<String> {
        let list = self.get_json(&format!("/recordings/{session}/list?limit=1000")).await;
        list["recordings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["filename"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The bytes of a recording, through the gateway.
    pub async fn bytes(&self, file_path: &str) -> Vec<u8> {
        let response = self.get(&format!("/recordings/{file_path}/content?via=proxy")).await;
        assert_eq!(response.status(), 200, "{file_path}");
        response.bytes().await.unwrap().to_vec()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.services.tasks.stopping().cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// A file field.
pub fn file_part(bytes: Vec<u8>, name: &str, content_type: &str) -> Part {
    Part::bytes(bytes).file_name(name.to_owned()).mime_str(content_type).unwrap()
}

/// The configuration of a test gateway, by the same loader as in production.
pub fn config(dir: &Path, settings: &[(String, String)]) -> Config {
    let mut flags = vec![
        ("server.port".to_owned(), "0".to_owned()),
        ("server.shutdown_grace".to_owned(), "5s".to_owned()),
        ("storage.local_dir".to_owned(), dir.join("recordings").display().to_string()),
    ];
    flags.extend(settings.iter().cloned());
    let nothing = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    let input = LoadInput {
        read_file: &nothing,
        config_file: None,
        environment: Default::default(),
        flags: flags.into_iter().map(|(key, value)| Flag { name: "--set".into(), key, value }).collect(),
    };
    Config::load(&input).expect("the settings are right").config
}

/// Waits for the body of a slow answer no longer than the test's patience.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("took longer than {PATIENCE:?}: {what}"))
}

/// Shorter than any timeout a client would notice.
pub const SOON: Duration = Duration::from_millis(500);
