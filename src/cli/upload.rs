//! `upload`: streams files to a running gateway as forms, one after the other, and compares what arrived.
//!
//! Bytes are hashed on the way; an answer with another SHA-256 is a failure, whatever its status.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use clap::Args;
use futures_util::stream::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::client::{ClientError, Gateway, GatewayArgs};
use super::form::{UploadForm, blocks};
use super::{Outcome, Settings, print, words};

#[derive(Args, Debug)]
pub(super) struct UploadArgs {
    /// Files to send; - is stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Session they belong to
    #[arg(long, short, value_parser = words::session)]
    session: String,
    /// Kind of recording: 1 to 32 of a-z 0-9 _ -
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "session", value_parser = words::recording_type)]
    recording_type: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &UploadArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    let mut outcome = Outcome::Fine;
    for file in &args.files {
        let name = file.display();
        let sent = send(&gateway, args, file).await;
        if sent.is_err() {
            outcome = Outcome::Failures;
        }
        match sent {
            Ok(mut answer) if args.gateway.json => {
                answer["file"] = json!(name.to_string());
                print::line(answer)?;
            }
            Ok(answer) => {
                let message = answer["message"].as_str().unwrap_or("uploaded");
                let url = answer["public_url"].as_str().unwrap_or_default();
                print::line(print::visible(&format!("{name}: {message} {url}")).trim_end())?;
            }
            Err(error) if args.gateway.json => {
                let told = match error.downcast_ref::<ClientError>() {
                    Some(error) => error.to_json(),
                    None => json!({"detail": format!("{error:#}")}),
                };
                print::line(json!({"file": name.to_string(), "success": false, "error": told}))?;
            }
            Err(error) => print::complain(format_args!("{name}: {error:#}")),
        }
    }
    Ok(outcome)
}

async fn send(gateway: &Gateway, args: &UploadArgs, path: &Path) -> anyhow::Result<Value> {
    let url = gateway.address(&["upload", &args.session])?;
    let source = Source::open(path).await?;
    let bar = progress(path, source.length, args.gateway.json);
    let digest = Arc::new(Mutex::new(Sha256::new()));

    let hashing = digest.clone();
    let shown = bar.clone();
    let length = source.length;
    let form = UploadForm::new(&args.recording_type, &source.filename);
    let bytes = blocks(source.reader).inspect(move |block| {
        if let (Ok(block), Ok(mut digest)) = (block, hashing.lock()) {
            digest.update(block);
            shown.inc(block.len() as u64);
        }
    });
    let request = form.fill(gateway.request(Method::POST, url), bytes, length);
    let answer = gateway.send(request).await;
    bar.finish_and_clear();
    let answer = answer?;

    let sent = digest.lock().map(|digest| hex::encode(digest.clone().finalize())).unwrap_or_default();
    match answer["sha256"].as_str() {
        Some(stored) if stored != sent => {
            anyhow::bail!("the gateway stored other bytes than were sent (SHA-256 {stored}, sent {sent})")
        }
        _ => Ok(answer),
    }
}

/// A file or stdin, opened.
struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    filename: String,
    /// Bytes; not known for stdin and pipes.
    length: Option<u64>,
}

impl Source {
    async fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("cannot be read")?;
            let stdin = File::from_std(std::fs::File::from(stdin));
            return Ok(Self { reader: Box::new(stdin), filename: "stdin".into(), length: None });
        }
        let file = File::open(path).await.context("cannot be opened")?;
        let facts = file.metadata().await.context("cannot be read")?;
        anyhow::ensure!(!facts.is_dir(), "is a folder; name the files in it");
        let filename = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let length = facts.is_file().then_some(facts.len());
        Ok(match length {
            // Not further than the length that was promised, should the file be growing.
            Some(length) => Self { reader: Box::new(file.take(length)), filename, length: Some(length) },
            None => Self { reader: Box::new(file), filename, length: None },
        })
    }
}

/// A bar on stderr; indicatif shows none where stderr is no terminal.
fn progress(path: &Path, length: Option<u64>, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let bar = match length {
        Some(length) => print::bytes_bar(length),
        None => {
            let bar = ProgressBar::new_spinner();
            match ProgressStyle::with_template("{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        }
    };
    bar.with_message(path.display().to_string())
}
