//! A client that sends exactly the bytes it is told, reads the answer while still sending, and can hang up.
//!
//! Apart because ordinary clients normalise paths, add headers and hide what the connection does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::bodies::Body;

const PATIENCE: Duration = Duration::from_secs(20);

/// An answer in its parts; header names in lower case.
#[derive(Debug)]
pub struct Received {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the server closed the connection after it.
    pub closed: bool,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Sends one request on a connection of its own; `None` when the body was to be cut.
pub async fn send(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: Body,
    expect_close: bool,
) -> Option<Received> {
    let stream = TcpStream::connect(to).await.expect("the fake listens");
    let (mut read, mut write) = stream.into_split();
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {to}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match &body {
        Body::None | Body::Withheld => {}
        Body::Plain(bytes) => head.push_str(&format!("Content-Length: {}\r\n", bytes.len())),
        Body::Cut(Some(length), _) => head.push_str(&format!("Content-Length: {length}\r\n")),
        Body::Chunked(_) | Body::Cut(None, _) => head.push_str("Transfer-Encoding: chunked\r\n"),
    }
    head.push_str("\r\n");
    write.write_all(head.as_bytes()).await.expect("a fresh connection takes a head");
    if let Body::Cut(length, bytes) = body {
        if length.is_none() {
            write.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await.expect("sent");
        }
        write.write_all(&bytes).await.expect("sent");
        return None;
    }
    let sending = tokio::spawn(async move {
        // A server that refuses early may close while this is still under way.
        match body {
            Body::Plain(bytes) => drop(write.write_all(&bytes).await),
            Body::Chunked(bytes) => {
                for piece in bytes.chunks(7000) {
                    let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                    chunk.extend_from_slice(piece);
                    chunk.extend_from_slice(b"\r\n");
                    if write.write_all(&chunk).await.is_err() {
                        return write;
                    }
                }
                drop(write.write_all(b"0\r\n\r\n").await);
            }
            _ => {}
        }
        write
    });
    let received = timeout(PATIENCE, receive(&mut read, method == "HEAD", expect_close)).await;
    sending.abort();
    Some(received.unwrap_or_else(|_| panic!("no answer to {method} {target}")))
}

/// Reads one answer, interim answers skipped.
pub async fn receive(read: &mut (impl AsyncReadExt + Unpin), is_head: bool, expect_close: bool) -> Received {
    let mut bytes = Vec::new();
    let (status, headers, mut at) = loop {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
                break at;
            }
            let count = read.read_buf(&mut bytes).await.expect("the answer arrives");
            assert!(count > 0, "the connection ended before an answer: {}", String::from_utf8_lossy(&bytes));
        };
        let head = String::from_utf8(bytes[..end].to_vec()).expect("an answer's head is text");
        let mut lines = head.split("\r\n");
        let status: u16 =
            lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status").parse().expect("number");
        if status == 100 {
            bytes.drain(..end + 4);
            continue;
        }
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        break (status, headers, end + 4);
    };
    let mut received = Received { status, headers, body: Vec::new(), closed: false };
    let length: usize = received.header("content-length").map_or(0, |text| text.parse().expect("a length"));
    if received.header("transfer-encoding").is_some() {
        while !bytes[at..].ends_with(b"0\r\n\r\n") {
            assert!(read.read_buf(&mut bytes).await.expect("the answer arrives") > 0);
        }
        at = bytes.len();
    } else if !is_head && status != 204 && status != 304 {
        while bytes.len() < at + length {
            assert!(read.read_buf(&mut bytes).await.expect("the answer arrives") > 0, "the answer was cut");
        }
        received.body = bytes[at..at + length].to_vec();
        at += length;
    }
    assert_eq!(bytes.len(), at, "bytes after the answer");
    if expect_close {
        // An orderly end or a reset: either way the connection is over.
        received.closed = !matches!(timeout(PATIENCE, read.read_buf(&mut bytes)).await, Err(_) | Ok(Ok(1..)));
    }
    received
}
