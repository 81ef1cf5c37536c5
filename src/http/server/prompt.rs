//! A connection that must soon show which version of HTTP it speaks.
//!
//! It also reads the less at once, the more connections there are.
//!
//! Apart because the connection builder waits without a limit for the bytes that tell HTTP/2 from HTTP/1, so a client
//! that is silent, or sends a part of HTTP/2's preface, would hold its place for ever. Nothing here may look at
//! requests; once the version is known, the limits on heads and on idle connections are the builder's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// What an HTTP/2 client says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose reads fail if the version is not known in time.
pub(super) struct Prompt {
    stream: Take<TcpStream>,
    /// Bytes of one read.
    most: u64,
    /// The part of the preface that has not come yet, as long as nothing else has come.
    preface: &'static [u8],
    /// Gone once the version is known.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Prompt {
    pub(super) fn new(stream: TcpStream, limit: Duration, most: u64) -> Self {
        let deadline = Some(Box::pin(sleep(limit)));
        Self { stream: stream.take(most), most, preface: PREFACE, deadline }
    }

    fn note(&mut self, bytes: &[u8]) {
        match self.preface.strip_prefix(bytes) {
            Some(rest) if !rest.is_empty() && !bytes.is_empty() => self.preface = rest,
            _ => self.deadline = None,
        }
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        // The limit is one for all reads together.
        let most = self.most;
        self.stream.set_limit(most);
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(deadline) = &mut self.deadline else { return polled };
        if polled.is_ready() {
            self.note(&buffer.filled()[before..]);
        } else if deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(context)
    }
}
