//! The bytes of an answer, no more and no fewer than it announced. Apart because the cloud and other gateways answer
//! alike.

use std::time::Duration;

use futures_util::StreamExt;

/// Passes on exactly `length` bytes: fewer, more, or a pause longer than `idle` end the stream with an error.
pub(super) fn exactly(
    stream: impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static,
    length: u64,
    idle: Duration,
) -> futures_util::stream::BoxStream<'static, std::io::Result<bytes::Bytes>> {
    use std::io::{Error, ErrorKind};
    futures_util::stream::unfold(
        (Box::pin(stream), length, false),
        move |(mut stream, left, over)| async move {
            if over {
                return None;
            }
            let next = match tokio::time::timeout(idle, stream.next()).await {
                Err(_) => Err(Error::new(ErrorKind::TimedOut, "the other side stopped sending")),
                Ok(None) if left == 0 => return None,
                Ok(None) => {
                    Err(Error::new(ErrorKind::UnexpectedEof, "the other side sent fewer bytes than it has"))
                }
                Ok(Some(Ok(bytes))) if bytes.len() as u64 > left => {
                    Err(Error::other("the other side sent too many bytes"))
                }
                Ok(Some(item)) => item,
            };
            let (left, over) = match &next {
                Ok(bytes) => (left - bytes.len() as u64, false),
                Err(_) => (left, true),
            };
            Some((next, (stream, left, over)))
        },
    )
    .boxed()
}
