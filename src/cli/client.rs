//! Talking to a running gateway: its address, one request, and an answer that is either JSON or a sentence.
//!
//! Apart so that the commands hold no HTTP. Never any retry in here: a person sees the sentence and decides.

use std::time::Duration;

use clap::Args;
use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use url::{Host, Url};

use super::{Settings, Usage, words};
use crate::config::ServerConfig;

/// Flags of the commands that need a running gateway.
#[derive(Args, Debug)]
pub(super) struct GatewayArgs {
    /// Address of the gateway; default: server.host and server.port of the configuration
    #[arg(long, value_name = "URL", value_parser = words::address)]
    url: Option<Url>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why there is no answer to work with.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens there.
    #[error(
        "no gateway answers at {0}. Start one with `recording-gateway serve`, or name another with --url"
    )]
    Unreachable(Url),
    /// The connection broke; what the gateway did is not known.
    #[error("the connection to the gateway broke")]
    Broken(#[source] reqwest::Error),
    /// The gateway refused, in its own words.
    #[error("{detail} (status {status}{}{})", shown(", code ", code), shown(", request ", request_id))]
    Problem {
        status: u16,
        detail: String,
        code: Option<String>,
        request_id: Option<String>,
        /// When it may be tried again, as the gateway said.
        retry_after: Option<Duration>,
    },
    /// Something answers, but not as a gateway does.
    #[error(
        "{url} answered {status} and not as a gateway does: is another program there? Name the gateway with --url"
    )]
    Stranger { url: Url, status: StatusCode },
    /// It answers elsewhere. Bytes are not sent to where nobody asked for.
    #[error("{url} sends on to {target}: give that address with --url")]
    Moved { url: Url, target: String },
}

fn shown(before: &str, value: &Option<String>) -> String {
    value.as_ref().map(|value| format!("{before}{value}")).unwrap_or_default()
}

/// A gateway to ask.
pub(super) struct Gateway {
    base: Url,
    http: reqwest::Client,
}

impl Gateway {
    /// The one named by `--url`, else the one that this configuration would start.
    pub fn find(args: &GatewayArgs, settings: &Settings) -> anyhow::Result<Self> {
        let base = match &args.url {
            Some(url) => url.clone(),
            None => own_address(&settings.load()?.config.server)?,
        };
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("recording-gateway/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        Ok(Self { base, http: http.build()? })
    }

    /// The address under `recordings/` made of these parts. An empty one, `.` or `..` would make it the address of
    /// something else, so those are refused.
    pub fn address(&self, parts: &[&str]) -> Result<Url, Usage> {
        self.path(&[&["recordings"], parts].concat())
    }

    /// The address made of these parts, none of which may make it the address of something else.
    pub fn path(&self, parts: &[&str]) -> Result<Url, Usage> {
        if let Some(bad) = parts.iter().find(|part| matches!(**part, "" | "." | "..")) {
            return Err(Usage(format!("\"{bad}\" is no name of a session, recording or job")));
        }
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address can have a path").pop_if_empty().extend(parts);
        Ok(url)
    }

    /// An address directly below the gateway's own.
    pub fn top_address(&self, name: &str) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address can have a path").pop_if_empty().push(name);
        url
    }

    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends and waits for the whole answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let response = request.send().await.map_err(|error| self.failure(error))?;
        self.answer(response).await
    }

    /// Sends and returns as soon as the answer begins, if that is a success.
    pub async fn open(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.failure(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        Err(self
            .answer(response)
            .await
            .err()
            .unwrap_or(ClientError::Stranger { url: self.base.clone(), status }))
    }

    async fn answer(&self, response: Response) -> Result<Value, ClientError> {
        let status = response.status();
        let header =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let request_id = header("x-request-id");
        let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let is_json = header(CONTENT_TYPE.as_str()).is_some_and(|kind| kind.contains("json"));
        if let (true, Some(target)) = (status.is_redirection(), header(LOCATION.as_str())) {
            return Err(ClientError::Moved { url: self.base.clone(), target });
        }
        let stranger = || ClientError::Stranger { url: self.base.clone(), status };
        let body = response.bytes().await.map_err(ClientError::Broken)?;
        let body: Value = match serde_json::from_slice(&body) {
            Ok(body) if is_json => body,
            _ => return Err(stranger()),
        };
        if status.is_success() {
            return Ok(body);
        }
        let field = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        Err(ClientError::Problem {
            status: status.as_u16(),
            detail: field("detail").or_else(|| field("title")).ok_or_else(stranger)?,
            code: field("code"),
            request_id: field("request_id").or(request_id),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    fn failure(&self, error: reqwest::Error) -> ClientError {
        if error.is_connect() {
            ClientError::Unreachable(self.base.clone())
        } else {
            ClientError::Broken(error)
        }
    }
}

impl ClientError {
    /// The failure as `--json` prints it.
    pub fn to_json(&self) -> Value {
        let (status, code, request_id) = match self {
            Self::Problem { status, code, request_id, .. } => {
                (Some(*status), code.clone(), request_id.clone())
            }
            _ => (None, None, None),
        };
        let detail = match self {
            Self::Problem { detail, .. } => detail.clone(),
            other => other.to_string(),
        };
        serde_json::json!({"detail": detail, "status": status, "code": code, "request_id": request_id})
    }
}

/// Where the gateway of this configuration can be asked from this machine.
pub(super) fn own_address(server: &ServerConfig) -> Result<Url, Usage> {
    if server.port == 0 {
        return Err(Usage("server.port is 0, so the gateway's port is not known: name it with --url".into()));
    }
    let host = match server.host.as_str() {
        "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    Url::parse(&format!("http://{host}:{}", server.port))
        .map_err(|_| Usage(format!("server.host {host} makes no address: name the gateway with --url")))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
