//! One gateway of the model test: the real catalogue, spool, local store and use cases in a directory, with the
//! scripted cloud in the place of the real one, on a runtime of its own. It can be stopped, and cut off as a kill
//! does: what was on the disk at that moment is what the next start finds.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use recording_gateway::app::App;
use recording_gateway::config::{Config, SyncVerify};
use recording_gateway::service::Services;
use recording_gateway::storage::local::LocalStore;
use recording_gateway::storage::pace::Pacer;
use recording_gateway::storage::tiered::TieredStore;
use sqlx::{ConnectOptions, Executor};
use tokio::runtime::Runtime;
use url::Url;

use super::cloud::{Bucket, Disk, Life, ScriptedCloud};

/// Short: an upload that nobody answers costs the test this long.
const PATIENCE: Duration = Duration::from_millis(20);
/// Longer than anything takes that will end.
const HANGS: Duration = Duration::from_secs(20);

/// What the catalogue refuses for one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CatalogFault {
    Rows,
    RowChanges,
    Jobs,
    JobChanges,
    Tombstones,
    Reservations,
    Releases,
}

impl CatalogFault {
    fn event(self) -> &'static str {
        match self {
            Self::Rows => "INSERT ON recordings",
            Self::RowChanges => "UPDATE ON recordings",
            Self::Jobs => "INSERT ON jobs",
            Self::JobChanges => "UPDATE ON jobs",
            Self::Tombstones => "INSERT ON tombstones",
            Self::Reservations => "INSERT ON reservations",
            Self::Releases => "DELETE ON reservations",
        }
    }
}

pub struct Process {
    pub services: Services,
    /// The same without a cloud.
    pub alone: Services,
    pub dir: PathBuf,
    pub life: Arc<Life>,
    bucket: Arc<Bucket>,
    database: Option<Url>,
    app: App,
    runtime: Runtime,
}

fn configuration(dir: &Path, database: Option<&Url>) -> Config {
    static BASE: OnceLock<Config> = OnceLock::new();
    let mut config = BASE.get_or_init(|| crate::support::gateway::config(Path::new("/"), &[])).clone();
    config.storage.local_dir = dir.to_owned();
    config.sync.verify = SyncVerify::Read;
    if let Some(url) = database {
        config.catalog.url = Some(recording_gateway::config::Secret::new(url.to_string()));
    }
    config
}

/// The file of a catalogue that was made and never used: making one anew takes longer than a whole sequence.
fn prepared() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let app = App::build(&configuration(dir.path(), None)).await.unwrap();
            app.services.catalog.close().await;
        });
        std::fs::read(dir.path().join(".catalog/catalog.sqlite")).unwrap()
    })
}

/// The gateway on a directory whose lock may outlive the one before it by moments: what another test forks
/// holds every open file of this process until it becomes the program it is to run.
async fn build(config: &Config) -> App {
    let began = std::time::Instant::now();
    loop {
        match App::build(config).await {
            Ok(app) => return app,
            Err(error) if error.to_string().contains("another gateway runs") && began.elapsed() < HANGS => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("the gateway does not start: {error:#}"),
        }
    }
}

impl Process {
    /// The first start in an empty directory.
    pub fn first(dir: PathBuf, bucket: Arc<Bucket>, database: Option<Url>) -> Self {
        let catalog = dir.join(".catalog");
        std::fs::create_dir_all(&catalog).unwrap();
        if database.is_none() {
            std::fs::write(catalog.join("catalog.sqlite"), prepared()).unwrap();
        }
        Self::start(dir, bucket, database)
    }

    fn start(dir: PathBuf, bucket: Arc<Bucket>, database: Option<Url>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .unwrap();
        let config = configuration(&dir, database.as_ref());
        let app = runtime.block_on(build(&config));
        let life = Life::new();
        let mut services = app.services.for_client("anonymous", "model");
        let local = LocalStore::open(dir.clone(), services.spool.clone()).unwrap();
        let cloud = ScriptedCloud { bucket: bucket.clone(), life: life.clone() };
        let disk = Arc::new(Disk { store: local, bucket: bucket.clone(), life: life.clone() });
        let stores = |cloud| {
            // A failure opens the breaker, and the next request is the one that tries: nothing waits in real time.
            let breaker = (1, Duration::ZERO);
            let ttl = Duration::from_secs(60);
            Arc::new(TieredStore::new(cloud, disk.clone(), PATIENCE, breaker, ttl, Pacer::new(0)))
        };
        let alone = Services { stores: stores(None), ..services.clone() };
        services.stores = stores(Some(Arc::new(cloud)));
        let process = Self { services, alone, dir, life, bucket, database, app, runtime };
        // What the background begins with.
        let services = process.services.clone();
        let _ = process.runtime.block_on(services.queue_unsynced());
        process
    }

