//! `check`: is everything right that a gateway needs? One line each, with the remedy.
//!
//! What needs no cloud and no catalogue is asked here; the rest comes in as lines from `app`. Nothing is left behind.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::client::own_address;
use super::{Outcome, print};
use crate::config::{Config, Loaded, ServerConfig, StorageConfig};

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only ask whether a gateway answers at the configured address, as the health check of a container does
    #[arg(long)]
    pub(super) running: bool,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckLine {
    /// What was looked at, in a word or two, like `disk`.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found, in half a sentence.
    pub detail: String,
    /// What to do about it; `None` if nothing.
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, but probably not as meant.
    Warning,
    /// The gateway cannot do its work so.
    Failure,
}

impl CheckLine {
    /// As it should be.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: CheckStatus::Ok, detail: detail.into(), remedy: None }
    }

    /// It works, but probably not as meant.
    pub fn warning(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::with_remedy(name, CheckStatus::Warning, detail.into(), remedy.into())
    }

    /// The gateway cannot do its work so.
    pub fn failure(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::with_remedy(name, CheckStatus::Failure, detail.into(), remedy.into())
    }

    fn with_remedy(name: &str, status: CheckStatus, detail: String, remedy: String) -> Self {
        Self { name: name.into(), status, detail, remedy: Some(remedy) }
    }
}

/// Prints the lines found here and the given ones about catalogue and cloud.
pub(super) async fn run(
    args: &CheckArgs,
    loaded: &Loaded,
    others: Vec<CheckLine>,
) -> anyhow::Result<Outcome> {
    let mut lines = vec![configuration(loaded)];
    lines.extend(this_machine(&loaded.config).await);
    lines.extend(others);
    print_lines(args, &lines)
}

/// Prints whether a gateway answers at the configured address.
pub(super) async fn run_running(args: &CheckArgs, loaded: &Loaded) -> anyhow::Result<Outcome> {
    let server = &loaded.config.server;
    let place = format!("{}:{}", server.host, server.port);
    let line = match running_version(server).await {
        Some(version) => CheckLine::ok("gateway", format!("{version} answers at {place}")),
        None => CheckLine::failure(
            "gateway",
            format!("none answers at {place}"),
            "start one with recording-gateway serve",
        ),
    };
    print_lines(args, &[line])
}

fn print_lines(args: &CheckArgs, lines: &[CheckLine]) -> anyhow::Result<Outcome> {
    if args.json {
        print::json(&lines)?;
    } else {
        let width = lines.iter().map(|line| line.name.len()).max().unwrap_or_default();
        for line in lines {
            let status = match line.status {
                CheckStatus::Ok => "ok",
                CheckStatus::Warning => "warning",
                CheckStatus::Failure => "FAILURE",
            };
            let remedy = line.remedy.as_ref().map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
            print::line(format_args!("{status:<7}  {:<width$}  {}{remedy}", line.name, line.detail))?;
        }
    }
    let failed = lines.iter().any(|line| line.status == CheckStatus::Failure);
    Ok(if failed { Outcome::Failures } else { Outcome::Fine })
}

fn configuration(loaded: &Loaded) -> CheckLine {
    match loaded.warnings.as_slice() {
        [] => CheckLine::ok("configuration", "valid"),
        warnings => CheckLine {
            name: "configuration".into(),
            status: CheckStatus::Warning,
            detail: warnings.join(" "),
            remedy: None,
        },
    }
}

/// The disk and the port.
pub async fn this_machine(config: &Config) -> Vec<CheckLine> {
    vec![
        folder(&config.storage.local_dir),
        free_space(&config.storage, config.uploads.max_bytes),
        port(&config.server).await,
    ]
}

fn folder(dir: &Path) -> CheckLine {
    let shown = dir.display();
    let remedy = "choose another with storage.local_dir, or let this user write there";
    let existing = nearest_existing(dir);
    if !existing.is_dir() {
        return CheckLine::failure("folder", format!("{} is no folder", existing.display()), remedy);
    }
    // A file that removes itself is the one honest test: modes, mounts and quotas all have their say.
    match tempfile::Builder::new().prefix(".check-").tempfile_in(existing) {
        Ok(_) if existing == dir => CheckLine::ok("folder", format!("{shown} can be written")),
        Ok(_) => CheckLine::ok("folder", format!("{shown} will be made at start")),
        Err(error) => {
            let shown = existing.display();
            CheckLine::failure("folder", format!("{shown} cannot be written: {}", error.kind()), remedy)
        }
    }
}

fn free_space(storage: &StorageConfig, largest_upload: u64) -> CheckLine {
    let facts = match rustix::fs::statvfs(nearest_existing(&storage.local_dir)) {
        Ok(facts) => facts,
        Err(error) => {
            let detail = format!("the free space is not known: {error}");
            return CheckLine::failure("disk", detail, "choose another folder with storage.local_dir");
        }
    };
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    let detail = format!("{} free", print::size(free));
    let reserve = print::size(storage.min_free);
    if free <= storage.min_free {
        CheckLine::failure(
            "disk",
            format!("{detail}, {reserve} of it reserved: every upload is refused"),
            "make room, or lower storage.min_free",
        )
    } else if free - storage.min_free < largest_upload {
        CheckLine::warning(
            "disk",
            format!("{detail}, less than the largest upload ({})", print::size(largest_upload)),
            "make room, or lower uploads.max_bytes",
        )
    } else {
        CheckLine::ok("disk", detail)
    }
}

async fn port(server: &ServerConfig) -> CheckLine {
    let place = format!("{}:{}", server.host, server.port);
    match TcpListener::bind((server.host.as_str(), server.port)) {
        Ok(_) if server.port == 0 => CheckLine::ok("port", "any free one"),
        Ok(_) => CheckLine::ok("port", format!("{place} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match running_version(server).await {
            Some(version) => CheckLine::ok("port", format!("gateway {version} is running at {place}")),
            None => CheckLine::failure(
                "port",
                format!("another program is at {place}"),
                "choose another with server.port or --port, or stop it",
            ),
        },
        Err(error) => {
            let detail = format!("{place} cannot be listened on: {error}");
            CheckLine::failure("port", detail, listen_remedy(&error))
        }
    }
}

/// What to do about an address that cannot be listened on.
pub fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "choose another port with --port, or stop what has it (`recording-gateway check` says whether it is a gateway)"
        }
        io::ErrorKind::PermissionDenied => "choose another port with --port: those below 1024 are for root",
        // A name that nobody knows has no kind of its own.
        _ => "set --host to an address of this machine, like 127.0.0.1, or 0.0.0.0 for all that it has",
    }
}

/// The version that a running gateway tells; `None` if whoever is there tells none.
async fn running_version(server: &ServerConfig) -> Option<String> {
    let url = own_address(server).ok()?.join("version").ok()?;
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().ok()?;
    let answer = http.get(url).send().await.ok()?.error_for_status().ok()?;
    let answer: serde_json::Value = answer.json().await.ok()?;
    answer["version"].as_str().map(print::visible)
}

/// The folder itself, or the closest one above it that is there.
fn nearest_existing(dir: &Path) -> &Path {
    dir.ancestors()
        .map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"))
}
