//! The reader of `multipart/form-data` bodies: frames in, parts and slices of those frames out.
//!
//! Apart from the upload route because a hostile body must be met by plain parsing rules (RFC 7578, RFC 2046 section
//! 5.1) with a bound on everything, and because nothing here may know what a recording is. It pulls, it starts no task
//! and it never collects a body: what it keeps is the rest of the current frame, one header line and a counter.
//!
//! The delimiter is CR LF `--` and the boundary. A boundary has no CR, so a delimiter has exactly one, at its start: when
//! a partial match breaks, no shorter one can be hiding in it, and the bytes held back at a frame's end are always a prefix
//! of the delimiter. The reader therefore remembers their *number* and hands out a slice of its own delimiter if they turn
//! out to be data. Every byte is searched once, whatever the input.

mod head;
#[cfg(test)]
mod tests;

use axum::http::HeaderMap;
use bytes::{Buf, Bytes};
use futures_util::stream::Fuse;
use futures_util::{Stream, StreamExt};
use memchr::memmem::Finder;

pub use head::{PartHead, boundary};

/// What may follow the boundary on its own line: spaces and tabs that a mail relay could have added, and CR LF.
const BOUNDARY_LINE_BYTES: usize = 256;

/// Bounds on everything in a form but the data of its parts, which the caller counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Parts in the form.
    pub parts: usize,
    /// Bytes of one part's header block, its line ends included.
    pub header_bytes_per_part: usize,
    /// Header lines of one part.
    pub headers_per_part: usize,
    /// Bytes before the first boundary, which are skipped.
    pub preamble_bytes: usize,
    /// Bytes after the closing boundary's line, which are skipped.
    pub epilogue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parts: 64,
            header_bytes_per_part: 16 * 1024,
            headers_per_part: 32,
            preamble_bytes: 4 * 1024,
            epilogue_bytes: 4 * 1024,
        }
    }
}

/// What is wrong with a form; each message says what its sender should do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum FormError {
    #[error("Send the form as multipart/form-data.")]
    NotAForm,
    #[error("Name the boundary in the Content-Type header, as in multipart/form-data; boundary=XYZ.")]
    BoundaryMissing,
    #[error(
        "Give one boundary of 1 to 70 characters from those RFC 2046 allows, in quotes unless they are token characters."
    )]
    BoundaryInvalid,
    #[error("Send a body that contains the boundary its Content-Type header names.")]
    BoundaryNotFound,
    #[error("Begin the body with the boundary; more than {max} bytes came before it.")]
    PreambleTooLong { max: usize },
    #[error("Send the whole form again; it ended before its closing boundary.")]
    Truncated,
    #[error("Put a line end after each boundary, and choose one that does not occur in the data.")]
    JunkAfterBoundary,
    #[error("Send a form of at most {max} parts.")]
    TooManyParts { max: usize },
    #[error("Keep the header block of each part within {max} bytes.")]
    HeadTooLong { max: usize },
    #[error("Send at most {max} header lines in each part.")]
    TooManyHeaders { max: usize },
    #[error(
        "Write each part header as `Name: value` on one line that ends in CR LF, without control characters."
    )]
    MalformedHeader,
    #[error("Write each part header on a single line; folded lines are not read.")]
    FoldedHeader,
    #[error("Give each part exactly one header `Content-Disposition: form-data; name=\"...\"`.")]
    DispositionMissing,
    #[error(
        "Write the Content-Disposition header of each part as `form-data; name=\"...\"`, each parameter once."
    )]
    MalformedDisposition,
    #[error("Write field names in UTF-8.")]
    NameNotUtf8,
    #[error("Send part data as it is; Content-Transfer-Encoding is not decoded.")]
    TransferEncoded,
    #[error("End the body after the closing boundary; more than {max} bytes followed it.")]
    EpilogueTooLong { max: usize },
    #[error("Send the form again; reading it has failed already.")]
    AlreadyFailed,
}

