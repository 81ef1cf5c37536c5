//! Room on the disk: who was promised how much of it, so that uploads that were let in do not find it taken by
//! those let in after them. Below the low-water mark nothing new is let in; what was promised may be used to its end.
//!
//! The account is in memory and counts only what this process writes through it. What others write is seen each time
//! the file system is asked, which is not more often than needed: see [`STALE`]. Whatever can be given up for room
//! (a cache) is asked for it before anything is refused.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::SpoolError;

/// How old a figure of the file system may be when it lets something in. A refusal is always by a new one.
const STALE: Duration = Duration::from_millis(100);
/// What is promised to an upload that does not say how long it is. It gets more as it grows, down to the mark.
const ASSUMED_BYTES: u64 = 1 << 20;

/// What the catalogue and others that keep no account need beside the mark, which may be 0: as long as there is
/// something to give up for it.
const COMFORT_BYTES: u64 = 8 << 20;

type Measure = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;
type Relief = Box<dyn Fn(u64) + Send + Sync>;

/// The account. Clones share it.
#[derive(Clone)]
pub struct Room {
    inner: Arc<Inner>,
}

struct Inner {
    measure: Measure,
    /// Bytes that must stay free.
    mark: u64,
    account: Mutex<Account>,
    /// Frees about as many bytes as it is given, if it can. Blocking.
    relief: OnceLock<Relief>,
}

#[derive(Default)]
struct Account {
    /// Free bytes when the file system was asked, less what was written through the account since.
    free: u64,
    asked_at: Option<Instant>,
    /// Promised and not written yet.
    promised: u64,
}

impl Account {
    fn open_bytes(&self) -> u64 {
        self.free.saturating_sub(self.promised)
    }
}

/// How the disk is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoomFigures {
    /// Free on the file system.
    pub free: u64,
    /// Of it, promised to what is being written.
    pub promised: u64,
    /// What must stay free: the low-water mark.
    pub mark: u64,
}

impl RoomFigures {
    /// How far the disk is below its mark once every promise is kept; 0 if it is not.
    pub fn lacking(&self) -> u64 {
        self.mark.saturating_sub(self.free.saturating_sub(self.promised))
    }

    /// How many bytes should be given up by those who can: some sooner than anything lacks.
    pub fn cramped(&self) -> u64 {
        (self.mark.saturating_add(COMFORT_BYTES)).saturating_sub(self.free.saturating_sub(self.promised))
    }
}

impl Room {
    /// The file system that holds `dir`, of which `mark` bytes must stay free.
    pub fn new(dir: PathBuf, mark: u64) -> Self {
        let measure = move || {
            let facts = rustix::fs::statvfs(&dir)?;
            Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
        };
        Self::measured_by(Box::new(measure), mark)
    }

