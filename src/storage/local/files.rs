//! The file operations of the local store, all blocking. Every path is resolved by handle, one component at a time
//! below the root and without following links, so nothing that appears between a check and an open leads outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use time::OffsetDateTime;

use crate::domain::merge::StoredObject;
use crate::domain::{Filename, ObjectKey, SessionId, media};
use crate::spool::{Spool, SpoolReader, tells_what_is_cached};

/// Where files go that are not to be trusted any more, below the root.
const QUARANTINE: &str = ".quarantine";

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK`: opening a pipe must not wait for its writer.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Below the root, on its file system, through no link, and only what the kernel has at hand.
const CACHED: ResolveFlags = ResolveFlags::CACHED
    .union(ResolveFlags::BENEATH)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

pub(super) struct Files {
    root: PathBuf,
    handle: OwnedFd,
    /// Held while session directories come and go: one that is found has been made durable by who made it, and does
    /// not go before it is open.
    dirs: Mutex<()>,
    /// Whether files may be opened where nothing may wait. Not on a file system that asks another machine or process.
    opens_cached: bool,
}

impl Files {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        let handle =
            rustix::fs::open(&root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let opens_cached = tempfile::tempfile_in(&root).is_ok_and(tells_what_is_cached);
        Ok(Self { root, handle, dirs: Mutex::default(), opens_cached })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn session_dir(&self, session: &SessionId) -> io::Result<Option<OwnedFd>> {
        absent_is_none(rustix::fs::openat(&self.handle, session.as_str(), DIR, Mode::empty()))
    }

    fn make_session_dir(&self, session: &SessionId) -> io::Result<OwnedFd> {
        let _dirs = self.dirs.lock().unwrap_or_else(|e| e.into_inner());
        match rustix::fs::mkdirat(&self.handle, session.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                if let Err(error) = rustix::fs::fsync(&self.handle) {
                    // Not durable, so not there: whoever finds a directory takes it for durable.
                    let _ = rustix::fs::unlinkat(&self.handle, session.as_str(), AtFlags::REMOVEDIR);
                    return Err(error.into());
                }
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(rustix::fs::openat(&self.handle, session.as_str(), DIR, Mode::empty())?)
    }

    /// Opens a recording's file. Anything that is not a plain file of its own is not there.
    pub(super) fn open_file(&self, key: &ObjectKey) -> io::Result<Option<(File, StoredObject)>> {
        let Some(dir) = self.session_dir(&key.session)? else { return Ok(None) };
        let Some(file) =
            absent_is_none(rustix::fs::openat(&dir, key.filename.as_str(), FILE, Mode::empty()))?
        else {
            return Ok(None);
        };
        described(key, file)
    }

    /// As [`open_file`](Self::open_file), without waiting for the disk (openat2(2), `RESOLVE_CACHED`). `None` if the way
    /// there is not in the kernel's cache, or anything else is in the way.
    pub(super) fn open_cached(&self, key: &ObjectKey) -> Option<Option<(File, StoredObject)>> {
        match self.cached(&key.to_string(), FILE)? {
            Some(file) => described(key, file).ok(),
            None => Some(None),
        }
    }

    fn cached(&self, path: &str, flags: OFlags) -> Option<Option<OwnedFd>> {
        if !self.opens_cached {
            return None;
        }
        absent_is_none(rustix::fs::openat2(&self.handle, path, flags, Mode::empty(), CACHED)).ok()
    }

    /// Puts a complete source in place. The spool's own file is renamed; any other is copied first.
    pub(super) fn store(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        size: u64,
        spool: &Spool,
    ) -> io::Result<()> {
        let Some(path) = source.take_path() else { return self.store_copy(key, source, size, spool) };
        // A file that is safe in the spool is found there if the new name does not outlive a power cut.
        let safe = source.is_safe();
        // After a failed fsync the kernel may forget what it could not write: the file is not trusted again, and
        // the error goes up. Nothing was renamed.
        let synced = if safe { Ok(()) } else { source.file().sync_all() };
        let stored = synced.and_then(|()| self.place(&path, key, !safe));
        match stored {
            Ok(()) => {
                // Renamed away: there is nothing left to remove under the old name.
                let _gone = path.keep();
                Ok(())
            }
            Err(error) => {
                source.return_path(path);
                Err(error)
            }
        }
    }

    fn store_copy(&self, key: &ObjectKey, source: &SpoolReader, size: u64, spool: &Spool) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let staged = tempfile::Builder::new().prefix("copy-").tempfile_in(spool.dir())?;
        let (mut at, mut buffer) = (0, vec![0; 128 << 10]);
        while at < size {
            let n = source.file().read_at(&mut buffer, at)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            staged.as_file().write_all_at(&buffer[..n], at)?;
            at += n as u64;
        }
        staged.as_file().sync_all()?;
        let path = staged.into_temp_path();
        self.place(&path, key, true)?;
        let _gone = path.keep();
        Ok(())
    }

    fn place(&self, from: &Path, key: &ObjectKey, sync: bool) -> io::Result<()> {
        loop {
            let dir = self.make_session_dir(&key.session)?;
            match rename_new(CWD, from, &dir, key.filename.as_str()) {
                Ok(()) if !sync => return Ok(()),
                Ok(()) => {
                    let synced = rustix::fs::fsync(&dir);
                    if synced.is_err() {
                        // Not promised, so not there: the answer will be an error.
                        let _ = rustix::fs::unlinkat(&dir, key.filename.as_str(), AtFlags::empty());
                    }
                    return Ok(synced?);
                }
                // The last recording of the session was deleted meanwhile and the directory with it.
                Err(Errno::NOENT) if from.exists() => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> io::Result<()> {
        let from_dir = self.session_dir(&from.session)?.ok_or(io::ErrorKind::NotFound)?;
        let to_dir = self.make_session_dir(&to.session)?;
        rename_new(&from_dir, Path::new(from.filename.as_str()), &to_dir, to.filename.as_str())?;
        rustix::fs::fsync(&to_dir)?;
        rustix::fs::fsync(&from_dir)?;
        Ok(())
    }

    /// Removes a file; `false` if there was none. Durable when it returns.
    pub(super) fn remove(&self, key: &ObjectKey) -> io::Result<bool> {
        let Some(dir) = self.session_dir(&key.session)? else { return Ok(false) };
        if absent_is_none(rustix::fs::unlinkat(&dir, key.filename.as_str(), AtFlags::empty()))?.is_none() {
            // An earlier try may have removed it and failed to make that durable.
            rustix::fs::fsync(&dir)?;
            return Ok(false);
        }
        rustix::fs::fsync(&dir)?;
        self.remove_session_dir(&key.session)?;
        Ok(true)
    }

    /// Removes a session's directory if nothing is in it.
    fn remove_session_dir(&self, session: &SessionId) -> io::Result<bool> {
        let _dirs = self.dirs.lock().unwrap_or_else(|e| e.into_inner());
        // Fails while other recordings are left.
        let removed = rustix::fs::unlinkat(&self.handle, session.as_str(), AtFlags::REMOVEDIR).is_ok();
        if removed {
            rustix::fs::fsync(&self.handle)?;
        }
        Ok(removed)
    }

    /// By the directory's ctime: the mtime can be set, as tools that copy whole trees do.
    pub(super) fn changed_at(&self, session: &SessionId) -> io::Result<Option<OffsetDateTime>> {
        let Some(dir) = self.session_dir(session)? else { return Ok(None) };
        ctime(&dir)
    }

    /// As [`changed_at`](Self::changed_at), without waiting for the disk. `None` as with [`open_cached`](Self::open_cached).
    pub(super) fn changed_at_cached(&self, session: &SessionId) -> Option<Option<OffsetDateTime>> {
        // `PATH`: some file systems begin to read a directory when it is opened.
        match self.cached(session.as_str(), DIR.union(OFlags::PATH))? {
            Some(dir) => ctime(&dir).ok(),
            None => Some(None),
        }
    }

    pub(super) fn empty_session(
        &self,
        session: &SessionId,
        before: OffsetDateTime,
        remove: bool,
    ) -> io::Result<bool> {
        let Some(dir) = self.session_dir(session)? else { return Ok(false) };
        let stat = rustix::fs::fstat(&dir)?;
        let changed_ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        if changed_ns >= before.unix_timestamp_nanos() {
            return Ok(false);
        }
        for entry in Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        if remove { self.remove_session_dir(session) } else { Ok(true) }
    }

    /// Moves a file out of its session, below [`QUARANTINE`]; never onto another that is there. Says where it is now,
    /// as a path below the root.
    pub(super) fn set_aside(&self, key: &ObjectKey) -> io::Result<Option<String>> {
        let Some(from) = self.session_dir(&key.session)? else { return Ok(None) };
        let make = |parent: &OwnedFd, name: &str| -> io::Result<OwnedFd> {
            match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => rustix::fs::fsync(parent)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(rustix::fs::openat(parent, name, DIR, Mode::empty())?)
        };
        let to = make(&make(&self.handle, QUARANTINE)?, key.session.as_str())?;
        let name = key.filename.as_str();
        for n in 1..1000 {
            let aside = if n == 1 { name.to_owned() } else { format!("{name}.{n}") };
            match rename_new(&from, Path::new(name), &to, &aside) {
                Ok(()) => {
                    rustix::fs::fsync(&to)?;
                    rustix::fs::fsync(&from)?;
                    self.remove_session_dir(&key.session)?;
                    return Ok(Some(format!("{QUARANTINE}/{}/{aside}", key.session)));
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn list_session(&self, session: &SessionId) -> io::Result<Vec<StoredObject>> {
        let Some(dir) = self.session_dir(session)? else { return Ok(Vec::new()) };
        let mut objects = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let Some(filename) = entry.file_name().to_str().ok().and_then(|n| Filename::parse(n).ok()) else {
                continue;
            };
            let stat = match rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Deleted while we look.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match describe(ObjectKey::new(session.clone(), filename), &stat) {
                Some(object) => objects.push(object),
                None => tracing::warn!(
                    session.id = %session, name = ?entry.file_name(),
                    "left out of the listing: only plain files with one name are recordings"
                ),
            }
        }
        Ok(objects)
    }

    /// Names in a session's directory, without a look at the files. What cannot be one is left out, where the directory tells.
    pub(super) fn names(&self, session: &SessionId) -> io::Result<Vec<ObjectKey>> {
        let Some(dir) = self.session_dir(session)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let may_be_file = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
            let name = entry.file_name().to_str().ok().filter(|_| may_be_file);
            let filename = name.and_then(|name| Filename::parse(name).ok());
            names.extend(filename.map(|filename| ObjectKey::new(session.clone(), filename)));
        }
        Ok(names)
    }

    /// Those of the files that are there.
    pub(super) fn heads(&self, keys: Vec<ObjectKey>) -> io::Result<Vec<StoredObject>> {
        let mut found = Vec::with_capacity(keys.len());
        let mut open: Option<(SessionId, Option<OwnedFd>)> = None;
        for key in keys {
            if open.as_ref().is_none_or(|(session, _)| *session != key.session) {
                open = Some((key.session.clone(), self.session_dir(&key.session)?));
            }
            let Some((_, Some(dir))) = &open else { continue };
            let stat = rustix::fs::statat(dir, key.filename.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            found.extend(absent_is_none(stat)?.and_then(|stat| describe(key, &stat)));
        }
        Ok(found)
    }

    pub(super) fn sessions(&self) -> io::Result<BTreeSet<SessionId>> {
        let mut sessions = BTreeSet::new();
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            let is_dir = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            let session = entry.file_name().to_str().ok().and_then(|name| SessionId::parse(name).ok());
            sessions.extend(session.filter(|_| is_dir));
        }
        Ok(sessions)
    }

    pub(super) fn list_everything(&self) -> io::Result<Vec<StoredObject>> {
        let mut objects = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            if let Some(session) =
                entry.file_name().to_str().ok().and_then(|name| SessionId::parse(name).ok())
            {
                match self.list_session(&session) {
                    Ok(found) => objects.extend(found),
                    // A plain file or a link among the sessions.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::warn!(session.id = %session, "left out of the listing: this user may not read it");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(objects)
    }
}

fn ctime(dir: &OwnedFd) -> io::Result<Option<OffsetDateTime>> {
    let stat = rustix::fs::fstat(dir)?;
    let ns = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
    Ok(OffsetDateTime::from_unix_timestamp_nanos(ns).ok())
}

fn described(key: &ObjectKey, file: OwnedFd) -> io::Result<Option<(File, StoredObject)>> {
    let stat = rustix::fs::fstat(&file)?;
    Ok(describe(key.clone(), &stat).map(|object| (File::from(file), object)))
}

/// What a file is to us; `None` if it is no recording: not a plain file, or one with a second name, through which
/// somebody could have put a file here that is not theirs to give.
fn describe(key: ObjectKey, stat: &Stat) -> Option<StoredObject> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink > 1 {
        return None;
    }
    let ext = key.filename.as_str().rsplit_once('.').map(|(_, ext)| ext);
    let modified_us = i128::from(stat.st_mtime) * 1_000_000 + i128::from(stat.st_mtime_nsec) / 1000;
    Some(StoredObject {
        size_bytes: u64::try_from(stat.st_size).ok()?,
        modified_at: OffsetDateTime::from_unix_timestamp_nanos(modified_us * 1000).ok()?,
        content_type: ext.and_then(media::type_for_ext).map(str::to_owned),
        etag: Some(format!("\"{:x}-{modified_us:x}\"", stat.st_size)),
        sha256: None,
        original_filename: None,
        upload_id: None,
        key,
    })
}

/// Renames without replacing; where the file system cannot do that in one step, a hard link fails alike if the name
/// is taken. What a crash left between the two steps, with both names, is brought to its end.
fn rename_new(from_dir: impl rustix::fd::AsFd, from: &Path, to_dir: &OwnedFd, to: &str) -> Result<(), Errno> {
    let linked = match rustix::fs::renameat_with(&from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            rustix::fs::linkat(&from_dir, from, to_dir, to, AtFlags::empty())
        }
        Ok(()) => return Ok(()),
        failed => failed,
    };
    let file = |stat: Stat| (stat.st_dev, stat.st_ino);
    let named = rustix::fs::statat(&from_dir, from, AtFlags::SYMLINK_NOFOLLOW).map(file);
    match linked {
        Err(Errno::EXIST) if rustix::fs::statat(to_dir, to, AtFlags::SYMLINK_NOFOLLOW).map(file) != named => {
            Err(Errno::EXIST)
        }
        Ok(()) | Err(Errno::EXIST) => rustix::fs::unlinkat(&from_dir, from, AtFlags::empty()),
        failed => failed,
    }
}

fn absent_is_none<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        // A link where a directory or file should be is as good as nothing there.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_opened_at_once_is_what_is_opened_with_patience() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("recordings");
        let session = root.join("s");
        std::fs::create_dir_all(&session).unwrap();
        for name in ["plain.webm", "two-names.webm"] {
            std::fs::write(session.join(name), "bytes").unwrap();
        }
        std::fs::hard_link(session.join("two-names.webm"), dir.path().join("other")).unwrap();
        symlink("plain.webm", session.join("link.webm")).unwrap();
        symlink("s", root.join("linked")).unwrap();
        std::fs::write(root.join("file"), "bytes").unwrap();
        std::fs::create_dir(session.join("dir.webm")).unwrap();
        let files = Files::open(root).unwrap();
        for (session, name, is_there) in [
            ("s", "plain.webm", true),
            ("s", "two-names.webm", false),
            ("s", "link.webm", false),
            ("s", "dir.webm", false),
            ("s", "none.webm", false),
            ("linked", "plain.webm", false),
            ("none", "plain.webm", false),
        ] {
            let key = ObjectKey::new(SessionId::parse(session).unwrap(), Filename::parse(name).unwrap());
            let object = |found: Option<(File, StoredObject)>| found.map(|(_, object)| object);
            let patient = object(files.open_file(&key).unwrap());
            assert_eq!(patient.is_some(), is_there, "{key}");
            // The way there is in the kernel's cache now, unless it keeps no memory of what is not there.
            match files.open_cached(&key) {
                Some(found) => assert_eq!(object(found), patient, "{key}"),
                None => assert!(!is_there || !files.opens_cached, "{key}"),
            }
        }
        for (session, is_there) in [("s", true), ("linked", false), ("none", false), ("file", false)] {
            let session = SessionId::parse(session).unwrap();
            let patient = files.changed_at(&session).unwrap();
            assert_eq!(patient.is_some(), is_there, "{session}");
            match files.changed_at_cached(&session) {
                Some(changed_at) => assert_eq!(changed_at, patient, "{session}"),
                None => assert!(!is_there || !files.opens_cached, "{session}"),
            }
        }
    }
}
