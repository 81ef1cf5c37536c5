//! Multipart bodies, read part by part as they arrive.
//!
//! Apart from the upload route because the format has nothing to do with storage. Nothing about keys may be here.

use bytes::{Buf, Bytes, BytesMut};

use super::wire::Connection;

/// Why a form could not be read on.
pub enum FormError {
    /// The body ended cleanly before the form did.
    Truncated,
    Gone,
}

impl From<std::io::Error> for FormError {
    fn from(_: std::io::Error) -> Self {
        FormError::Gone
    }
}

/// The head of one part.
pub struct Part {
    pub name: String,
    pub filename: Option<String>,
    pub content_type: Option<String>,
}

/// The position in a form.
pub struct Form {
    delimiter: Vec<u8>,
    buffer: BytesMut,
    /// Whether the delimiter that ends the current part was consumed.
    ended: bool,
}

impl Form {
    /// A form of this Content-Type; `None` when the boundary is missing.
    pub fn new(content_type: &str) -> Option<Form> {
        let boundary = content_type.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
        let delimiter = format!("\r\n--{}", boundary.trim_matches('"')).into_bytes();
        // The first delimiter has no line before it.
        Some(Form { delimiter, buffer: BytesMut::from(&b"\r\n"[..]), ended: false })
    }

    /// Skips what is left of the current part and reads the head of the next; `None` after the last.
    pub async fn next(&mut self, from: &mut Connection) -> Result<Option<Part>, FormError> {
        while self.data(from).await?.is_some() {}
        while self.buffer.len() < 2 {
            self.fill(from).await?;
        }
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            self.fill(from).await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.advance(end + 4);
        self.ended = false;
        let mut part = Part { name: String::new(), filename: None, content_type: None };
        for line in head.split("\r\n") {
            let Some((header, value)) = line.split_once(':') else { continue };
            match header.trim().to_ascii_lowercase().as_str() {
                "content-type" => part.content_type = Some(value.trim().to_owned()),
                "content-disposition" => {
                    part.name = attribute(value, "name").unwrap_or_default();
                    part.filename = attribute(value, "filename");
                }
                _ => {}
            }
        }
        Ok(Some(part))
    }

    /// The next piece of the current part, or `None` at its end.
    pub async fn data(&mut self, from: &mut Connection) -> Result<Option<Bytes>, FormError> {
        while !self.ended {
            if let Some(at) = memchr::memmem::find(&self.buffer, &self.delimiter) {
                if at == 0 {
                    self.buffer.advance(self.delimiter.len());
                    self.ended = true;
                    return Ok(None);
                }
                return Ok(Some(self.buffer.split_to(at).freeze()));
            }
            let safe = self.buffer.len().saturating_sub(self.delimiter.len());
            if safe > 0 {
                return Ok(Some(self.buffer.split_to(safe).freeze()));
            }
            self.fill(from).await?;
        }
        Ok(None)
    }

    /// The whole current part as text, at most `limit` bytes; `None` when it is longer.
    pub async fn text(&mut self, from: &mut Connection, limit: usize) -> Result<Option<String>, FormError> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.data(from).await? {
            if bytes.len() <= limit {
                bytes.extend_from_slice(&piece);
            }
        }
        Ok((bytes.len() <= limit).then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn fill(&mut self, from: &mut Connection) -> Result<(), FormError> {
        let piece = from.read_body().await?.ok_or(FormError::Truncated)?;
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }
}

fn attribute(value: &str, name: &str) -> Option<String> {
    value.split(';').find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"').to_owned())
    })
}
