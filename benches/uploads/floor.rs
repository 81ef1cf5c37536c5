//! What the machine can do: hashing alone, the disk alone, a server that throws bytes away, and the bare blocking
//! loop that has the gateway's duties and nothing else.
//!
//! Apart because these are the denominators. Nothing here may use the gateway's code, and nothing may be slower than
//! it has to be.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use memchr::memmem;
use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use super::client::{BOUNDARY, Data};

/// Larger page-cache writes are slower on common file systems.
const WRITE_BYTES: usize = 128 << 10;
/// Starting the write-back early makes the final fsync short.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// SHA-256 of `size` bytes on one core.
pub fn hash(data: &Data, size: u64) -> (Duration, String) {
    let start = Instant::now();
    let mut hasher = Sha256::new();
    for piece in data.pieces(size, 1 << 20) {
        hasher.update(piece);
    }
    let digest = hex::encode(hasher.finalize());
    (start.elapsed(), digest)
}

/// Copying `size` bytes within memory on one core.
pub fn copy(data: &Data, size: u64) -> Duration {
    let mut to = vec![0; 1 << 20];
    let start = Instant::now();
    for piece in data.pieces(size, to.len()) {
        std::hint::black_box(&mut to[..piece.len()]).copy_from_slice(piece);
    }
    start.elapsed()
}

/// Writing `size` bytes to a new file in blocks of 128 KiB, and fsync; with write-back started early or not.
pub fn write(data: &Data, size: u64, dir: &Path, early: bool) -> anyhow::Result<Duration> {
    let path = dir.join("written");
    let start = Instant::now();
    let mut target = Target::create(&path, early)?;
    for piece in data.pieces(size, WRITE_BYTES) {
        target.write(piece)?;
    }
    target.file.sync_all()?;
    let taken = start.elapsed();
    std::fs::remove_file(path)?;
    Ok(taken)
}

/// Small files by `threads` threads with a directory each: write, fsync, rename, fsync of the directory. Files per
/// second.
pub fn small_files(data: &Data, size: u64, threads: usize, each: usize, dir: &Path) -> anyhow::Result<f64> {
    let dirs: Vec<PathBuf> = (0..threads).map(|n| dir.join(format!("small-{n}"))).collect();
    for dir in &dirs {
        std::fs::create_dir(dir)?;
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let one = |dir: &Path| -> io::Result<()> {
            for n in 0..each {
                let staged = dir.join(format!("staged-{n}"));
                let mut file = File::create(&staged)?;
                for piece in data.pieces(size, WRITE_BYTES) {
                    file.write_all(piece)?;
                }
                file.sync_all()?;
                std::fs::rename(&staged, dir.join(format!("{n}.webm")))?;
                sync_dir(dir)?;
            }
            Ok(())
        };
        let workers: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || one(dir))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| io::Error::other("panicked"))?)
    })?;
    Ok((threads * each) as f64 / start.elapsed().as_secs_f64())
}

struct Target {
    file: File,
    offset: u64,
    written_back: u64,
    early: bool,
}

impl Target {
    fn create(path: &Path, early: bool) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Self { file, offset: 0, written_back: 0, early })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        if self.early && self.offset - self.written_back >= WRITE_BACK_BYTES {
            let length = NonZeroU64::new(self.offset - self.written_back);
            let _ = fadvise(&self.file, self.written_back, length, Advice::DontNeed);
            self.written_back = self.offset;
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Serves form uploads with a thread a connection, for ever: parse, hash, write, fsync, rename, fsync of the directory.
/// It knows the form that the client here sends, and no other.
pub fn serve(listener: TcpListener, dir: &Path) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    for stream in listener.incoming() {
        let (stream, dir, n) = (stream?, dir.to_owned(), NUMBER.fetch_add(1, Ordering::Relaxed));
        std::thread::spawn(move || {
            if let Err(error) = receive(stream, &dir, n) {
                eprintln!("bare loop: {error:#}");
            }
        });
    }
    Ok(())
}

fn receive(mut stream: TcpStream, dir: &Path, n: u64) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; WRITE_BYTES];
    let mut filled = 0;
    // The request's head and the head of the file's part.
    let head_end = read_until(&mut stream, &mut buffer, &mut filled, b"\r\n\r\n", 0)?;
    let head = String::from_utf8_lossy(&buffer[..head_end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let mut left: u64 = length.trim().parse()?;
    let part_end = read_until(&mut stream, &mut buffer, &mut filled, b"\r\n\r\n", head_end)?;
    left -= (filled - head_end) as u64;
    buffer.copy_within(part_end..filled, 0);
    filled -= part_end;

    let staged = dir.join(format!("staged-{n}"));
    let mut target = Target::create(&staged, true)?;
    let mut hasher = Sha256::new();
    // Whole blocks go to hash and disk: writes that begin inside a page cost half as much again.
    let mut block = Vec::with_capacity(WRITE_BYTES);
    let delimiter = format!("\r\n--{BOUNDARY}");
    let finder = memmem::Finder::new(delimiter.as_bytes());
    loop {
        let found = finder.find(&buffer[..filled]);
        // What may be the start of the delimiter stays.
        let data = found.unwrap_or(filled.saturating_sub(delimiter.len() - 1));
        let mut rest = &buffer[..data];
        while !rest.is_empty() {
            let (fits, more) = rest.split_at(rest.len().min(WRITE_BYTES - block.len()));
            block.extend_from_slice(fits);
            rest = more;
            if block.len() == WRITE_BYTES {
                hasher.update(&block);
                target.write(&block)?;
                block.clear();
            }
        }
        if found.is_some() {
            hasher.update(&block);
            target.write(&block)?;
            break;
        }
        buffer.copy_within(data..filled, 0);
        filled -= data;
        let got = stream.read(&mut buffer[filled..])?;
        ensure!(got > 0, "the form broke off");
        (filled, left) = (filled + got, left - got as u64);
    }
    while left > 0 {
        let got = stream.read(&mut buffer)?;
        ensure!(got > 0, "the form broke off");
        left -= got as u64;
    }
    target.file.sync_all()?;
    std::fs::rename(&staged, dir.join(format!("{n}.webm")))?;
    sync_dir(dir)?;
    let json = format!(r#"{{"sha256":"{}"}}"#, hex::encode(hasher.finalize()));
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    Ok(stream.write_all(answer.as_bytes())?)
}

/// Reads until `what` is in the buffer behind `from`; returns where it ends.
fn read_until(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    filled: &mut usize,
    what: &[u8],
    from: usize,
) -> anyhow::Result<usize> {
    loop {
        if let Some(at) = memmem::find(&buffer[from..*filled], what) {
            return Ok(from + at + what.len());
        }
        let got = stream.read(&mut buffer[*filled..])?;
        ensure!(got > 0, "the head broke off");
        *filled += got;
    }
}

/// Serves requests with axum and throws their bodies away.
pub fn serve_discarding(listener: TcpListener) -> anyhow::Result<()> {
    let discard = |body: axum::body::Body| async move {
        let mut frames = body.into_data_stream();
        while let Some(Ok(_)) = frames.next().await {}
        "{}"
    };
    listener.set_nonblocking(true)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let app = axum::Router::new().fallback(discard).layer(axum::extract::DefaultBodyLimit::disable());
        Ok(axum::serve(tokio::net::TcpListener::from_std(listener)?, app).await?)
    })
}
