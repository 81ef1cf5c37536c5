//! Composition root: the one place that names concrete stores and catalogues. Builds a gateway from its
//! configuration, runs it, and stops it in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::catalog::copy as catalog_copy;
pub use crate::catalog::copy::TableCopy;
use crate::catalog::{Catalog, CatalogError, Counts, Gateways, Origin, Work, postgres, sqlite};
use crate::cli::check::{CheckLine, listen_remedy};
use crate::config::{Config, DownloadVia, Loaded, SyncConfig, SyncVerify};
use crate::domain::GatewayId;
use crate::domain::media::TypeRules;
use crate::http::server::{ServerLimits, listen, serve as serve_connections};
use crate::http::{Edge, Settings, Via, router};
use crate::jobs;
use crate::runtime::tasks::Tasks;
use crate::runtime::{descriptors, logging, metrics};
use crate::service::audit::Denials;
use crate::service::cache::Cache;
use crate::service::events::Events;
use crate::service::health::oldest_unsynced_seconds;
use crate::service::known_files::KnownFiles;
use crate::service::upload::UnsureUploads;
use crate::service::{Rules, Services, Verify};
use crate::spool::{RESERVE_BYTES, Reserve, Room, Spool, sync_dir};
use crate::storage::cache::CacheDir;
use crate::storage::local::LocalStore;
use crate::storage::pace::Pacer;
use crate::storage::peer::PeerClient;
use crate::storage::supabase::{Access, CreateBucket, PATCH_BYTES, SupabaseStore};
use crate::storage::tiered::TieredStore;
use crate::storage::{Kind, ObjectStore, chain};

/// What work that was complete gets to end when the grace is over.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// A recording that waits longer than this for the cloud is worth a warning.
const LONG_UNSYNCED: Duration = Duration::from_secs(3600);

/// A gateway that is listening.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its use cases, for tests.
    pub services: Services,
    listener: TcpListener,
    edge: Edge,
    limits: ServerLimits,
    catalog: Arc<dyn Catalog>,
    sync: SyncConfig,
    /// Held as long as the gateway runs: two on one directory would lose recordings to each other.
    lock: std::fs::File,
}