    fn measured_by(measure: Measure, mark: u64) -> Self {
        let (account, relief) = (Mutex::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { measure, mark, account, relief }) }
    }

    /// Names what frees room when there is too little: called with the bytes that lack. Only the first call counts.
    pub fn relieved_by(&self, relief: impl Fn(u64) + Send + Sync + 'static) {
        // A second one would be a defect of the composition, and harmless.
        let _ = self.inner.relief.set(Box::new(relief));
    }

    /// Promises room for something that comes, of `announced` bytes if it says how many.
    ///
    /// # Errors
    /// [`SpoolError::Full`] if the disk would then be below its mark; [`SpoolError::Io`] if it does not answer. Safe to
    /// drop.
    pub async fn reserve(&self, announced: Option<u64>) -> Result<Reserved, SpoolError> {
        let bytes = announced.unwrap_or(ASSUMED_BYTES);
        if let Some(reserved) = self.promise(bytes, self.inner.mark)? {
            return Ok(reserved);
        }
        let room = self.clone();
        // Relief removes files. If nobody waits for it any more, what it promised goes back.
        let relieved = tokio::task::spawn_blocking(move || room.promise_with_relief(bytes));
        Ok(relieved.await.map_err(|_| SpoolError::Abandoned)??)
    }

    /// Promises room for what nobody waits for: `None` unless more than twice the mark stays free, so that it never
    /// takes the place of an upload.
    pub fn spare(&self, bytes: u64) -> io::Result<Option<Reserved>> {
        let leave = self.inner.mark.saturating_mul(2).saturating_add(COMFORT_BYTES);
        self.promise(bytes, leave)
    }

    /// Asks the file system.
    pub fn figures(&self) -> io::Result<RoomFigures> {
        let mut account = self.account();
        self.ask(&mut account)?;
        Ok(RoomFigures { free: account.free, promised: account.promised, mark: self.inner.mark })
    }

    /// Frees about `bytes` of what can be given up. Blocking.
    pub fn relieve(&self, bytes: u64) {
        if let Some(relief) = self.inner.relief.get()
            && bytes > 0
        {
            relief(bytes);
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.inner.account.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn ask(&self, account: &mut Account) -> io::Result<()> {
        account.free = (self.inner.measure)()?;
        account.asked_at = Some(Instant::now());
        Ok(())
    }

    /// Promises `bytes` if `leave` stay open beside them.
    fn promise(&self, bytes: u64, leave: u64) -> io::Result<Option<Reserved>> {
        let mut account = self.account();
        let fits = |account: &Account| account.open_bytes() >= bytes.saturating_add(leave);
        let fresh = account.asked_at.is_some_and(|at| at.elapsed() < STALE);
        if !fresh || !fits(&account) {
            self.ask(&mut account)?;
        }
        if !fits(&account) {
            return Ok(None);
        }
        account.promised = account.promised.saturating_add(bytes);
        Ok(Some(Reserved { room: self.clone(), rest: bytes }))
    }

    fn promise_with_relief(&self, bytes: u64) -> io::Result<Reserved> {
        if let Some(reserved) = self.promise(bytes, self.inner.mark)? {
            return Ok(reserved);
        }
        let open = self.account().open_bytes();
        self.relieve(bytes.saturating_add(self.inner.mark).saturating_sub(open));
        self.promise(bytes, self.inner.mark)?.ok_or_else(|| io::ErrorKind::StorageFull.into())
    }
}

/// Room that was promised. What is left of it is given back when it is dropped.
pub struct Reserved {
    room: Room,
    /// Promised and not written yet.
    rest: u64,
}

impl Reserved {
    /// Makes sure that the next `bytes` may be written, also beyond what was promised. Blocking.
    ///
    /// # Errors
    /// `StorageFull` if that would take the disk below its mark.
    pub(super) fn claim(&mut self, bytes: u64) -> io::Result<()> {
        let more = bytes.saturating_sub(self.rest);
        if more > 0 {
            self.rest += std::mem::take(&mut self.room.promise_with_relief(more)?.rest);
        }
        Ok(())
    }

    /// Notes that `bytes` of what was claimed are on the disk now.
    pub(super) fn written(&mut self, bytes: u64) {
        let bytes = bytes.min(self.rest);
        self.rest -= bytes;
        let mut account = self.room.account();
        account.promised = account.promised.saturating_sub(bytes);
        account.free = account.free.saturating_sub(bytes);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut account = self.room.account();
        account.promised = account.promised.saturating_sub(self.rest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A disk of so many free bytes, of which `mark` must stay.
    fn disk(free: u64, mark: u64) -> (Arc<AtomicU64>, Room) {
        let disk = Arc::new(AtomicU64::new(free));
        let there = disk.clone();
        (disk, Room::measured_by(Box::new(move || Ok(there.load(Ordering::SeqCst))), mark))
    }

    fn promised(room: &Room) -> u64 {
        room.figures().unwrap().promised
    }

    #[tokio::test]
    async fn what_was_promised_to_one_is_not_promised_to_another() {
        let (_, room) = disk(1000, 100);
        let first = room.reserve(Some(600)).await.unwrap();
        assert!(matches!(room.reserve(Some(301)).await, Err(SpoolError::Full(_))));
        let second = room.reserve(Some(300)).await.unwrap();
        assert!(matches!(room.reserve(Some(1)).await, Err(SpoolError::Full(_))));
        assert_eq!(room.figures().unwrap(), RoomFigures { free: 1000, promised: 900, mark: 100 });
        drop(first);
        assert_eq!(promised(&room), 300);
        assert!(room.reserve(Some(600)).await.is_ok());
        drop(second);
        assert_eq!(promised(&room), 0);
    }

    #[tokio::test]
    async fn a_promise_shrinks_as_bytes_reach_the_disk_and_holds_below_the_mark() {
        let (disk, room) = disk(1000, 100);
        let mut upload = room.reserve(Some(800)).await.unwrap();
        upload.claim(500).unwrap();
        disk.fetch_sub(500, Ordering::SeqCst);
        upload.written(500);
        assert_eq!(room.figures().unwrap(), RoomFigures { free: 500, promised: 300, mark: 100 });
        assert_eq!(room.figures().unwrap().lacking(), 0);
        // Another program takes what was free: nothing new comes in, what was let in goes on.
        disk.store(320, Ordering::SeqCst);
        assert_eq!(room.figures().unwrap().lacking(), 80);
        assert!(room.reserve(Some(0)).await.is_err());
        upload.claim(300).unwrap();
        disk.fetch_sub(300, Ordering::SeqCst);
        upload.written(300);
        assert_eq!(promised(&room), 0);
        assert!(upload.claim(1).is_err(), "beyond its promise the mark holds");
    }

    #[tokio::test]
    async fn one_that_does_not_say_how_long_it_is_grows_down_to_the_mark() {
        let (disk, room) = disk(10 << 20, 2 << 20);
        let mut upload = room.reserve(None).await.unwrap();
        assert_eq!(promised(&room), ASSUMED_BYTES);
        for _ in 0..16 {
            upload.claim(512 << 10).unwrap();
            disk.fetch_sub(512 << 10, Ordering::SeqCst);
            upload.written(512 << 10);
        }
        let error = upload.claim(512 << 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(upload);
        assert_eq!(room.figures().unwrap(), RoomFigures { free: 2 << 20, promised: 0, mark: 2 << 20 });
    }

    #[tokio::test]
    async fn what_can_be_given_up_goes_before_anything_is_refused() {
        let (disk, room) = disk(1000, 100);
        let asked = disk.clone();
        room.relieved_by(move |lacking| {
            asked.fetch_add(lacking, Ordering::SeqCst);
        });
        let upload = room.reserve(Some(950)).await.unwrap();
        assert_eq!(disk.load(Ordering::SeqCst), 1050, "as much as lacked");
        drop(upload);
        // What nobody waits for leaves more than twice the mark, and pushes nothing out.
        disk.store(COMFORT_BYTES + 1000, Ordering::SeqCst);
        assert!(room.spare(801).unwrap().is_none());
        assert_eq!(promised(&room), 0);
        assert!(room.spare(800).unwrap().is_some());
        assert_eq!(disk.load(Ordering::SeqCst), COMFORT_BYTES + 1000);
    }

    /// The client hangs up while room is made for its upload.
    #[test]
    fn what_is_promised_to_nobody_goes_back() {
        let (disk, room) = disk(1000, 100);
        let (asked, is_asked) = std::sync::mpsc::channel();
        let (go_on, gone) = std::sync::mpsc::channel();
        let gone = Mutex::new(gone);
        room.relieved_by(move |lacking| {
            asked.send(()).unwrap();
            gone.lock().unwrap().recv().unwrap();
            disk.fetch_add(lacking, Ordering::SeqCst);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reserving = Box::pin(room.reserve(Some(950)));
            assert!(futures_util::poll!(&mut reserving).is_pending());
            is_asked.recv().unwrap();
            drop(reserving);
            go_on.send(()).unwrap();
        });
        // Waits for the relief.
        drop(runtime);
        assert_eq!(room.figures().unwrap(), RoomFigures { free: 1050, promised: 0, mark: 100 });
    }

    #[tokio::test]
    async fn the_file_system_is_not_asked_for_each_one() {
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let measure = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(1 << 40)
        };
        let room = Room::measured_by(Box::new(measure), 0);
        let started = Instant::now();
        for _ in 0..10_000 {
            room.reserve(Some(1000)).await.unwrap();
        }
        let most = started.elapsed().as_millis() / STALE.as_millis() + 1;
        assert!(u128::from(asked.load(Ordering::SeqCst)) <= most);
    }
}
