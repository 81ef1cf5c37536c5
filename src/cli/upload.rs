//! `upload`: streams files to a running gateway as forms, one after the other, and compares what arrived.
//!
//! The form is written by hand because its length must be known in advance for a file and unknown for stdin. Bytes are
//! hashed on the way; an answer with another SHA-256 is a failure, whatever its status.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::stream::{self, Stream, StreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::client::{ClientError, Gateway, GatewayArgs};
use super::{Outcome, Settings, print};

/// Read from the file at once.
const BLOCK_BYTES: usize = 256 * 1024;

#[derive(Args, Debug)]
pub(super) struct UploadArgs {
    /// Files to send; - is stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Session they belong to
    #[arg(long, short)]
    session: String,
    /// Kind of recording: 1 to 32 of a-z 0-9 _ -
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "session")]
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

    let boundary = format!("recording-gateway-{}", uuid::Uuid::now_v7().simple());
    // The type goes first, so that the gateway knows the whole name before the bytes come.
    let before = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"recording_type\"\r\n\r\n{}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"recording\"; filename=\"{}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n",
        args.recording_type,
        quoted(&source.filename)
    );
    let after = format!("\r\n--{boundary}--\r\n");
    let whole_length = source.length.map(|length| before.len() as u64 + length + after.len() as u64);

    let hashing = digest.clone();
    let shown = bar.clone();
    let bytes = source.blocks().inspect(move |block| {
        if let (Ok(block), Ok(mut digest)) = (block, hashing.lock()) {
            digest.update(block);
            shown.inc(block.len() as u64);
        }
    });
    let part = |text: String| stream::iter([Ok(Bytes::from(text))]);
    let mut request = gateway
        .request(Method::POST, url)
        .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .body(Body::wrap_stream(part(before).chain(bytes).chain(part(after))));
    if let Some(length) = whole_length {
        request = request.header(CONTENT_LENGTH, length);
    }
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

    fn blocks(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self.reader, |mut reader| async move {
            let mut block = BytesMut::with_capacity(BLOCK_BYTES);
            let read = reader.read_buf(&mut block).await?;
            Ok((read > 0).then(|| (block.freeze(), reader)))
        })
    }
}

/// A file name between quotes in a part's head, escaped as browsers do ("multipart/form-data encoding" in the HTML
/// standard).
fn quoted(filename: &str) -> String {
    filename.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

/// A bar on stderr; indicatif shows none where stderr is no terminal.
fn progress(path: &Path, length: Option<u64>, hidden: bool) -> ProgressBar {
    let (bar, template) = match length {
        _ if hidden => return ProgressBar::hidden(),
        Some(length) => (
            ProgressBar::new(length),
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(path.display().to_string())
}