    /// Runs to the end.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let done = tokio::time::timeout(HANGS, work).await.expect("it hangs");
            self.rest().await;
            done
        })
    }

    /// Runs to the end, or until the process is cut off at the `points`th point.
    pub fn run_until_cut<T>(&self, points: i64, work: impl Future<Output = T>) -> Option<T> {
        self.life.ends_after(points);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.life.cut.notified() => None,
                done = tokio::time::timeout(HANGS, work) => Some(done.expect("it hangs")),
            }
        })
    }

    /// Tasks that clean up behind a request end by themselves.
    async fn rest(&self) {
        let began = std::time::Instant::now();
        while self.services.tasks.running() > 0 {
            assert!(began.elapsed() < HANGS, "a task does not end");
            tokio::task::yield_now().await;
            if began.elapsed() > Duration::from_millis(2) {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
    }

    /// Stops it as a signal does and starts it again.
    pub fn restart(self) -> Self {
        self.runtime.block_on(async {
            self.services.tasks.stop().await;
            self.services.catalog.close().await;
        });
        let Self { services, alone, dir, bucket, database, app, runtime, .. } = self;
        let context = runtime.enter();
        drop((services, alone, app));
        drop(context);
        runtime.shutdown_timeout(HANGS);
        Self::start(dir, bucket, database)
    }

    /// Cuts it off where it is and starts another on what its directory holds.
    pub fn crash(self) -> Self {
        self.life.end();
        let next = next_directory(&self.dir);
        copy_catalog(&self.dir.join(".catalog"), &next.join(".catalog"));
        // The spool goes first: a file that is just being renamed is then in both places or in one, never in none.
        std::fs::rename(self.dir.join(".spool"), next.join(".spool")).unwrap();
        for entry in std::fs::read_dir(&self.dir).unwrap() {
            let name = entry.unwrap().file_name();
            if !name.to_string_lossy().starts_with('.') {
                std::fs::rename(self.dir.join(&name), next.join(&name)).unwrap();
            }
        }
        let Self { services, alone, dir, bucket, database, app, runtime, .. } = self;
        let context = runtime.enter();
        drop((services, alone, app));
        drop(context);
        runtime.shutdown_timeout(HANGS);
        std::fs::remove_dir_all(dir).unwrap();
        Self::start(next, bucket, database)
    }

    /// Makes the catalogue refuse something, or nothing any more.
    pub fn catalog_fault(&self, fault: Option<CatalogFault>) {
        if self.database.is_some() {
            return;
        }
        let path = self.dir.join(".catalog/catalog.sqlite");
        let statement = match fault {
            Some(fault) => format!(
                "CREATE TRIGGER scripted BEFORE {} BEGIN SELECT RAISE(ABORT, 'scripted'); END",
                fault.event()
            ),
            None => "DROP TRIGGER IF EXISTS scripted".to_owned(),
        };
        self.runtime.block_on(async {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let mut connection = options.connect().await.unwrap();
            connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
            sqlx::Connection::close(connection).await.unwrap();
        });
    }

    /// The recordings' files, below the directory.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for session in std::fs::read_dir(&self.dir).unwrap() {
            let session = session.unwrap();
            if !session.file_name().to_string_lossy().starts_with('.') {
                files.extend(std::fs::read_dir(session.path()).unwrap().map(|file| file.unwrap().path()));
            }
        }
        files
    }
}

fn next_directory(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let (stem, life) = name.split_once('-').unwrap();
    let next = dir.with_file_name(format!("{stem}-{}", life.parse::<u32>().unwrap() + 1));
    std::fs::create_dir_all(next.join(".catalog")).unwrap();
    next
}

/// What a kill leaves: the file and its log as they are at one moment. A log that is begun anew meanwhile means that
/// the moment was missed.
fn copy_catalog(from: &Path, to: &Path) {
    std::fs::copy(from.join("gateway"), to.join("gateway")).unwrap();
    let (file, log) = (from.join("catalog.sqlite"), from.join("catalog.sqlite-wal"));
    if !file.exists() {
        return;
    }
    let mark = || {
        let head = std::fs::read(&log).map(|bytes| bytes.into_iter().take(32).collect::<Vec<u8>>());
        (head.ok(), std::fs::metadata(&file).unwrap().modified().unwrap())
    };
    loop {
        let before = mark();
        let _ = std::fs::copy(&log, to.join("catalog.sqlite-wal"));
        std::fs::copy(&file, to.join("catalog.sqlite")).unwrap();
        if mark() == before {
            return;
        }
    }
}
