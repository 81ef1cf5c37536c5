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
    pub fn begin_form(&mut self, path: &str, size: u64, chunked: bool) -> anyhow::Result<()> {
        self.stream.write_all(form_head(path, size, chunked).as_bytes())?;
        self.send(part_head().as_bytes(), chunked)
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

    /// A whole form upload to the gateway.
    pub fn upload(
        &mut self,
        data: &Data,
        session: &str,
        size: u64,
        framing: Framing,
    ) -> anyhow::Result<Answered> {
        self.form(data, &format!("/recordings/upload/{session}"), size, framing)
    }

    /// The same to any path.
    pub fn form(&mut self, data: &Data, path: &str, size: u64, framing: Framing) -> anyhow::Result<Answered> {
        let Framing { piece, chunked } = framing;
        let start = Instant::now();
        self.begin_form(path, size, chunked)?;
        for bytes in data.pieces(size, piece) {
            self.send(bytes, chunked)?;
        }
        self.end_upload(chunked)?;
        let sending = start.elapsed();
        let json = self.json()?;
        Ok(Answered { sending, whole: start.elapsed(), json })
    }

    /// The bytes as the body of a PUT.
    pub fn put(&mut self, data: &Data, path: &str, size: u64) -> anyhow::Result<()> {
        self.whole(&format!("PUT {path}"), "", data, size)
    }

    /// An upload of the tus protocol, version 1.0.0: created, then sent whole in one request.
    pub fn tus(&mut self, data: &Data, path: &str, size: u64) -> anyhow::Result<()> {
        let create = format!(
            "POST {path} HTTP/1.1\r\nHost: bench\r\nTus-Resumable: 1.0.0\r\nUpload-Length: {size}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        self.stream.write_all(create.as_bytes())?;
        let head = self.no_content(201)?;
        let location = header(&head, "location").context("a creation without a Location")?;
        let file = location.find(path).map(|at| &location[at..]).context("a Location elsewhere")?;
        let headers = "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n\
                       Content-Type: application/offset+octet-stream\r\n";
        self.whole(&format!("PATCH {file}"), headers, data, size)
    }

    fn whole(&mut self, target: &str, headers: &str, data: &Data, size: u64) -> anyhow::Result<()> {
        let head = format!("{target} HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n{headers}\r\n");
        self.stream.write_all(head.as_bytes())?;
        data.pieces(size, LARGE.piece).try_for_each(|piece| self.send(piece, false))?;
        self.no_content(if target.starts_with("PUT") { 201 } else { 204 }).map(drop)
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
        let (head, body) = self.read_past(b"\r\n\r\n")?;
        let length = header(&head, "content-length").context("an answer without a length")?;
        Ok((status(&head)?, length.parse()?, body))
    }

    /// An answer with that status and an empty body; its head.
    fn no_content(&mut self, wanted: u16) -> anyhow::Result<String> {
        let (head, mut body) = self.read_past(b"\r\n\r\n")?;
        ensure!(status(&head)? == wanted, "not {wanted}: {head}");
        if header(&head, "transfer-encoding").is_some() {
            while body.len() < LAST_CHUNK.len() {
                let mut some = [0; LAST_CHUNK.len()];
                let n = self.stream.read(&mut some)?;
                ensure!(n > 0, "the answer broke off");
                body.extend_from_slice(&some[..n]);
            }
            ensure!(body == LAST_CHUNK, "an answer with a body");
        }
        Ok(head)
    }

    /// The text up to `end`, and what came with it.
    fn read_past(&mut self, end: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
        let mut head = Vec::new();
        let end = loop {
            if let Some(at) = memchr::memmem::find(&head, end) {
                break at + end.len();
            }
            let mut some = [0; 4096];
            let n = self.stream.read(&mut some)?;
            ensure!(n > 0, "the connection was closed instead of an answer");
            head.extend_from_slice(&some[..n]);
        };
        let rest = head.split_off(end);
        Ok((String::from_utf8(head)?, rest))
    }
}

/// The end of a chunked body that is empty.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn status(head: &str) -> anyhow::Result<u16> {
    Ok(head.split(' ').nth(1).context("no status")?.trim().parse()?)
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).next()
}

/// The head of the request that uploads a form.
pub fn form_head(path: &str, size: u64, chunked: bool) -> String {
    let length = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", part_head().len() as u64 + size + form_end().len() as u64),
    };
    format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n"
    )
}

/// What stands in the body before the data.
pub fn part_head() -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"recording\"; filename=\"bench.webm\"\r\n\
         Content-Type: video/webm\r\n\r\n"
    )
}

/// What follows the data.
pub fn form_end() -> String {
    format!(
        "\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"recording_type\"\r\n\r\nsession\r\n\
         --{BOUNDARY}--\r\n"
    )
}