impl App {
    /// Opens disk, catalogue and port. The cloud is not asked: a gateway starts without it.
    ///
    /// # Errors
    /// What kept it from starting, with what to do. Nothing is left running.
    pub async fn build(config: &Config) -> anyhow::Result<Self> {
        metrics::init();
        let root = &config.storage.local_dir;
        let catalog_dir = root.join(".catalog");
        std::fs::create_dir_all(&catalog_dir).map_err(unwritable("make", &catalog_dir))?;
        let lock = lock_directory(&catalog_dir)?;
        // Names that were made just now outlive a power cut, as what is answered from then on does. Where the directory
        // above may not be opened it was there before.
        for dir in [root.parent(), Some(root)].into_iter().flatten() {
            let _ = sync_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        }
        let spool_dir = root.join(".spool");
        let spool = Spool::open(spool_dir.clone()).map_err(unwritable("use", &spool_dir))?;
        let local = LocalStore::open(root.clone(), spool.clone()).context("cannot open the local store")?;
        let room = Room::new(root.clone(), config.storage.min_free);
        let cache = Cache::new(cache_dir(root, config.download.cache_bytes));
        let expendable = cache.clone();
        room.relieved_by(move |bytes| expendable.free(bytes));
        let reserve = Reserve::new(catalog_dir.join("reserve"));
        let mut catalog = open_catalog(config, &catalog_dir).await;
        if catalog.is_err() && reserve.is_whole() {
            // Opening it takes a little room, and the disk may be full.
            cache.free(RESERVE_BYTES);
            reserve.give_up().context("cannot give up the reserve")?;
            catalog = open_catalog(config, &catalog_dir).await;
        }
        let catalog = catalog?;
        let host = config.server.host.as_str();
        let listener = listen(host, config.server.port).await.map_err(|error| {
            let remedy = listen_remedy(&error);
            anyhow::anyhow!("cannot listen on {host}:{}: {error}; {remedy}", config.server.port)
        })?;
        let address = listener.local_addr().context("the listener has no address")?;
        let advertised = config
            .server
            .advertise_url
            .as_ref()
            .map_or_else(|| format!("http://{address}"), ToString::to_string);
        let services = Services {
            catalog: catalog.clone(),
            origin: Arc::new(Origin::gateway("background")),
            stores: Arc::new(stores(config, local)?),
            spool,
            tasks: Tasks::default(),
            bell: watch::Sender::new(()),
            put_off: Arc::default(),
            rules: Arc::new(rules(config, advertised)?),
            upload_slots: Arc::new(Semaphore::new(config.uploads.max_concurrent)),
            verifying: Arc::new(Semaphore::new(1)),
            room,
            reserve,
            cache,
            known_files: KnownFiles::default(),
            events: Events::default(),
            denials: Denials::default(),
            unsure: UnsureUploads::default(),
            peers: PeerClient::new().context("cannot set up TLS for other gateways")?,
        };
        let (placed, removed) = services.recover_spool().await.map_err(|error| {
            anyhow::anyhow!("cannot take up what an earlier run left in the spool: {}", chain(&error))
        })?;
        if placed + removed > 0 {
            tracing::info!(
                placed,
                removed,
                "uploads of an earlier run: promised ones are in their place, unfinished ones are gone"
            );
        }
        // Before the first request, so that whoever hears of a recording here can also fetch it here.
        if let Err(error) = catalog.register(&services.rules.node, &services.rules.advertised_url).await {
            tracing::warn!(error = %chain(&error), "other gateways do not know yet where this one is");
        }
        if config.catalog.url.is_some() && config.server.advertise_url.is_none() {
            tracing::warn!(
                address = services.rules.advertised_url,
                "server.advertise_url is not set: other gateways on this catalogue look for this one where it listens"
            );
        }
        let edge = Edge { services: services.clone(), settings: Arc::new(settings(config)) };
        Ok(Self {
            address,
            edge,
            services,
            listener,
            limits: ServerLimits {
                header_timeout: config.server.header_timeout,
                shutdown_grace: config.server.shutdown_grace,
                max_connections: descriptors::connections_that_fit(config.server.max_connections),
            },
            catalog,
            sync: config.sync.clone(),
            lock,
        })
    }

    /// Serves until the services' tasks are told to stop, then finishes what runs.
    pub async fn run(self) {
        let (tasks, interval) = (self.services.tasks.clone(), self.sync.interval);
        let syncs = std::iter::repeat_n(Work::All, self.sync.max_concurrent);
        for work in syncs.chain([Work::Deletions]) {
            tasks.spawn(jobs::run_jobs(self.services.clone(), interval, work));
        }
        tasks.spawn(jobs::run_upkeep(self.services.clone(), interval, self.sync.keep_jobs));
        tasks.spawn(jobs::look_around(self.services.clone(), interval));
        tasks.spawn(jobs::look_into_bucket(self.services.clone(), interval));
        let stopping = tasks.stopping().clone();
        let told = tokio::spawn(async move {
            stopping.cancelled().await;
            Instant::now()
        });
        let cut = serve_connections(self.listener, router(self.edge), self.limits, tasks.clone()).await;
        if cut > 0 {
            tracing::warn!(connections = cut, "the grace is over; running requests are cut off");
        }
        // What was complete is still being kept: an upload's end, a deletion. It has what is left of the grace, and a
        // moment in any case.
        let waited = told.await.map_or(Duration::ZERO, |at| at.elapsed());
        let left = self.limits.shutdown_grace.saturating_sub(waited).max(LAST_MOMENT);
        if tokio::time::timeout(left, tasks.stop()).await.is_err() {
            tracing::warn!(
                tasks = tasks.running(),
                "some work did not end in time; the next start takes it up"
            );
            // It has catalogue and directory until the process ends.
            std::mem::forget(self.lock);
            return;
        }
        self.catalog.close().await;
    }
}

