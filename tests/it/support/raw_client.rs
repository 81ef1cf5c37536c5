//! Clients that ordinary ones are not: they send exactly the bytes they are told, stop, hang up or wait where they are
//! told, and see interim answers and closed connections.
//!
//! Apart because HTTP libraries put right what these tests want wrong. What an answer should be is the suites' business.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::gateway::within;

/// The boundary of every [`RawForm`].
pub const BOUNDARY: &str = "----WebKitFormBoundary7MA4YWxkTrZu0gW";
/// The content type of every [`RawForm`].
pub const FORM_TYPE: &str = "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW";

/// One connection.
pub struct RawClient {
    stream: TcpStream,
    /// What came and was not looked at yet.
    unread: Vec<u8>,
}

/// One answer; header names in lower case.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether "100 Continue" came before it.
    pub continued: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The code of a problem; empty if it is none.
    pub fn code(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl RawClient {
    /// Connects to `http://HOST:PORT`.
    pub async fn connect(url: &str) -> Self {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await.expect("it listens");
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the connection takes what is sent");
    }

    /// Sends, where the server may have closed already.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("sending", self.stream.write_all(bytes.as_ref())).await
    }

    /// Says that nothing more comes, and goes on reading.
    pub async fn finish_sending(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Hangs up with a reset, as a crashed client does.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a socket takes the option");
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        within("an answer", self.read_answer(false)).await.expect("an answer comes")
    }

    /// The next answer, which answers a HEAD.
    pub async fn answer_to_head(&mut self) -> Answer {
        within("an answer", self.read_answer(true)).await.expect("an answer comes")
    }

    /// The next answer; `None` if the connection ends instead.
    pub async fn answer_if_any(&mut self) -> Option<Answer> {
        within("an answer or the end", self.read_answer(false)).await
    }

    /// Waits for the end of the connection and returns what came before it.
    pub async fn closed(&mut self) -> Vec<u8> {
        within("the server closes", async { while self.read_more().await {} }).await;
        std::mem::take(&mut self.unread)
    }

    async fn read_more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..))
    }

    async fn read_answer(&mut self, to_head: bool) -> Option<Answer> {
        let mut continued = false;
        loop {
            let end = loop {
                if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                    break at + 4;
                }
                if !self.read_more().await {
                    return None;
                }
            };
            let head = String::from_utf8(self.unread.drain(..end).collect()).expect("a head is text");
            let mut lines = head.trim_end().split("\r\n");
            let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
            if status == 100 {
                continued = true;
                continue;
            }
            let headers: Vec<_> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let mut answer = Answer { status, headers, body: Vec::new(), continued };
            if to_head || matches!(status, 204 | 304) {
                return Some(answer);
            }
            if answer.header("transfer-encoding").is_some() {
                answer.body = self.read_chunks().await?;
            } else if let Some(length) = answer.header("content-length") {
                let length = length.parse().expect("a length");
                while self.unread.len() < length {
                    if !self.read_more().await {
                        return None;
                    }
                }
                answer.body = self.unread.drain(..length).collect();
            } else {
                while self.read_more().await {}
                answer.body = std::mem::take(&mut self.unread);
            }
            return Some(answer);
        }
    }

    /// A chunked body; `None` if it is cut.
    async fn read_chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n") {
                    break at;
                }
                if !self.read_more().await {
                    return None;
                }
            };
            let line = String::from_utf8_lossy(&self.unread[..line_end]).into_owned();
            let size = usize::from_str_radix(&line, 16).expect("a chunk size");
            while self.unread.len() < line_end + 2 + size + 2 {
                if !self.read_more().await {
                    return None;
                }
            }
            body.extend_from_slice(&self.unread[line_end + 2..line_end + 2 + size]);
            self.unread.drain(..line_end + 2 + size + 2);
            if size == 0 {
                return Some(body);
            }
        }
    }
}

/// Sends one request on a connection of its own and reads the answer.
pub async fn exchange(url: &str, request: impl AsRef<[u8]>) -> Answer {
    let mut client = RawClient::connect(url).await;
    client.send(request).await;
    client.answer().await
}

/// A form written by hand.
#[derive(Clone, Default)]
pub struct RawForm(Vec<u8>);

impl RawForm {
    pub fn new() -> Self {
        Self::default()
    }

    /// A part whose header block is given without its last line end.
    pub fn part(mut self, head: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(format!("--{BOUNDARY}\r\n").as_bytes());
        self.0.extend_from_slice(head.as_ref());
        self.0.extend_from_slice(b"\r\n\r\n");
        self.0.extend_from_slice(data.as_ref());
        self.0.extend_from_slice(b"\r\n");
        self
    }

    pub fn text(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.part(format!("Content-Disposition: form-data; name=\"{name}\""), value)
    }

    /// The file as a browser sends it.
    pub fn file(self, data: impl AsRef<[u8]>) -> Self {
        self.file_as("talk.webm", "video/webm", data)
    }

    /// The file under a name, with a type.
    pub fn file_as(self, name: impl AsRef<[u8]>, content_type: &str, data: impl AsRef<[u8]>) -> Self {
        let mut head = b"Content-Disposition: form-data; name=\"recording\"; filename=\"".to_vec();
        head.extend_from_slice(name.as_ref());
        head.extend_from_slice(format!("\"\r\nContent-Type: {content_type}").as_bytes());
        self.part(head, data)
    }

    /// What was written so far, without the closing boundary.
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }

    /// The whole form.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.0
    }
}

/// The head of an upload; `more` are header lines, each with its line end.
pub fn upload_head(session: &str, more: &str) -> String {
    format!(
        "POST /recordings/upload/{session} HTTP/1.1\r\nHost: gateway\r\nContent-Type: {FORM_TYPE}\r\n{more}\r\n"
    )
}

/// An upload of known length.
pub fn upload(session: &str, body: &[u8]) -> Vec<u8> {
    let head = upload_head(session, &format!("Content-Length: {}\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// A body in chunks of `size` bytes.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// A bare request without a body.
pub fn bare(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: gateway\r\n\r\n")
}