/// Why reading stopped: the connection or the form.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The body stream failed: the client is gone, or a limit further down was met.
    #[error("the request body could not be read")]
    Stream(#[source] E),
    /// The bytes are not a form that is acceptable here.
    #[error(transparent)]
    Form(#[from] FormError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    /// The delimiter was met; the rest of its line says whether a part or the end follows.
    BoundaryLine,
    Head,
    Data,
    Epilogue,
    Done,
    Failed,
}

/// Reads one form from a stream of frames.
///
/// Only `Ok(None)` from [`FormReader::next_part`] says that the form is whole: its closing boundary was seen and the body
/// ended cleanly after it. Until then everything received is provisional, a part whose data came to its end included; after
/// any error the caller removes what it staged. Both reading functions are safe to drop and call again: all progress
/// is in the reader.
pub struct FormReader<S> {
    /// Asked again after its end where the closing boundary has no line end.
    stream: Fuse<S>,
    limits: Limits,
    /// CR LF, two dashes, the boundary.
    delimiter: Bytes,
    finder: Finder<'static>,
    state: State,
    /// What the current frame still has; empty between frames, so that no frame is kept alive for nothing.
    frame: Bytes,
    received: u64,
    /// How much of the delimiter the bytes up to here match, held back from the data.
    matched: usize,
    /// Where in the delimiter that began: 2 at the start of a body or a part, whose line end came before.
    matched_from: usize,
    skipped: usize,
    parts: usize,
    part_start: u64,
    line: Vec<u8>,
    head_bytes: usize,
    headers: HeaderMap,
    #[cfg(test)]
    searched: u64,
}

impl<S, E> FormReader<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// A reader at the start of a body whose boundary is known, see [`boundary`].
    pub fn new(stream: S, boundary: &str, limits: Limits) -> Self {
        let delimiter = Bytes::from(format!("\r\n--{boundary}"));
        Self {
            stream: stream.fuse(),
            limits,
            finder: Finder::new(&delimiter).into_owned(),
            delimiter,
            state: State::Preamble,
            frame: Bytes::new(),
            received: 0,
            matched: 2,
            matched_from: 2,
            skipped: 0,
            parts: 0,
            part_start: 0,
            line: Vec::new(),
            head_bytes: 0,
            headers: HeaderMap::new(),
            #[cfg(test)]
            searched: 0,
        }
    }

    /// The next part's headers, after skipping what is left of the current part; `None` when the form is whole.
    pub async fn next_part(&mut self) -> Result<Option<PartHead>, ReadError<E>> {
        let outcome = self.advance().await;
        if outcome.is_err() {
            self.fail();
        }
        outcome
    }

    /// The next bytes of the current part, never empty; `None` once the delimiter after it was seen, or between parts.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ReadError<E>> {
        match self.state {
            State::Failed => return Err(FormError::AlreadyFailed.into()),
            State::Data => {}
            _ => return Ok(None),
        }
        let outcome = self.before_delimiter().await;
        match &outcome {
            Ok(Some(_)) => {}
            Ok(None) => self.state = State::BoundaryLine,
            Err(_) => self.fail(),
        }
        outcome
    }

    /// Bytes of the body that were taken in so far: received, less what the current frame still has.
    pub fn bytes_read(&self) -> u64 {
        self.received - self.frame.len() as u64
    }

    /// The length in bytes of the current part's data, if this part is the form's last one.
    ///
    /// A hint for reserving space, not a promise: more parts may follow, and the closing boundary is taken to end in
    /// CR LF as browsers and curl send it, so without that line end the answer is two too low. `content_length` is that of
    /// the request. `None` if it leaves no room for a part.
    pub fn expected_part_len(&self, content_length: u64) -> Option<u64> {
        let closing = self.delimiter.len() as u64 + "--\r\n".len() as u64;
        content_length.checked_sub(self.part_start)?.checked_sub(closing)
    }

    async fn advance(&mut self) -> Result<Option<PartHead>, ReadError<E>> {
        loop {
            match self.state {
                State::Preamble => {
                    while let Some(skipped) = self.before_delimiter().await? {
                        self.skipped += skipped.len();
                        if self.skipped > self.limits.preamble_bytes {
                            return Err(FormError::PreambleTooLong { max: self.limits.preamble_bytes }.into());
                        }
                    }
                    self.state = State::BoundaryLine;
                }
                State::Data => {
                    while self.before_delimiter().await?.is_some() {}
                    self.state = State::BoundaryLine;
                }
                State::BoundaryLine => self.boundary_line().await?,
                State::Head => return self.head().await.map(Some),
                State::Epilogue => self.epilogue().await?,
                State::Done => return Ok(None),
                State::Failed => return Err(FormError::AlreadyFailed.into()),
            }
        }
    }

    /// Bytes up to the next delimiter, slice by slice; `None` once when the delimiter has been passed.
    async fn before_delimiter(&mut self) -> Result<Option<Bytes>, ReadError<E>> {
        loop {
            if self.matched == self.delimiter.len() {
                (self.matched, self.matched_from) = (0, 0);
                return Ok(None);
            }
            if self.frame.is_empty() && !self.pull().await? {
                let missing = match self.state {
                    State::Preamble => FormError::BoundaryNotFound,
                    _ => FormError::Truncated,
                };
                return Err(missing.into());
            }
            if self.matched > 0 {
                let wanted = &self.delimiter[self.matched..];
                let more = wanted.iter().zip(&self.frame).take_while(|(a, b)| a == b).count();
                self.note_search(more + 1);
                self.consume(more);
                self.matched += more;
                if self.matched == self.delimiter.len() || self.frame.is_empty() {
                    continue;
                }
                let data = self.delimiter.slice(self.matched_from..self.matched);
                (self.matched, self.matched_from) = (0, 0);
                if data.is_empty() {
                    continue;
                }
                return Ok(Some(data));
            }
            let data = match self.finder.find(&self.frame) {
                Some(at) => {
                    self.note_search(at + self.delimiter.len());
                    let data = self.frame.split_to(at);
                    self.consume(self.delimiter.len());
                    self.matched = self.delimiter.len();
                    data
                }
                None => {
                    self.note_search(self.frame.len());
                    self.matched = self.undecided_tail();
                    let mut data = std::mem::take(&mut self.frame);
                    data.truncate(data.len() - self.matched);
                    data
                }
            };
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// How many bytes at the frame's end could begin a delimiter. The frame is known not to hold a whole one.
    fn undecided_tail(&self) -> usize {
        let window_start = self.frame.len().saturating_sub(self.delimiter.len() - 1);
        let window = &self.frame[window_start..];
        match memchr::memrchr(b'\r', window) {
            Some(cr) if self.delimiter.starts_with(&window[cr..]) => window.len() - cr,
            _ => 0,
        }
    }

    /// What stands behind a boundary: `--` for the end or nothing for a part, then padding and the line end.
    async fn boundary_line(&mut self) -> Result<(), ReadError<E>> {
        let ended = self.read_line(BOUNDARY_LINE_BYTES, FormError::JunkAfterBoundary).await?;
        let line = self.line.as_slice();
        let (closing, rest) = match line.strip_prefix(b"--") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let padding = match (rest.strip_suffix(b"\r\n"), ended, closing) {
            (Some(padding), _, _) => padding,
            (None, false, true) => rest, // the body may end without a line end
            (None, false, false) => return Err(FormError::Truncated.into()),
            (None, true, _) => return Err(FormError::JunkAfterBoundary.into()),
        };
        if padding.iter().any(|byte| !matches!(byte, b' ' | b'\t')) {
            return Err(FormError::JunkAfterBoundary.into());
        }
        self.line.clear();
        if closing {
            self.skipped = 0;
            self.state = State::Epilogue;
        } else {
            self.parts += 1;
            if self.parts > self.limits.parts {
                return Err(FormError::TooManyParts { max: self.limits.parts }.into());
            }
            self.head_bytes = 0;
            self.state = State::Head;
        }
        Ok(())
    }

    async fn head(&mut self) -> Result<PartHead, ReadError<E>> {
        let max = self.limits.header_bytes_per_part;
        loop {
            if !self.read_line(max - self.head_bytes, FormError::HeadTooLong { max }).await? {
                return Err(FormError::Truncated.into());
            }
            if self.line == b"\r\n" {
                break;
            }
            if self.headers.len() == self.limits.headers_per_part {
                return Err(FormError::TooManyHeaders { max: self.limits.headers_per_part }.into());
            }
            let (name, value) = head::header_line(&self.line)?;
            self.headers.append(name, value);
            self.head_bytes += self.line.len();
            self.line.clear();
        }
        self.line.clear();
        self.part_start = self.bytes_read();
        (self.matched, self.matched_from) = (2, 2);
        self.state = State::Data;
        Ok(PartHead::parse(std::mem::take(&mut self.headers))?)
    }

    async fn epilogue(&mut self) -> Result<(), ReadError<E>> {
        loop {
            self.skipped += self.frame.len();
            self.frame = Bytes::new();
            if self.skipped > self.limits.epilogue_bytes {
                return Err(FormError::EpilogueTooLong { max: self.limits.epilogue_bytes }.into());
            }
            if !self.pull().await? {
                self.state = State::Done;
                return Ok(());
            }
        }
    }

    /// Gathers bytes into `line` up to and with the next LF, at most `max` of them. `false` if the body ended first.
    async fn read_line(&mut self, max: usize, too_long: FormError) -> Result<bool, ReadError<E>> {
        loop {
            if self.frame.is_empty() && !self.pull().await? {
                return Ok(false);
            }
            let window = &self.frame[..self.frame.len().min(max - self.line.len())];
            let end = memchr::memchr(b'\n', window);
            let taken = end.map_or(window.len(), |lf| lf + 1);
            self.line.extend_from_slice(&window[..taken]);
            self.note_search(taken);
            self.consume(taken);
            if end.is_some() {
                return Ok(true);
            }
            if self.line.len() == max {
                return Err(too_long.into());
            }
        }
    }

    /// Waits for a frame with something in it; `false` at the clean end of the body.
    async fn pull(&mut self) -> Result<bool, ReadError<E>> {
        while let Some(frame) = self.stream.next().await {
            self.frame = frame.map_err(ReadError::Stream)?;
            self.received += self.frame.len() as u64;
            if !self.frame.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Passes over bytes of the frame and lets go of a used-up frame: the server reuses its buffer once nobody holds it.
    fn consume(&mut self, count: usize) {
        if count == self.frame.len() {
            self.frame = Bytes::new();
        } else {
            self.frame.advance(count);
        }
    }

    fn fail(&mut self) {
        self.state = State::Failed;
        self.frame = Bytes::new();
    }

    /// Counts searched bytes, so that tests can prove that the work is linear.
    fn note_search(&mut self, _bytes: usize) {
        #[cfg(test)]
        {
            self.searched += _bytes as u64;
        }
    }
}