/// The catalogue that the configuration names.
async fn open_catalog(config: &Config, dir: &Path) -> anyhow::Result<Arc<dyn Catalog>> {
    let gateway = gateway_id(dir)?;
    let opened = match &config.catalog.url {
        Some(_) => postgres::open(&database_url(config), gateway).await,
        None => sqlite::open(&dir.join("catalog.sqlite"), gateway).await,
    };
    let opened = match opened {
        Ok((catalog, new)) => catalog_copy::usable(&catalog).await.map(|usable| (catalog, new, usable)),
        Err(error) => Err(error),
    };
    match opened {
        Ok((catalog, _, Err(reason))) => {
            catalog.close().await;
            Err(reason.into())
        }
        Ok((catalog, new, Ok(()))) => {
            if new {
                tracing::info!("the catalogue is new; what the stores hold is taken in");
            }
            Ok(Arc::new(catalog))
        }
        Err(error) => anyhow::bail!(
            "{}; {}",
            chain(&error),
            catalog_remedy(config, config.catalog.url.is_none(), &error)
        ),
    }
}

/// Moves the embedded catalogue to PostgreSQL. No gateway may run on the directory meanwhile.
///
/// # Errors
/// What kept it from being moved, with what to do. What was copied stays, and a repeat goes on.
pub async fn copy_catalogue(config: &Config, to: &url::Url) -> anyhow::Result<Vec<TableCopy>> {
    let dir = config.storage.local_dir.join(".catalog");
    let path = dir.join("catalog.sqlite");
    anyhow::ensure!(
        path.exists(),
        "there is no embedded catalogue at {}; a gateway on PostgreSQL needs none to begin",
        path.display()
    );
    let _lock = lock_directory(&dir)?;
    let gateway = gateway_id(&dir)?;
    let told = |what: &str, embedded: bool, error: CatalogError| {
        anyhow::anyhow!("{what}: {}; {}", chain(&error), catalog_remedy(config, embedded, &error))
    };
    let (from, _) = sqlite::open(&path, gateway.clone())
        .await
        .map_err(|error| told("the embedded catalogue", true, error))?;
    let (to, _) =
        postgres::open(to, gateway).await.map_err(|error| told("the database to copy to", false, error))?;
    let copied = catalog_copy::copy(&from, &to).await;
    to.close().await;
    from.close().await;
    copied.map_err(|error| anyhow::anyhow!("{}", chain(&error)))
}

fn database_url(config: &Config) -> url::Url {
    let text = config.catalog.url.as_ref().map_or("", |secret| secret.expose());
    text.parse().expect("the configuration checked that it is an address")
}

/// What to do about a catalogue that cannot be used.
fn catalog_remedy(config: &Config, embedded: bool, error: &CatalogError) -> String {
    let path = config.storage.local_dir.join(".catalog/catalog.sqlite");
    let away = format!(
        "move {} away (with the files whose names begin so): it is rebuilt from the stores, but deletions that a store did not confirm yet are forgotten",
        path.display()
    );
    match (error, embedded) {
        (CatalogError::Newer(_), false) => {
            "start that version, or set DATABASE_URL to another database".into()
        }
        (CatalogError::Newer(_), true) => format!("start that version, or {away}"),
        (_, false) => {
            "check its address (DATABASE_URL, or --to), and that it answers; without it nothing can be promised".into()
        }
        (CatalogError::Full(_), true) => "make room on the disk".into(),
        (CatalogError::Closed(_), true) => {
            format!(
                "make {} a file that this user may read and write, in a directory likewise",
                path.display()
            )
        }
        (_, true) => format!("put back {} from a backup, or {away}", path.display()),
    }
}

/// Who this gateway is: kept beside its recordings, so that the rows that name it stay true after a move.
fn gateway_id(dir: &Path) -> anyhow::Result<GatewayId> {
    let path = dir.join("gateway");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(GatewayId(text.trim().to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unwritable("read", &path)(error)),
    }
    let id = uuid::Uuid::now_v7().to_string();
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        std::io::Write::write_all(&mut file, id.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        crate::spool::sync_dir(dir)
    };
    write().map_err(unwritable("write", &path))?;
    Ok(GatewayId(id))
}

/// Says what to do about a file or directory below `storage.local_dir` that this user cannot use.
fn unwritable(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let what = format!("cannot {doing} {}", path.display());
    move |error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "make room on the disk",
            _ => "set storage.local_dir (--local-dir) to a directory that this user may read and write",
        };
        anyhow::anyhow!("{what}: {error}; {remedy}")
    }
}

