//! The form an upload is sent as, written by hand: its length must be known in advance for a file.
//!
//! Apart because two commands send files. Nothing here opens a file or knows what an answer means.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, RequestBuilder};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Read from the file at once.
const BLOCK_BYTES: usize = 256 * 1024;

/// What an extended value may hold as it is (`attr-char` of RFC 8187 section 3.2.1), of the marks that names have.
const EXTENDED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// What stands before and after the bytes.
pub(super) struct UploadForm {
    boundary: String,
    before: String,
    after: String,
}

impl UploadForm {
    /// The type goes first, so that the gateway knows the whole name before the bytes come.
    pub fn new(recording_type: &str, filename: &str) -> Self {
        let boundary = format!("recording-gateway-{}", uuid::Uuid::now_v7().simple());
        let before = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"recording_type\"\r\n\r\n{recording_type}\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"recording\"; {}\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            filename_parameter(filename)
        );
        let after = format!("\r\n--{boundary}--\r\n");
        Self { boundary, before, after }
    }

    /// The request with this form around `bytes`, which have this length, if it is known.
    pub fn fill(
        self,
        request: RequestBuilder,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
    ) -> RequestBuilder {
        let whole_length = length.map(|length| self.before.len() as u64 + length + self.after.len() as u64);
        let part = |text: String| stream::iter([Ok(Bytes::from(text))]);
        let request = request
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={}", self.boundary))
            .body(Body::wrap_stream(part(self.before).chain(bytes).chain(part(self.after))));
        match whole_length {
            Some(length) => request.header(CONTENT_LENGTH, length),
            None => request,
        }
    }
}

/// The reader's bytes in blocks, to its end.
pub(super) fn blocks<R>(reader: R) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static
where
    R: AsyncRead + Send + Unpin + 'static,
{
    stream::try_unfold(reader, |mut reader| async move {
        let mut block = BytesMut::with_capacity(BLOCK_BYTES);
        let read = reader.read_buf(&mut block).await?;
        Ok((read > 0).then(|| (block.freeze(), reader)))
    })
}

/// The file name as a parameter of the part's head, so that the gateway gets it exactly: escaped as browsers do
/// ("multipart/form-data encoding" in the HTML standard) where that can be undone in one way only, else by `filename*`.
fn filename_parameter(filename: &str) -> String {
    if filename.contains(|c: char| matches!(c, '\\' | '%') || (c.is_control() && !matches!(c, '\r' | '\n'))) {
        return format!("filename*=UTF-8''{}", utf8_percent_encode(filename, EXTENDED));
    }
    let escaped = filename.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A");
    format!("filename=\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_sent_so_that_they_can_be_read_back() {
        for (name, sent) in [
            ("talk.webm", "filename=\"talk.webm\""),
            ("März 1/'a' b.webm", "filename=\"März 1/'a' b.webm\""),
            ("100%22.webm", "filename*=UTF-8''100%2522.webm"),
            ("a\" \r\n.webm", "filename=\"a%22 %0D%0A.webm\""),
            ("a\"\\.webm", "filename*=UTF-8''a%22%5C.webm"),
            ("tab\t.webm", "filename*=UTF-8''tab%09.webm"),
        ] {
            assert_eq!(filename_parameter(name), sent);
        }
    }
}
