//! The bytes of one object: in memory while small, in an unnamed temporary file when not, or only counted.
//!
//! Apart from the rows because a body exists before its object does. Nothing about keys may be known here.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use md5::{Digest, Md5};
use tempfile::SpooledTempFile;

const IN_MEMORY_BYTES: usize = 8 * 1024 * 1024;

/// What becomes of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bodies {
    /// Kept; reads give them back.
    Keep,
    /// Counted and hashed, not kept: for benchmarks with bodies of many GiB. Reads answer 500.
    Discard,
}

/// A body on its way in.
pub struct BlobWriter {
    file: Option<SpooledTempFile>,
    md5: Md5,
    size: u64,
}

/// A point to which a [`BlobWriter`] can go back.
pub struct Mark(u64, Md5);

impl BlobWriter {
    pub fn new(bodies: Bodies) -> Self {
        let file = (bodies == Bodies::Keep).then(|| SpooledTempFile::new(IN_MEMORY_BYTES));
        BlobWriter { file, md5: Md5::new(), size: 0 }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.md5.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn mark(&self) -> Mark {
        Mark(self.size, self.md5.clone())
    }

    pub fn rewind(&mut self, mark: Mark) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.set_len(mark.0)?;
            file.seek(SeekFrom::Start(mark.0))?;
        }
        self.size = mark.0;
        self.md5 = mark.1;
        Ok(())
    }

    pub fn finish(self) -> Blob {
        Blob { file: self.file.map(Mutex::new), size: self.size, md5: hex::encode(self.md5.finalize()) }
    }
}

/// A finished body.
pub struct Blob {
    file: Option<Mutex<SpooledTempFile>>,
    pub size: u64,
    /// MD5 of the content in hexadecimal, which the file backend shows as the ETag.
    pub md5: String,
}

impl Blob {
    pub fn of(bytes: &[u8]) -> Self {
        let mut writer = BlobWriter::new(Bodies::Keep);
        writer.write(bytes).expect("memory takes a write");
        writer.finish()
    }

    /// Whether the bytes are there to be read.
    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// At most `length` bytes from `start`.
    pub fn read(&self, start: u64, length: u64) -> io::Result<Vec<u8>> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; length.min(self.size.saturating_sub(start)) as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