fn lock_directory(dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("lock");
    let file = std::fs::File::create(&path).map_err(unwritable("write", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
            "another gateway runs on {}; stop it, or give this one a directory of its own with --local-dir",
            dir.parent().unwrap_or(dir).display()
        ),
        Err(error) => {
            Err(std::io::Error::from(error)).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The cache's files. A directory that cannot be used costs the cache, not the start.
fn cache_dir(root: &Path, limit_bytes: u64) -> CacheDir {
    let dir = root.join(".cache");
    CacheDir::open(dir.clone(), limit_bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, dir = %dir.display(), "the cache cannot be used; everything is played from the cloud");
        CacheDir::off()
    })
}

fn supabase(config: &Config) -> anyhow::Result<Option<Arc<dyn ObjectStore>>> {
    let cloud = &config.supabase;
    let (Some(base), Some(key)) = (cloud.storage_base(), &cloud.key) else { return Ok(None) };
    let access = Access {
        base,
        key: key.expose().to_owned(),
        bucket: cloud.bucket.clone(),
        connect_timeout: cloud.connect_timeout,
        idle_timeout: cloud.idle_timeout,
        question_timeout: cloud.list_timeout,
        resumable_from: cloud.resumable_from,
        patch_bytes: PATCH_BYTES,
    };
    let create = cloud.create_bucket.then_some(CreateBucket { public: cloud.public });
    let store =
        SupabaseStore::new(access, cloud.public, create).context("cannot set up TLS for the cloud")?;
    Ok(Some(Arc::new(store)))
}

fn stores(config: &Config, local: LocalStore) -> anyhow::Result<TieredStore> {
    let cloud = &config.supabase;
    Ok(TieredStore::new(
        supabase(config)?,
        Arc::new(local),
        cloud.patience,
        (cloud.breaker_failures, cloud.breaker_pause),
        cloud.signed_url_ttl,
        Pacer::new(config.sync.max_rate),
    ))
}

fn rules(config: &Config, advertised_url: String) -> anyhow::Result<Rules> {
    Ok(Rules {
        max_bytes: config.uploads.max_bytes,
        types: TypeRules::parse(&config.uploads.allowed_types)
            .map_err(|error| anyhow::anyhow!("uploads.allowed_types: {error}"))?,
        node: config.server.node.clone(),
        advertised_url,
        bucket: config.supabase.bucket.clone(),
        keep_local: config.sync.keep_local,
        verify: match config.sync.verify {
            SyncVerify::Size => Verify::Size,
            SyncVerify::Etag => Verify::Etag,
            SyncVerify::Read => Verify::Read,
        },
        idempotency_ttl: config.uploads.idempotency_ttl,
    })
}

fn settings(config: &Config) -> Settings {
    let origin = config.supabase.storage_base().map(|base| base.origin().ascii_serialization());
    Settings {
        upload_idle_timeout: config.uploads.idle_timeout,
        via: match config.download.via {
            DownloadVia::Redirect => Via::Redirect,
            DownloadVia::Proxy => Via::Proxy,
        },
        allowed_types: config.uploads.allowed_types.clone(),
        media_origin: origin.unwrap_or_default(),
        allowed_origins: config.server.allowed_origins.clone(),
    }
}

/// Runs the gateway until it is told to stop by a signal.
///
/// # Errors
/// What kept it from starting.
pub async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    logging::init(&loaded.config.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    // Before anybody can know that the gateway is there: an early signal must not kill it half-way.
    let signal = stop_signal().context("cannot wait for signals")?;
    let app = App::build(&loaded.config).await?;
    tracing::info!(
        address = %format!("http://{}", app.address),
        recordings = %loaded.config.storage.local_dir.display(),
        bucket = loaded.config.supabase.url.is_some().then_some(loaded.config.supabase.bucket.as_str()),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    let stopping = app.services.tasks.stopping().clone();
    tokio::spawn(async move {
        signal.await;
        tracing::info!("stopping: no new requests, running ones may finish");
        stopping.cancel();
    });
    app.run().await;
    tracing::info!("stopped");
    Ok(())
}

/// Ends at SIGTERM, SIGINT or SIGHUP (the terminal was closed). Signals are caught from the moment this returns.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Asks the catalogue and the cloud whether they can be used.
pub async fn check(config: &Config) -> Vec<CheckLine> {
    let mut lines = check_catalog(config).await;
    lines.push(check_cloud(config).await);
    lines
}

async fn check_catalog(config: &Config) -> Vec<CheckLine> {
    let path = config.storage.local_dir.join(".catalog").join("catalog.sqlite");
    let inspected = match &config.catalog.url {
        Some(_) => postgres::inspect(&database_url(config)).await,
        None if !path.exists() => {
            return vec![CheckLine::ok("catalogue", "not there yet; it is made at the first start")];
        }
        None => sqlite::inspect(&path).await,
    };
    match inspected {
        Ok(counts) => vec![
            CheckLine::ok("catalogue", format!("{} recordings, {} jobs", counts.recordings, counts.jobs)),
            check_unsynced(&counts),
            check_parked(&counts),
            check_deletions(&counts),
        ],
        Err(error) => {
            let remedy = catalog_remedy(config, config.catalog.url.is_none(), &error);
            vec![CheckLine::failure("catalogue", chain(&error), remedy)]
        }
    }
}

fn check_unsynced(counts: &Counts) -> CheckLine {
    if counts.unsynced == 0 {
        return CheckLine::ok("unsynced", "nothing waits for the cloud");
    }
    let age = Duration::from_secs(oldest_unsynced_seconds(counts) as u64);
    let detail = format!(
        "{} recordings ({}) are only on this disk, the oldest for {}",
        counts.unsynced,
        bytesize::ByteSize(counts.unsynced_bytes),
        humantime::format_duration(age)
    );
    if age < LONG_UNSYNCED {
        CheckLine::ok("unsynced", detail)
    } else {
        CheckLine::warning(
            "unsynced",
            detail,
            "see what the line about the cloud says, and whether a gateway runs",
        )
    }
}

fn check_parked(counts: &Counts) -> CheckLine {
    match counts.parked {
        0 => CheckLine::ok("parked", "none"),
        parked => CheckLine::warning(
            "parked",
            format!("{parked} recordings that the cloud will not take stay on this disk"),
            "the list of their session tells why; change that, or keep them here",
        ),
    }
}

fn check_deletions(counts: &Counts) -> CheckLine {
    match counts.stuck_deletions {
        0 => CheckLine::ok("deletions", "none fails again and again"),
        stuck => CheckLine::warning(
            "deletions",
            format!("{stuck} failed several times: a store keeps what was deleted"),
            "`jobs ls --kind delete` tells why; the key may lack the right to delete",
        ),
    }
}

async fn check_cloud(config: &Config) -> CheckLine {
    let store = match supabase(config) {
        Ok(Some(store)) => store,
        Ok(None) => {
            return CheckLine::warning(
                "cloud",
                "not configured; recordings stay on this disk",
                "set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY to use one",
            );
        }
        Err(error) => return CheckLine::failure("cloud", format!("{error:#}"), "reinstall the program"),
    };
    let bucket = &config.supabase.bucket;
    match store.probe().await {
        Ok(probe) => {
            let kind = if probe.public { "public" } else { "private" };
            let size = probe.max_object_bytes.map_or("no limit of its own".to_owned(), |bytes| {
                format!("objects up to {}", bytesize::ByteSize(bytes))
            });
            let types = probe.allowed_types.map_or("all types".to_owned(), |types| types.join(", "));
            CheckLine::ok("cloud", format!("bucket {bucket} is there: {kind}, {size}, {types}"))
        }
        Err(error) => {
            let remedy = match error.kind {
                Kind::Unauthorized => {
                    "copy the service role key again from Project Settings > API".to_owned()
                }
                Kind::BucketMissing => {
                    format!(
                        "make the bucket {bucket}, or set supabase.create_bucket = true, or use a key that may see it"
                    )
                }
                Kind::Nonsense => "check that SUPABASE_URL is the project's address".to_owned(),
                _ => "check SUPABASE_URL and the network; until then recordings are kept on this disk"
                    .to_owned(),
            };
            CheckLine::failure("cloud", chain(&error), remedy)
        }
    }
}
