//! A file that holds a few megabytes of the disk for the moment when nothing else is left: a deletion on a full disk
//! needs a little room for its tombstone before it frees any. It is emptied then, and made again when there is room.
//!
//! Apart from [`super::room`], which only counts: this room is really taken, from every program on the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Its size. SQLite's log grows to about 4 MB before it is written back to the database.
pub const RESERVE_BYTES: u64 = 4 << 20;

/// The file. It holds no state: whether it is whole is asked of the file system.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Names the file, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether it holds its room. Blocking.
    pub fn is_whole(&self) -> bool {
        // Counted in blocks of 512 bytes, whatever the file system's own are (POSIX stat).
        std::fs::metadata(&self.path).is_ok_and(|facts| facts.blocks().saturating_mul(512) >= RESERVE_BYTES)
    }

    /// Takes its room. An error leaves it empty. Blocking.
    pub fn restore(&self) -> io::Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        let taken = match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => fill(&file),
            done => done.map_err(io::Error::from),
        };
        if taken.is_err() {
            file.set_len(0)?;
        }
        taken
    }

    /// Gives its room up. Blocking.
    pub fn give_up(&self) -> io::Result<()> {
        match OpenOptions::new().write(true).open(&self.path) {
            Ok(file) => file.set_len(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Where the file system cannot promise room without bytes.
fn fill(file: &File) -> io::Result<()> {
    let zeros = vec![0; 128 << 10];
    let mut at = 0;
    while at < RESERVE_BYTES {
        file.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_room_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path().join("reserve"));
        reserve.give_up().unwrap();
        assert!(!reserve.is_whole());
        for _ in 0..2 {
            reserve.restore().unwrap();
            assert!(reserve.is_whole());
            reserve.restore().unwrap();
            reserve.give_up().unwrap();
            assert!(!reserve.is_whole());
        }
        fill(&File::create(dir.path().join("reserve")).unwrap()).unwrap();
        assert!(reserve.is_whole());
    }
}
