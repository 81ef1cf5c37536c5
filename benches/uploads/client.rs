//! A plain fast client: a blocking socket, bytes from memory, nothing per byte but the write.
//!
//! Apart because every server under measurement has to be fed by the same hand. Nothing here times or judges.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

/// What separates the parts of a form; the data is random and does not contain it.
pub const BOUNDARY: &str = "----uploads-bench-7f3a91c2d4";
/// Bytes of data that are kept in memory and sent again and again: more than any cache holds.
const DATA_BYTES: usize = 64 << 20;
/// The start of a WebM file, so that a recording is taken for one.
const WEBM_HEAD: &[u8] =
    b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\
    \x42\x82\x84webm\x42\x87\x81\x04\x42\x85\x81\x02";

/// The bytes of every upload, as long as is wanted: one random block over and over.
pub struct Data(Vec<u8>);

impl Data {
    /// The same bytes in every run.
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = Vec::with_capacity(DATA_BYTES);
        while bytes.len() < DATA_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes[..WEBM_HEAD.len()].copy_from_slice(WEBM_HEAD);
        Self(bytes)
    }

    /// `size` bytes in pieces of `piece`, which divides the block.
    pub fn pieces(&self, size: u64, piece: usize) -> impl Iterator<Item = &[u8]> {
        let mut left = size;
        self.0.chunks(piece).cycle().map_while(move |chunk| {
            let n = left.min(chunk.len() as u64);
            left -= n;
            (n > 0).then(|| &chunk[..n as usize])
        })
    }
}

/// How the request's body is cut.
#[derive(Clone, Copy)]
pub struct Framing {
    /// Bytes of one write.
    pub piece: usize,
    /// Each write is a chunk of a chunked body, which a server sees as a frame of its own however fast they come.
    pub chunked: bool,
}

/// As fast as it goes.
pub const LARGE: Framing = Framing { piece: 256 << 10, chunked: false };
/// Small writes; the server may find several of them in its socket.
pub const WRITES_16K: Framing = Framing { piece: 16 << 10, chunked: false };
/// Small frames for certain.
pub const FRAMES_16K: Framing = Framing { piece: 16 << 10, chunked: true };

/// A successful answer and how long it took.
pub struct Answered {
    /// From the first byte to the last one given to the socket.
    pub sending: Duration,
    /// From the connection to the end of the answer.
    pub whole: Duration,
    /// The answer's body.
    pub json: Value,
}

/// One connection that is kept.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends the part of a form upload before the data.
    pub fn begin_upload(&mut self, session: &str, size: u64, chunked: bool) -> anyhow::Result<()> {
        let (part, end) = (part_head(), form_end());
        let length = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", part.len() as u64 + size + end.len() as u64),
        };
        let head = format!(
            "POST /recordings/upload/{session} HTTP/1.1\r\nHost: bench\r\n\
             Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        self.send(part.as_bytes(), chunked)
    }

    /// Sends some of the data.
    pub fn send(&mut self, bytes: &[u8], chunked: bool) -> anyhow::Result<()> {
        if !chunked {
            return Ok(self.stream.write_all(bytes)?);
        }
        // One write for the frame: its size line, its bytes, its line end.
        self.buffer.clear();
        write!(self.buffer, "{:x}\r\n", bytes.len())?;
        self.buffer.extend_from_slice(bytes);
        self.buffer.extend_from_slice(b"\r\n");
        Ok(self.stream.write_all(&self.buffer)?)
    }

    /// Sends what follows the data.
    pub fn end_upload(&mut self, chunked: bool) -> anyhow::Result<()> {
        self.send(form_end().as_bytes(), chunked)?;
        if chunked {
            self.stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(())
    }

    /// A whole form upload.
    pub fn upload(
        &mut self,
        data: &Data,
        session: &str,
        size: u64,
        framing: Framing,
    ) -> anyhow::Result<Answered> {
        let Framing { piece, chunked } = framing;
        let start = Instant::now();
        self.begin_upload(session, size, chunked)?;
        for bytes in data.pieces(size, piece) {
            self.send(bytes, chunked)?;
        }
        self.end_upload(chunked)?;
        let sending = start.elapsed();
        let json = self.json()?;
        Ok(Answered { sending, whole: start.elapsed(), json })
    }

    /// Asks for a path, perhaps a range of it, and reads the answer's bytes away. Returns how many there were.
    pub fn get(&mut self, path: &str, range: Option<(u64, u64)>) -> anyhow::Result<u64> {
        let range = range.map_or(String::new(), |(first, last)| format!("Range: bytes={first}-{last}\r\n"));
        let head = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{range}\r\n");
        self.stream.write_all(head.as_bytes())?;
        let (status, length, body) = self.answer_head()?;
        ensure!(matches!(status, 200 | 206), "GET {path} answered {status}");
        let mut left = length - body.len() as u64;
        self.buffer.resize(256 << 10, 0);
        while left > 0 {
            let n = self.stream.read(&mut self.buffer)?;
            ensure!(n > 0, "the answer to GET {path} broke off");
            left = left.checked_sub(n as u64).context("more bytes than announced")?;
        }
        Ok(length)
    }

    /// Asks for a path and reads the answer as text.
    pub fn text(&mut self, path: &str) -> anyhow::Result<String> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
        let (status, length, mut body) = self.answer_head()?;
        let have = body.len();
        body.resize(usize::try_from(length)?, 0);
        self.stream.read_exact(&mut body[have..])?;
        ensure!(status == 200, "GET {path} answered {status}");
        Ok(String::from_utf8(body)?)
    }

    /// Reads a JSON answer; an error unless it is a success.
    pub fn json(&mut self) -> anyhow::Result<Value> {
        let (status, length, mut body) = self.answer_head()?;
        let have = body.len();
        body.resize(usize::try_from(length)?, 0);
        self.stream.read_exact(&mut body[have..])?;
        ensure!(status == 200, "answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Status, length and the first bytes of the body.
    fn answer_head(&mut self) -> anyhow::Result<(u16, u64, Vec<u8>)> {
        let mut head = Vec::new();
        let end = loop {
            if let Some(at) = memchr::memmem::find(&head, b"\r\n\r\n") {
                break at + 4;
            }
            let mut some = [0; 4096];
            let n = self.stream.read(&mut some)?;
            ensure!(n > 0, "the connection was closed instead of an answer");
            head.extend_from_slice(&some[..n]);
        };
        let body = head.split_off(end);
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        Ok((status, length.context("an answer without a length")?.trim().parse()?, body))
    }
}

fn part_head() -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"recording\"; filename=\"bench.webm\"\r\n\
         Content-Type: video/webm\r\n\r\n"
    )
}

fn form_end() -> String {
    format!(
        "\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"recording_type\"\r\n\r\nsession\r\n\
         --{BOUNDARY}--\r\n"
    )
}
