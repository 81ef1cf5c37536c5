//! HTTP/1.1 by hand: one connection, its request heads, its bodies as they arrive, and answers as bytes.
//!
//! Apart from everything else because the faults need the raw connection (a reset, half an answer, a body that is
//! never read), which no HTTP library hands out. Nothing about buckets, keys or tokens may be known here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::blob::Blob;

/// All request headers together, request line included (recorded: over it the answer is 431).
const MAX_HEAD_BYTES: usize = 16 * 1024;
const READ_BYTES: usize = 256 * 1024;
/// How much later than asked a timer may be without the slow line losing it.
const LATENESS: Duration = Duration::from_millis(50);

/// A request line with its headers, as sent.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether the client asked for the connection to end with this answer.
    pub fn wants_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Why no request could be read.
pub enum NoHead {
    /// The client closed, or the connection broke.
    Gone,
    TooLarge,
    Malformed,
}

/// What of the current request's body is still to come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    Nothing,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
}

/// One accepted connection.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    left: Left,
    /// Body bytes of the current request read so far.
    pub body_bytes: u64,
    /// Bytes per second at which the current request's body is read; `None` is as fast as it comes.
    pub read_rate: Option<u64>,
    /// When the line has carried what was read so far.
    carried: Instant,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Connection {
            stream,
            buffer: BytesMut::new(),
            left: Left::Nothing,
            body_bytes: 0,
            read_rate: None,
            carried: Instant::now(),
        }
    }

    /// Reads the next request head and answers `Expect: 100-continue`, which the server does before any check.
    pub async fn read_head(&mut self) -> Result<Head, NoHead> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(NoHead::TooLarge);
            }
            if self.fill().await.map_err(|_| NoHead::Gone)? == 0 {
                return Err(NoHead::Gone);
            }
        };
        if end > MAX_HEAD_BYTES {
            return Err(NoHead::TooLarge);
        }
        let text = self.buffer.split_to(end + 4);
        let head = parse_head(&text[..end]).ok_or(NoHead::Malformed)?;
        self.body_bytes = 0;
        self.left =
            if head.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked")) {
                Left::ChunkSize
            } else {
                match head.header("content-length").map(str::parse::<u64>) {
                    None | Some(Ok(0)) => Left::Nothing,
                    Some(Ok(length)) => Left::Length(length),
                    Some(Err(_)) => return Err(NoHead::Malformed),
                }
            };
        if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| NoHead::Gone)?;
        }
        Ok(head)
    }

    /// The next piece of the body, or `None` at its clean end. An end before that is an error.
    /// Safe to drop; with a `read_rate` a piece may be lost then.
    pub async fn read_body(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.left {
                Left::Nothing => return Ok(None),
                Left::Length(length) => {
                    let piece = self.take(length).await?;
                    self.left = match length - piece.len() as u64 {
                        0 => Left::Nothing,
                        rest => Left::Length(rest),
                    };
                    return Ok(Some(self.paced(piece).await));
                }
                Left::ChunkSize => {
                    let line = self.line().await?;
                    let digits = line.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                    if size > 0 {
                        self.left = Left::Chunk(size);
                    } else {
                        while !self.line().await?.is_empty() {}
                        self.left = Left::Nothing;
                    }
                }
                Left::Chunk(size) => {
                    let piece = self.take(size).await?;
                    self.left = match size - piece.len() as u64 {
                        0 => Left::ChunkEnd,
                        rest => Left::Chunk(rest),
                    };
                    return Ok(Some(self.paced(piece).await));
                }
                Left::ChunkEnd => {
                    self.line().await?;
                    self.left = Left::ChunkSize;
                }
            }
        }
    }

    /// Reads the rest of the body, at most `limit` bytes of it; says whether its end was reached.
    pub async fn drain(&mut self, limit: u64) -> io::Result<bool> {
        if let Left::Length(length) = self.left
            && length > limit
        {
            return Ok(false);
        }
        let mut drained = 0;
        while let Some(piece) = self.read_body().await? {
            drained += piece.len() as u64;
            if drained > limit {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the whole body of the current request was read.
    pub fn body_is_read(&self) -> bool {
        self.left == Left::Nothing
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ends the connection with a reset instead of an orderly close.
    pub fn reset(self) {
        // A socket that cannot be told to linger for no time is closed in order: the fault is weaker, not lost.
        let _ = self.stream.set_zero_linger();
    }

    /// Waits until the client closes, discarding nothing: what it sends stays in the kernel's buffers.
    pub async fn hold(&self) {
        std::future::pending::<()>().await
    }

    /// Ends the connection after the last answer. Closing at once while the client still sends turns into a reset,
    /// which can cost it the answer; lingering takes in and forgets what still comes, for a while.
    pub async fn finish(mut self, linger: Option<Duration>) {
        let _ = self.stream.shutdown().await;
        let forget = async {
            self.buffer.clear();
            while matches!(self.fill().await, Ok(1..)) {
                self.buffer.clear();
            }
        };
        if let Some(time) = linger {
            let _ = tokio::time::timeout(time, forget).await;
        }
    }

    async fn take(&mut self, most: u64) -> io::Result<Bytes> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let paced = self.read_rate.map_or(u64::MAX, |rate| (rate / 20).max(1));
        let size = (self.buffer.len() as u64).min(most).min(paced);
        self.body_bytes += size;
        Ok(self.buffer.split_to(size as usize).freeze())
    }

    /// By the clock: timers are late, and the more the smaller the pieces are.
    async fn paced(&mut self, piece: Bytes) -> Bytes {
        if let Some(rate) = self.read_rate {
            // A line does not carry later what it did not carry now.
            let begun = self.carried.max(Instant::now() - LATENESS);
            self.carried = begun + Duration::from_secs_f64(piece.len() as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(self.carried).await;
        }
        piece
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line = self.buffer.split_to(at + 2);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.buffer).await
    }
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let line_end = memchr::memmem::find(bytes, b"\r\n").unwrap_or(bytes.len());
    // Recorded: raw non-ASCII in the request line is refused before any route is looked at.
    let request_line = std::str::from_utf8(&bytes[..line_end]).ok().filter(|line| line.is_ascii())?;
    let mut words = request_line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if words.next() != Some("HTTP/1.1") || words.next().is_some() {
        return None;
    }
    let mut headers = Vec::new();
    for line in String::from_utf8_lossy(&bytes[line_end..]).split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Some(Head { method: method.to_owned(), target: target.to_owned(), headers })
}

/// What an answer carries.
#[derive(Clone)]
pub enum Content {
    Nothing,
    /// No bytes, announced as chunked (the created answer of resumable uploads).
    EmptyChunked,
    Bytes(Vec<u8>),
    /// A piece of a stored object: `start` and `length` in bytes.
    Blob {
        blob: Arc<Blob>,
        start: u64,
        length: u64,
    },
}

/// What happens to the connection once the answer is out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// The rest of the request is read and the connection goes on.
    Drain,
    /// The rest of the request is never read although the answer says keep-alive: the connection hazard.
    StopReading,
    Close,
}

/// One answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content: Content,
    pub after: After,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Answer { status, headers: Vec::new(), content: Content::Nothing, after: After::Drain }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Answer::new(status).with("content-type", "application/json; charset=utf-8").body(body.to_string())
    }

    pub fn text(status: u16, content_type: &str, body: &str) -> Self {
        Answer::new(status).with("content-type", content_type).body(body)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.content = Content::Bytes(body.into());
        self
    }

    pub fn after(mut self, after: After) -> Self {
        self.after = after;
        self
    }

    fn length(&self) -> u64 {
        match &self.content {
            Content::Nothing | Content::EmptyChunked => 0,
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob { length, .. } => *length,
        }
    }

    /// Sends the answer. `close` is what the Connection header says; `cut` sends only half of the content.
    pub async fn send(&self, to: &mut Connection, is_head: bool, close: bool, cut: bool) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if matches!(self.content, Content::EmptyChunked) {
            head.push_str("transfer-encoding: chunked\r\n");
        } else if self.status != 204 && !self.headers.iter().any(|(name, _)| name == "content-length") {
            head.push_str(&format!("content-length: {}\r\n", self.length()));
        }
        head.push_str(if close { "connection: close\r\n\r\n" } else { "connection: keep-alive\r\n\r\n" });
        let mut bytes = head.into_bytes();
        let share = if cut { self.length() / 2 } else { self.length() };
        match &self.content {
            _ if is_head => to.write(&bytes).await?,
            Content::Nothing => to.write(&bytes).await?,
            Content::EmptyChunked => {
                bytes.extend_from_slice(b"0\r\n\r\n");
                to.write(&bytes).await?;
            }
            Content::Bytes(body) => {
                bytes.extend_from_slice(&body[..share as usize]);
                to.write(&bytes).await?;
            }
            Content::Blob { blob, start, .. } => {
                to.write(&bytes).await?;
                let mut at = *start;
                while at < start + share {
                    let piece = blob.read(at, (start + share - at).min(READ_BYTES as u64))?;
                    to.write(&piece).await?;
                    at += piece.len() as u64;
                }
            }
        }
        Ok(())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}
