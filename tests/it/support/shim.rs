//! Faults of the disk under the real program: makes the library of `tests/faults/shim.c` and tells it what to do.
//!
//! A plan names an action and the operations it hits: the FIRST and the next TIMES - 1 of those of one kind and one class
//! of paths. Operations are `create`, `write`, `pwrite`, `writev`, `pwritev`, `fsync`, `fdatasync`, `ftruncate`,
//! `fallocate`, `close`, `rename`, `link`, `unlink`, `mkdir`, `rmdir`; `writes` are the four that write, `flushes` the two that sync, `any`
//! all.
//! Classes are `spool`, `catalog`, `session` (what is below the other directories, and they themselves), `root`, `any`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::skip::skip_or_fail;

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is only counted.
    Count,
    /// It fails with ENOSPC and does nothing.
    NoSpace,
    /// It fails with EIO and does nothing.
    IoError,
    /// It fails with EROFS and does nothing.
    ReadOnly,
    /// A write does half of it.
    Short,
    /// It waits as long as the plan is in force.
    Hang,
    /// The process is killed instead of it.
    KillBefore,
    /// The process is killed after it.
    KillAfter,
}

/// An action and the operations it hits.
#[derive(Clone, Debug)]
pub struct Plan {
    pub action: Action,
    pub operation: String,
    pub class: String,
    /// Counted from 1.
    pub first: usize,
    pub times: usize,
}

/// From the first on, for good.
pub const FOR_GOOD: usize = 1_000_000_000;

impl Plan {
    /// Hits the `n`th operation of any kind.
    pub fn nth(action: Action, n: usize) -> Self {
        Self { action, operation: "any".into(), class: "any".into(), first: n, times: 1 }
    }

    pub fn of(mut self, operation: &str, class: &str) -> Self {
        (self.operation, self.class) = (operation.into(), class.into());
        self
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

/// One operation that happened under a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its number among those that the plan's filter takes; 0 if it is none of them.
    pub number: usize,
    pub operation: String,
    pub class: String,
    /// Whether the plan's action hit it.
    pub hit: bool,
    /// Whether it failed by itself, as the making of what is there does.
    pub failed: bool,
    /// Below the root; `.` is the root itself.
    pub path: String,
}

/// The faults of one directory, over all processes that run on it.
pub struct Faults {
    library: PathBuf,
    root: PathBuf,
    control: tempfile::TempDir,
    /// Every plan has an id of its own: a new one starts counting anew.
    plans: AtomicU64,
}

impl Faults {
    /// For the recordings below `dir`. `None`, said by name, where there is no C compiler.
    pub fn below(suite: &str, dir: &Path) -> Option<Self> {
        let Some(library) = library() else {
            skip_or_fail(suite, "a C compiler (cc)");
            return None;
        };
        let root = dir.canonicalize().unwrap().join("recordings");
        let control = tempfile::tempdir().unwrap();
        Some(Self { library: library.to_owned(), root, control, plans: AtomicU64::new(0) })
    }

    /// Puts the library under a command.
    pub fn under(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAULTS_ROOT", &self.root)
            .env("FAULTS_PLAN", self.control.path().join("plan"))
            .env("FAULTS_LOG", self.control.path().join("log"));
        command
    }

    /// From now on this plan is in force, also for a process that runs already.
    pub fn arm(&self, plan: &Plan) {
        let (action, when) = match plan.action {
            Action::Count => ("off", "-"),
            Action::NoSpace => ("enospc", "-"),
            Action::IoError => ("eio", "-"),
            Action::ReadOnly => ("erofs", "-"),
            Action::Short => ("short", "-"),
            Action::Hang => ("hang", "-"),
            Action::KillBefore => ("kill", "before"),
            Action::KillAfter => ("kill", "after"),
        };
        let id = self.plans.fetch_add(1, Ordering::SeqCst) + 1;
        let Plan { operation, class, first, times, .. } = plan;
        let text = format!("{id} {action} {when} {operation} {class} {first} {times}");
        let _ = std::fs::remove_file(self.control.path().join("log"));
        // In one step: a plan is never seen half.
        let new = self.control.path().join("plan.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.control.path().join("plan")).unwrap();
    }

    /// From now on everything passes. The log of the last plan stays.
    pub fn disarm(&self) {
        let _ = std::fs::remove_file(self.control.path().join("plan"));
    }

    /// What happened under the plan that was armed last.
    pub fn log(&self) -> Vec<Operation> {
        let id = self.plans.load(Ordering::SeqCst).to_string();
        let text = std::fs::read_to_string(self.control.path().join("log")).unwrap_or_default();
        let mut log: Vec<Operation> = Vec::new();
        for line in text.lines() {
            let words: Vec<_> = line.splitn(6, ' ').collect();
            let [of, number, operation, class, action, path] = words[..] else { continue };
            if of != id {
                continue;
            }
            if action == "failed" {
                let mut earlier = log.iter_mut().rev();
                let failed = earlier.find(|o| o.operation == operation && o.path == path);
                // One that began under an earlier plan is not in this log.
                if let Some(failed) = failed {
                    failed.failed = true;
                }
                continue;
            }
            log.push(Operation {
                number: number.parse().expect("a number"),
                operation: operation.to_owned(),
                class: class.to_owned(),
                hit: action != "pass",
                failed: false,
                path: path.to_owned(),
            });
        }
        log
    }

    /// Whether the plan that was armed last hit anything yet.
    pub fn hit(&self) -> bool {
        self.log().iter().any(|operation| operation.hit)
    }
}

/// The library, made once in a test run; `None` if there is no compiler.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
            let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let (made, library) =
                (target.join(format!("faults-{}.so", std::process::id())), target.join("faults.so"));
            let compiled = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                .arg(&made)
                .arg(source)
                .args(["-ldl", "-lpthread"])
                .output();
            let output = match compiled {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
                output => output.unwrap(),
            };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(made, &library).unwrap();
            Some(library)
        })
        .as_deref()
}
